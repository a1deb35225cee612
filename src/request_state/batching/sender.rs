//! Sends the batches of a queue when they are due.

use std::task::Poll;
use std::time::Instant;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::request_state::batching::call_pacer::CallPacer;
use crate::request_state::batching::caller_table::OUT_MAX;
use crate::request_state::batching::hash_slot_queues::CallStart;
use crate::request_state::batching::queue::{BatchQueue, SealedEntries};
use crate::request_state::batching::{begin_sender, cluster_sender, commit_sender};
use crate::request_state::state_client::StateClient;

/// Sends what is queued, for as long as the runtime lives. Without it no request of this worker is ever answered, so a worker
/// whose sender panics aborts and is replaced.
pub(in crate::request_state) async fn run(redis: StateClient) {
    let begins = tokio::spawn(send_begins(redis.clone()));
    let commits = tokio::spawn(send_commits(redis));
    let (Either::Left((finished, _)) | Either::Right((finished, _))) = select(begins, commits).await;
    if finished.is_err_and(|error| error.is_panic()) {
        tracing::error!("a task that sends to Redis panicked: this worker ends");
        std::process::abort();
    }
}

async fn send_begins(redis: StateClient) {
    if redis.is_cluster() {
        return cluster_sender::send_batches(redis).await;
    }
    send_batches(&redis, &redis.batches.begins, |batch, lane| begin_sender::run_batch(&redis, batch, lane))
        .await;
}

async fn send_commits(redis: StateClient) {
    send_batches(&redis, &redis.batches.commits, |batch, lane| commit_sender::run_batch(&redis, batch, lane))
        .await;
}

/// Sends what is queued. Each call that is under way has a lane of its own, below [`OUT_MAX`]: `run_batch` sends a
/// batch, hands out its replies, and returns the lane.
async fn send_batches<T, A, F>(
    redis: &StateClient,
    queue: &BatchQueue<T, A>,
    run_batch: impl Fn(SealedEntries<T>, usize) -> F,
) where
    F: Future<Output = usize>,
{
    let mut out = FuturesUnordered::new();
    let mut lanes: Vec<usize> = (0..OUT_MAX).collect();
    let (mut pace, mut started) = (CallPacer::default(), [None::<CallStart>; OUT_MAX]);
    std::future::poll_fn(|cx| {
        queue.sender_waker.register(cx.waker());
        let mut answered = false;
        loop {
            while let Poll::Ready(Some(lane)) = out.poll_next_unpin(cx) {
                lanes.push(lane);
                answered = true;
                if let Some(start) = started[lane].take() {
                    pace.answered(start.at.elapsed());
                }
            }
            // Taken before the batch is sealed: a sealed batch without a lane would never be sent.
            let Some(lane) = lanes.pop() else { return Poll::<()>::Pending };
            let now = CallStart { connection_version: redis.connection_version(), at: Instant::now() };
            // Calls that may be slow or never answered: those of another connection than the current one, and all of
            // them while the breakers refuse.
            let others = || {
                started
                    .iter()
                    .flatten()
                    .any(|started_call| started_call.connection_version != now.connection_version)
            };
            let urgent =
                || answered || pace.is_due(now.at) || others() || !redis.breaker_states().all_closed();
            let batch = queue.lock().seal(out.len(), urgent);
            let Some(batch) = batch else {
                lanes.push(lane);
                return Poll::Pending;
            };
            started[lane] = Some(now);
            pace.sent(now.at);
            out.push(run_batch(batch, lane));
        }
    })
    .await;
}
