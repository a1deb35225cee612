//! Looks at how Redis is set up, in one worker of the machine: at boot, every minute, and told when it changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::redis::Findings;
use crate::redis::Redis;
use crate::scoreboard::Scoreboard;

/// The slot whose worker looks: the first is there as long as the fleet is.
pub(super) const SLOT: usize = 0;

/// How often it looks; while Redis has not been asked yet, more often.
const EVERY: Duration = Duration::from_secs(60);
const UNTIL_FIRST: Duration = Duration::from_millis(500);

/// How often it looks how full Redis is: what strangers may add in this time is a small part of what is kept free.
const MEMORY_EVERY: Duration = Duration::from_secs(3);

/// Looks for ever how full Redis is; every worker of the machine reads it from the table.
pub(super) async fn watch_memory(scoreboard: Arc<Scoreboard>, redis: Redis) {
    let mut ticks = tokio::time::interval(MEMORY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Ok(Some(memory)) = redis.memory().await {
            scoreboard.set_redis_permille(memory.permille());
        }
    }
}

/// Looks for ever.
pub(super) async fn inspect(scoreboard: Arc<Scoreboard>, redis: Redis) {
    let known = loop {
        match redis.inspect().await {
            Ok(found) => break found,
            Err(_) => tokio::time::sleep(UNTIL_FIRST).await,
        }
    };
    tell(&scoreboard, Findings::default(), known);
    let mut known = known;
    let mut rights = redis.news_rights();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = rights.changed() => if changed.is_err() {
                ticks.tick().await;
            }
        }
        // A Redis that is away is told of elsewhere.
        if let Ok(found) = redis.inspect().await {
            tell(&scoreboard, known, found);
            known = found;
        }
    }
}

/// Logs what is new and what is mended.
fn tell(scoreboard: &Scoreboard, known: Findings, found: Findings) {
    scoreboard.set_redis_findings(found.bits());
    for finding in found.iter().filter(|finding| !known.contains(*finding)) {
        let advice = finding.advice();
        tracing::warn!(finding = ?finding, "{advice}");
    }
    for finding in known.iter().filter(|finding| !found.contains(*finding)) {
        tracing::info!(finding = ?finding, "mended: {}", finding.advice());
    }
}
