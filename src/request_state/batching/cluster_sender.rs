//! Sends the begins that are queued by hash slot: one call for each slot in a turn of the event loop.
//!
//! A request's begin has parts in several slots (`begin_cluster`), and an entry here is one part. So a counter that all
//! requests share is increased once a turn, and the sessions, which are in one slot, are one call. Guarantees that a
//! call whose outcome is unknown is not repeated, and that a slot under migration delays no entry that can be executed
//! alone.

use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Instant;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::redis::functions::ServerFunction;
use crate::redis::{ActiveConnection, CallKind, RedisError, RepeatPolicy, hash_slots};
use crate::request_state::batching::caller_table::BatchItem;
use crate::request_state::batching::hash_slot_queues::CallStart;
use crate::request_state::batching::queue::lift_common_rejection;
use crate::request_state::begin::batch::BeginEntry as Begin;
use crate::request_state::begin::{BeginReply, batch};
use crate::request_state::state_client::StateClient;

type Answer = Result<BeginReply, RedisError>;
type Batch = Vec<BatchItem<Begin>>;

/// Sends what is queued, for as long as the runtime lives; see `sender::run`.
pub(super) async fn send_batches(redis: StateClient) {
    let (queue, mut out) = (&redis.batches.cluster_begins, FuturesUnordered::new());
    std::future::poll_fn(|cx| {
        queue.sender_waker.register(cx.waker());
        loop {
            let mut due = Vec::new();
            while let Poll::Ready(Some(answered)) = out.poll_next_unpin(cx) {
                due.push((answered, true));
            }
            due.extend(queue.lock().drain_ready_slots().into_iter().map(|slot| (slot, false)));
            if due.is_empty() {
                return Poll::<()>::Pending;
            }
            let now = CallStart { connection_version: redis.connection_version(), at: Instant::now() };
            let refused = !redis.breaker_states().all_closed();
            for (slot, answered) in due {
                loop {
                    let batch = queue.lock().seal(slot, now, answered || refused);
                    let Some(batch) = batch else { break };
                    out.push(run_batch(&redis, (slot, now), batch));
                }
            }
        }
    })
    .await;
}

/// Sends a batch and hands out its replies; returns its slot.
async fn run_batch(redis: &StateClient, (slot, start): (u16, CallStart), batch: Batch) -> u16 {
    let batch = Mutex::new(batch);
    let answers = redis
        .send_admitted(CallKind::Begin, RepeatPolicy::Never, |active, _| {
            let batch = &batch;
            async move { send_batch(redis, &active, slot, batch).await }
        })
        .await;
    let batch = batch.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answers = answers.unwrap_or_else(|error| vec![Err(error); batch.len()]);
    let answers = batch.into_iter().map(|item| item.at).zip(answers);
    redis.batches.cluster_begins.lock().answer(slot, start, Instant::now(), answers);
    slot
}

/// Sends a batch once.
///
/// # Errors
/// Those of the whole call; each entry's own are in the list.
async fn send_batch(
    redis: &StateClient,
    active: &ActiveConnection,
    slot: u16,
    batch: &Mutex<Batch>,
) -> Result<Vec<Answer>, RedisError> {
    let lock = || batch.lock().unwrap_or_else(PoisonError::into_inner);
    redis.batches.cluster_begins.lock().retain(slot, &mut lock());
    let count = lock().len();
    if count == 0 {
        // Nothing is sent. A timeout, unlike a result, shows the breakers nothing about the server.
        return Err(RedisError::Timeout);
    }
    let encode = |name| batch::encode(&entries(&lock()), None, name);
    let sizes = &redis.batches.cluster_begins.sizes;
    let slow = sizes.is_large(count).then(|| active.clone().with_long_timeout());
    let active = slow.as_ref().unwrap_or(active);
    let decode = |reply| {
        sizes.answered(count, &reply);
        batch::decode(&entries(&lock()), reply)
    };
    let answers = if count == 1 {
        decode(redis.invoke(active, ServerFunction::BeginBatch, encode).await?)?
    } else {
        match redis
            .invoke(&active.clone().without_cross_slot_retry(), ServerFunction::BeginBatch, encode)
            .await
        {
            Ok(reply) => decode(reply)?,
            // Nothing of the batch was executed.
            Err(error) if hash_slots::is_cross_slot(&error) => {
                merge_piece_replies(Box::pin(send_individually(redis, active, batch)).await)?
            }
            Err(error) => return Err(error),
        }
    };
    lift_common_rejection(answers)
}

/// Sends each entry as a call of its own, all at once: while a slot migrates no node executes a call whose keys are on
/// two nodes, but each node executes calls whose keys it has.
async fn send_individually(
    redis: &StateClient,
    active: &ActiveConnection,
    batch: &Mutex<Batch>,
) -> Vec<Answer> {
    let count = batch.lock().unwrap_or_else(PoisonError::into_inner).len();
    let call = |at: usize| async move {
        let lock = || batch.lock().unwrap_or_else(PoisonError::into_inner);
        let encode = |name| batch::encode(&[&lock()[at].entry], None, name);
        let reply = redis.invoke(active, ServerFunction::BeginBatch, encode).await?;
        batch::decode(&[&lock()[at].entry], reply)?
            .pop()
            .ok_or_else(|| RedisError::protocol("an entry has no answer"))?
    };
    join_all((0..count).map(call)).await
}

/// If the node answered no piece it did not answer the call; otherwise the breakers would count it as healthy.
fn merge_piece_replies(answers: Vec<Answer>) -> Result<Vec<Answer>, RedisError> {
    let silent =
        |answer: &Answer| matches!(answer, Err(error) if !matches!(error, RedisError::Rejected { .. }));
    if !answers.iter().all(silent) {
        return Ok(answers);
    }
    // An entry that may have been executed decides, so that no caller takes an unknown outcome for a call that was not
    // sent.
    let (lost, others): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .filter_map(Result::err)
        .partition(|error| matches!(error, RedisError::ConnectionLost { .. }));
    Err(lost.into_iter().chain(others).next().unwrap_or(RedisError::Timeout))
}

fn entries(batch: &[BatchItem<Begin>]) -> Vec<&Begin> {
    batch.iter().map(|item| &item.entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_answers_no_entry_has_not_answered() {
        let lost = || RedisError::ConnectionLost { reason: "it broke".to_owned() };
        let away = || RedisError::unavailable("it is away");
        assert_eq!(merge_piece_replies(vec![Err(away()), Err(lost()), Err(away())]), Err(lost()));
        assert_eq!(merge_piece_replies(vec![Err(away()), Err(away())]), Err(away()));
        let denied = || Ok(BeginReply::Denied { limits: vec![] });
        assert_eq!(merge_piece_replies(vec![Err(lost()), denied()]), Ok(vec![Err(lost()), denied()]));
    }
}
