//! Inspects Redis's settings in one worker of the instance: at boot, every minute, and when a right is lost or gained.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::redis::{RedisClient, ServerWarnings};
use crate::scoreboard::Scoreboard;

/// The slot whose worker inspects: the first one exists as long as the fleet does.
pub(in crate::worker) const SLOT: usize = 0;

/// Time between two inspections, and between two attempts at the first one.
const INSPECT_INTERVAL: Duration = Duration::from_secs(60);
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(500);

/// How often Redis's memory is sampled: what other programs may add in this time is a small part of what is kept free.
const MEMORY_INTERVAL: Duration = Duration::from_secs(3);

/// Samples for ever how full Redis is; every worker of the instance reads it from the scoreboard.
pub(in crate::worker) async fn watch_memory(scoreboard: Arc<Scoreboard>, redis: RedisClient) {
    let mut ticks = tokio::time::interval(MEMORY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Ok(Some(memory)) = redis.memory().await {
            scoreboard.set_redis_memory_permille(memory.permille());
        }
    }
}

/// Inspects for ever.
pub(in crate::worker) async fn run(scoreboard: Arc<Scoreboard>, redis: RedisClient) {
    let known = loop {
        match redis.inspect().await {
            Ok(found) => break found,
            Err(_) => tokio::time::sleep(FIRST_RETRY_DELAY).await,
        }
    };
    log_changes(&scoreboard, ServerWarnings::default(), known);
    let mut known = known;
    let mut rights = redis.notification_warning_changes();
    let mut ticks = tokio::time::interval(INSPECT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = rights.changed() => if changed.is_err() {
                ticks.tick().await;
            }
        }
        // That Redis is away is logged by its client.
        if let Ok(found) = redis.inspect().await {
            log_changes(&scoreboard, known, found);
            known = found;
        }
    }
}

/// Logs what is new and what is no longer wrong.
fn log_changes(scoreboard: &Scoreboard, known: ServerWarnings, found: ServerWarnings) {
    scoreboard.set_redis_findings(found.bits());
    for finding in found.iter().filter(|finding| !known.contains(*finding)) {
        let advice = finding.advice();
        tracing::warn!(finding = ?finding, "{advice}");
    }
    for finding in known.iter().filter(|finding| !found.contains(*finding)) {
        tracing::info!(finding = ?finding, "server warning cleared: {}", finding.advice());
    }
}
