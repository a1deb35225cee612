//! Sends a batch of commits, again if its connection was lost, and hands out the replies.
//!
//! Guarantees that a batch of several is executed once however often it is sent, that a single commit is sent once, and
//! that two commits of one session are executed in the order of arrival. A commit whose caller leaves after its batch
//! is sealed is stored all the same.

use std::sync::{Mutex, PoisonError};

use crate::redis::functions::ServerFunction;
use crate::redis::{ActiveConnection, CallKind, RedisError, RepeatPolicy};
use crate::request_state::batching::caller_table::{BatchItem, OUT_MAX};
use crate::request_state::batching::queue::{SealedEntries, lift_common_rejection};
use crate::request_state::begin::batch::BatchLedger;
use crate::request_state::commit_batch;
use crate::request_state::commit_batch::CommitEntry as Commit;
use crate::request_state::state_client::StateClient;
use crate::sessions::commit::{CommitOutcome, CommitSession};

type Answer = Result<CommitOutcome, RedisError>;
type CommitBatch = SealedEntries<Commit>;

impl StateClient {
    /// A request's changes of about this many bytes, in one call with others of the same turn of the event loop.
    ///
    /// # Errors
    /// The request's own; an error of the whole call is returned to each.
    pub(in crate::request_state) async fn commit_batched(
        &self,
        request: &CommitSession<'_>,
        bytes: usize,
    ) -> Result<CommitOutcome, RedisError> {
        let _permit = self.acquire_call_permit()?;
        self.wait_while_held().await?;
        self.batches.commits.enqueue(Commit::new(request), bytes).await
    }
}

/// Sends a batch, hands out its replies, and returns its lane. A lane's ledger is separate from those of begins; the
/// lane is returned only afterwards, so a delayed first sending finds its own number in the ledger or a higher one. A
/// single commit is not recorded, because that would cost half as much as the commit.
pub(super) async fn run_batch(redis: &StateClient, items: CommitBatch, lane: usize) -> usize {
    let shared = items.len() > 1;
    let recorded = shared.then(|| (lane, redis.batches.call_numbers.next_batch()));
    let policy = if shared { RepeatPolicy::WhenDeduplicated } else { RepeatPolicy::Never };
    let items = Mutex::new(items);
    let answers = redis
        .send_admitted(CallKind::Write, policy, |active, repeated| {
            let items = &items;
            async move { send_batch(redis, &active, items, recorded, repeated).await }
        })
        .await;
    let items = items.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answers = answers.unwrap_or_else(|error| vec![Err(error); items.len()]);
    let mut slots = redis.batches.commits.lock();
    for (item, answer) in items.into_iter().zip(answers) {
        // A commit whose caller has left is stored, and its reply dropped.
        drop(slots.answer(item.at, answer));
    }
    lane
}

/// Sends a batch once; `recorded` are its lane and number if the ledger records it.
///
/// # Errors
/// Those of the whole call; each commit's own are in the list.
async fn send_batch(
    redis: &StateClient,
    active: &ActiveConnection,
    items: &Mutex<CommitBatch>,
    recorded: Option<(usize, u64)>,
    repeated: bool,
) -> Result<Vec<Answer>, RedisError> {
    let lock = || items.lock().unwrap_or_else(PoisonError::into_inner);
    // A batch that may have been executed is repeated unchanged: the ledger records its replies by position.
    if !repeated {
        redis.batches.commits.lock().retain(&mut lock());
    }
    if lock().is_empty() {
        // Nothing is sent. A timeout, unlike a result, shows the breakers nothing about the server.
        return Err(RedisError::Timeout);
    }
    if repeated && !active.deduplicates {
        return Err(RedisError::ConnectionLost { reason: "calls are no longer recorded".to_owned() });
    }
    let key = |lane| redis.batches.call_numbers.ledger_key(redis.prefix(), OUT_MAX + lane);
    let ledger = recorded.filter(|_| active.deduplicates);
    let ledger = ledger.map(|(lane, number)| BatchLedger { key: key(lane), number, repeated });
    let encode = |name| commit_batch::encode(&entries(&lock()), ledger.as_ref(), name);
    let reply = redis.invoke(active, ServerFunction::CommitBatch, encode).await?;
    lift_common_rejection(commit_batch::decode(&entries(&lock()), reply)?)
}

fn entries(items: &[BatchItem<Commit>]) -> Vec<&Commit> {
    items.iter().map(|item| &item.entry).collect()
}
