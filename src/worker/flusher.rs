//! Sends the worker's batched additions on: 50 ms after the first of a batch, at its end, and for those who died.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;

use crate::counter::batched::Batches;
use crate::counter::batched::GATHER;
use crate::redis;
use crate::redis::Redis;
use crate::sys::time;
use crate::worker::Start;
use crate::worker::ticks;

/// How often is looked for what dead workers left, beside the first moment.
const LOOK: Duration = time::TICK.saturating_mul(10);

/// Pause after a batch that Redis did not take.
const RETRY: Duration = Duration::from_millis(100);

/// How long a worker that leaves may take for its last batches; where it has successors they send the rest.
const LAST: Duration = Duration::from_millis(500);

/// The worker's batched counters.
pub(super) fn batches(start: &Start, redis: &Redis) -> Arc<Batches> {
    let (table, prefix) = (Arc::clone(&start.scoreboard), start.config.redis.prefix.as_str());
    Arc::new(Batches::new(table, redis.clone(), prefix, start.slot, start.cell))
}

/// Sends for ever.
pub(super) async fn flush(batches: Arc<Batches>) {
    let mut looks = ticks::every(LOOK);
    look(&batches).await;
    let mut not_before = Instant::now();
    loop {
        let due = batches.oldest_ms().map(|since| {
            let age = Duration::from_millis(now_ms().saturating_sub(since));
            (Instant::now() + GATHER.saturating_sub(age)).max(not_before)
        });
        tokio::select! {
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if failed(&batches.flush(now_ms()).await) {
                    not_before = Instant::now() + RETRY;
                }
            }
            () = batches.begun(), if due.is_none() => {}
            _ = looks.tick() => {
                look(&batches).await;
            }
        }
    }
}

/// Takes a journal if this worker has none, and sends what dead workers left.
async fn look(batches: &Batches) {
    batches.seat();
    failed(&batches.flush_orphans().await);
}

/// The worker has nothing else to do any more: sends what is there and gives the journal back.
pub(super) async fn finish(batches: &Batches) {
    let all = async {
        // At most two: a batch that was on its way, and what came after it.
        while batches.flush(now_ms()).await? {}
        batches.flush_orphans().await
    };
    let sent: Result<Result<(), redis::Error>, _> = timeout(LAST, all).await;
    let left = batches.weight();
    if left > 0 {
        let cause = match sent {
            Ok(Err(error)) => error.to_string(),
            _ => "Redis did not answer in time".to_owned(),
        };
        tracing::warn!(additions = left, %cause, "leaving {left} additions to counters to the fleet's other workers: {cause}");
    }
    batches.leave();
}

fn failed<T>(sent: &Result<T, redis::Error>) -> bool {
    if let Err(error) = sent {
        tracing::debug!(%error, "additions to counters wait: {error}");
    }
    sent.is_err()
}

fn now_ms() -> u64 {
    u64::try_from(time::monotonic().as_millis()).unwrap_or(u64::MAX)
}
