//! Sends batched additions to counters: 50 ms after the first of a batch, when the worker ends, and those of dead workers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::backoff::pause_between;
use crate::counters::batched::{BatchedCounters, FLUSH_DELAY};
use crate::redis;
use crate::redis::RedisClient;
use crate::sys::{clock, random};
use crate::worker::interval;
use crate::worker::options::WorkerOptions;

/// How often journals of dead workers are looked for, beside once at the start.
const ORPHAN_CHECK_INTERVAL: Duration = clock::TICK.saturating_mul(10);

/// Pause after a batch that Redis did not take; it varies, so that workers do not all send at the same moments.
const RETRY_PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(150)];

/// How long a worker may take for its last batches; its successors send the rest.
const FINAL_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// The worker's batched counters.
pub(in crate::worker) fn build(options: &WorkerOptions, redis: &RedisClient) -> Arc<BatchedCounters> {
    let (table, prefix) = (Arc::clone(&options.scoreboard), options.config.redis.prefix.as_str());
    Arc::new(BatchedCounters::new(table, redis.clone(), prefix, options.slot, options.cell))
}

/// Sends for ever.
pub(in crate::worker) async fn run(batches: Arc<BatchedCounters>) {
    let mut orphan_checks = interval::aligned_interval(ORPHAN_CHECK_INTERVAL);
    flush_orphans(&batches).await;
    let mut not_before = Instant::now();
    loop {
        let due = batches.oldest_ms().map(|since| {
            let age = Duration::from_millis(now_ms().saturating_sub(since));
            (Instant::now() + FLUSH_DELAY.saturating_sub(age)).max(not_before)
        });
        tokio::select! {
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if log_failure(&batches.flush(now_ms()).await) {
                    not_before = Instant::now() + pause_between(RETRY_PAUSE, random::jitter());
                }
            }
            () = batches.first_increment(), if due.is_none() => {}
            _ = orphan_checks.tick() => {
                flush_orphans(&batches).await;
            }
        }
    }
}

/// Acquires a journal if this worker has none, and sends what dead workers left.
async fn flush_orphans(batches: &BatchedCounters) {
    batches.acquire_journal();
    log_failure(&batches.flush_abandoned().await);
}

/// Sends what is left and releases the journal; the worker has nothing else to do any more.
pub(in crate::worker) async fn flush_remaining(batches: &BatchedCounters) {
    let all = async {
        // At most two: a batch that was on its way, and what came after it.
        while batches.flush(now_ms()).await? {}
        batches.flush_abandoned().await
    };
    let sent: Result<Result<(), redis::RedisError>, _> = timeout(FINAL_FLUSH_TIMEOUT, all).await;
    let left = batches.pending_total();
    if left > 0 {
        let cause = match sent {
            Ok(Err(error)) => error.to_string(),
            _ => "Redis did not answer in time".to_owned(),
        };
        tracing::warn!(increments = left, %cause, "counter journal abandoned: {cause}");
    }
    batches.release_journal();
}

fn log_failure<T>(sent: &Result<T, redis::RedisError>) -> bool {
    if let Err(error) = sent {
        tracing::debug!(%error, "counter increments not sent yet: {error}");
    }
    sent.is_err()
}

fn now_ms() -> u64 {
    u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX)
}
