//! What requests want of a cluster at their start, gathered by slot: in a turn one call for each slot they touch.
//!
//! A request's start lies in several slots (`redis/split`), and an entry here is what of it lies in one. So the total that
//! all share is added to once a turn, and the sessions, which lie in one slot, are one call. Guarantees that a call whose
//! outcome is unknown is not made again, and that a slot which is on its way to another node holds no entry up that could
//! be executed alone.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::task::AtomicWaker;

use crate::redis::batching::caller_table::BatchItem;
use crate::redis::batching::hash_slot_queues::{CallStart, HashSlotQueues, QueuePosition};
use crate::redis::batching::lift_common_rejection;
use crate::redis::batching::reply_sizes::ReplySizes;
use crate::redis::begin::batch::BeginEntry as Begin;
use crate::redis::begin::{BeginReply, BeginRequest, batch};
use crate::redis::breakers::CallKind;
use crate::redis::client::RepeatPolicy;
use crate::redis::connection::ActiveConnection;
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;
use crate::redis::{RedisClient, hash_slots};

type Answer = Result<BeginReply, RedisError>;
type Batch = Vec<BatchItem<Begin>>;

/// What waits to be sent to a cluster and what is out, of one worker.
pub(in crate::redis) struct ClusterBeginQueue {
    queues: Mutex<HashSlotQueues<Begin, Answer>>,
    sender_waker: AtomicWaker,
    sizes: ReplySizes,
}

impl ClusterBeginQueue {
    pub(in crate::redis) fn new() -> Self {
        Self {
            queues: Mutex::new(HashSlotQueues::new()),
            sender_waker: AtomicWaker::new(),
            sizes: ReplySizes::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSlotQueues<Begin, Answer>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what lies in each of these slots into the queues. Keys have the names that they have in a cluster.
    pub(in crate::redis) fn enqueue<'a>(
        &self,
        parts: impl Iterator<Item = (u16, BeginRequest<'a>)>,
    ) -> Vec<PendingPart> {
        let mut wake = false;
        let put = |(slot, request): (u16, BeginRequest<'_>)| {
            let entry = Begin::new(&request);
            let bytes = entry.bytes();
            let (position, first) = self.lock().push(slot, entry, bytes);
            wake |= first;
            PendingPart::Waiting(position)
        };
        let parts = parts.map(put).collect();
        if wake {
            self.sender_waker.wake();
        }
        parts
    }

    /// Looks for answers; whether all are there.
    pub(in crate::redis) fn poll(&self, parts: &mut [PendingPart], cx: &Context<'_>) -> bool {
        let (mut queues, mut all) = (self.lock(), true);
        for part in parts {
            if let PendingPart::Waiting(position) = part {
                match queues.poll(*position, cx.waker()) {
                    Poll::Ready(answer) => *part = PendingPart::Answered(answer),
                    Poll::Pending => all = false,
                }
            }
        }
        all
    }

    /// Takes a request's parts out of the queues, unless one of them may have been sent: all or nothing is to be done, so
    /// then the others are to go, too. Whether they were taken out.
    pub(in crate::redis) fn withdraw(&self, parts: &[PendingPart]) -> bool {
        let mut queues = self.lock();
        let waiting = parts
            .iter()
            .all(|part| matches!(part, PendingPart::Waiting(position) if queues.is_waiting(*position)));
        if waiting {
            Self::abandon_waiting(&mut queues, parts);
        }
        waiting
    }

    /// Leaves without the answers that are not there yet.
    pub(in crate::redis) fn abandon(&self, parts: &[PendingPart]) {
        Self::abandon_waiting(&mut self.lock(), parts);
    }

    fn abandon_waiting(queues: &mut HashSlotQueues<Begin, Answer>, parts: &[PendingPart]) {
        for part in parts {
            if let PendingPart::Waiting(position) = part {
                queues.abandon(*position);
            }
        }
    }
}

/// A part of a request's start, until it was answered and afterwards.
#[derive(Debug)]
pub(in crate::redis) enum PendingPart {
    /// It is in a queue, or in a call that is out.
    Waiting(QueuePosition),
    /// Its node's answer, or why there is none.
    Answered(Answer),
}

/// Sends what gathers, for as long as the runtime lives; what it needs of the runtime is as in `gather/mod.rs`.
pub(super) async fn send_batches(redis: RedisClient) {
    let (inner, mut out) = (&*redis.inner, FuturesUnordered::new());
    std::future::poll_fn(|cx| {
        inner.cluster_batches.sender_waker.register(cx.waker());
        loop {
            let mut due = Vec::new();
            while let Poll::Ready(Some(answered)) = out.poll_next_unpin(cx) {
                due.push((answered, true));
            }
            due.extend(
                inner.cluster_batches.lock().drain_ready_slots().into_iter().map(|slot| (slot, false)),
            );
            if due.is_empty() {
                return Poll::<()>::Pending;
            }
            let now = CallStart { connection_version: inner.connection_version(), at: Instant::now() };
            let refused = !inner.breakers.states().all_closed();
            for (slot, answered) in due {
                loop {
                    let batch = inner.cluster_batches.lock().seal(slot, now, answered || refused);
                    let Some(batch) = batch else { break };
                    out.push(run_batch(&redis, (slot, now), batch));
                }
            }
        }
    })
    .await;
}

/// Brings a batch to its answers; its slot.
async fn run_batch(redis: &RedisClient, (slot, start): (u16, CallStart), batch: Batch) -> u16 {
    let batch = Mutex::new(batch);
    let answers = redis
        .send_admitted(CallKind::Begin, RepeatPolicy::Never, |live, _| {
            let batch = &batch;
            async move { send_batch(redis, &live, slot, batch).await }
        })
        .await;
    let batch = batch.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answers = answers.unwrap_or_else(|error| vec![Err(error); batch.len()]);
    let answers = batch.into_iter().map(|item| item.at).zip(answers);
    redis.inner.cluster_batches.lock().answer(slot, start, Instant::now(), answers);
    slot
}

/// Sends a batch.
///
/// # Errors
/// Those of the whole call; each entry's own are within.
async fn send_batch(
    redis: &RedisClient,
    live: &ActiveConnection,
    slot: u16,
    batch: &Mutex<Batch>,
) -> Result<Vec<Answer>, RedisError> {
    let lock = || batch.lock().unwrap_or_else(PoisonError::into_inner);
    redis.inner.cluster_batches.lock().retain(slot, &mut lock());
    let count = lock().len();
    if count == 0 {
        // Nothing is sent. An answer would tell the breakers that the server is well; this tells them nothing.
        return Err(RedisError::Timeout);
    }
    let encode = |name| batch::encode(&entries(&lock()), None, name);
    let sizes = &redis.inner.cluster_batches.sizes;
    let long = sizes.is_large(count).then(|| live.clone().with_long_timeout());
    let live = long.as_ref().unwrap_or(live);
    let decode = |reply| {
        sizes.answered(count, &reply);
        batch::decode(&entries(&lock()), reply)
    };
    let answers = if count == 1 {
        decode(redis.invoke(live, ServerFunction::BeginBatch, encode).await?)?
    } else {
        match redis.invoke(&live.clone().without_cross_slot_retry(), ServerFunction::BeginBatch, encode).await
        {
            Ok(reply) => decode(reply)?,
            // Nothing of it was executed.
            Err(error) if hash_slots::is_cross_slot(&error) => {
                merge_piece_replies(Box::pin(send_individually(redis, live, batch)).await)?
            }
            Err(error) => return Err(error),
        }
    };
    lift_common_rejection(answers)
}

/// Each entry as a call of its own, all at once: while a slot is on its way no node executes a call whose keys lie on two,
/// but each of them executes those for whose keys it is the one.
async fn send_individually(
    redis: &RedisClient,
    live: &ActiveConnection,
    batch: &Mutex<Batch>,
) -> Vec<Answer> {
    let count = batch.lock().unwrap_or_else(PoisonError::into_inner).len();
    let call = |at: usize| async move {
        let lock = || batch.lock().unwrap_or_else(PoisonError::into_inner);
        let encode = |name| batch::encode(&[&lock()[at].entry], None, name);
        let reply = redis.invoke(live, ServerFunction::BeginBatch, encode).await?;
        batch::decode(&[&lock()[at].entry], reply)?
            .pop()
            .ok_or_else(|| RedisError::protocol("an entry has no answer"))?
    };
    join_all((0..count).map(call)).await
}

/// If the node answered none of its pieces it did not answer the call: the breakers would take it for well.
fn merge_piece_replies(answers: Vec<Answer>) -> Result<Vec<Answer>, RedisError> {
    let silent =
        |answer: &Answer| matches!(answer, Err(error) if !matches!(error, RedisError::Rejected { .. }));
    if !answers.iter().all(silent) {
        return Ok(answers);
    }
    // One that may have been executed decides, so that no caller takes what is unknown for what was not sent.
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
    fn a_node_that_answers_no_piece_has_not_answered() {
        let lost = || RedisError::ConnectionLost { reason: "it broke".to_owned() };
        let away = || RedisError::unavailable("it is away");
        assert_eq!(merge_piece_replies(vec![Err(away()), Err(lost()), Err(away())]), Err(lost()));
        assert_eq!(merge_piece_replies(vec![Err(away()), Err(away())]), Err(away()));
        let denied = || Ok(BeginReply::Denied { limits: vec![] });
        assert_eq!(merge_piece_replies(vec![Err(lost()), denied()]), Ok(vec![Err(lost()), denied()]));
    }
}
