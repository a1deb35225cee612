//! What requests commit on its way as one call: sent, sent again if its connection was lost, and its answers handed out.
//!
//! Guarantees that a batch of several is executed once however often it is sent, that one that is alone is sent once, and
//! that two commits of one session are executed in the order in which they came. A caller who leaves once the batch is
//! sealed has its commit stored all the same.

use std::sync::{Mutex, PoisonError};

use crate::redis::RedisClient;
use crate::redis::batching::caller_table::{BatchItem, OUT_MAX};
use crate::redis::batching::{BatchQueue, lift_common_rejection};
use crate::redis::begin::batch::BatchLedger;
use crate::redis::breakers::CallKind;
use crate::redis::client::RepeatPolicy;
use crate::redis::commit::batch::CommitEntry as Commit;
use crate::redis::commit::{CommitOutcome, CommitSession, batch};
use crate::redis::connection::ActiveConnection;
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;

/// The queue of commits.
pub(in crate::redis) type CommitQueue = BatchQueue<Commit, Answer>;

type Answer = Result<CommitOutcome, RedisError>;
type CommitBatch = super::SealedEntries<Commit>;

/// Most bytes of a commit that shares a call: small ones are not to wait until a large one has been read and written.
pub(in crate::redis) const SHARED_MAX: usize = 8 * 1024;

impl RedisClient {
    /// A request's changes of about so many bytes, in one call with those of its turn.
    ///
    /// # Errors
    /// Its own; what fails the whole call is the error of each.
    pub(in crate::redis) async fn commit_gathered(
        &self,
        request: &CommitSession<'_>,
        bytes: usize,
    ) -> Result<CommitOutcome, RedisError> {
        let _place = self.inner.acquire_call_permit()?;
        self.inner.wait_while_held().await?;
        self.inner.commit_batches.enqueue(Commit::new(request), bytes).await
    }
}

/// Brings a batch to its answers. Its lane, which is handed back, has a ledger, behind those of starts: a late first
/// sending finds its own number there or a higher one. What is alone is not noted, which would cost half as much as itself.
pub(super) async fn run_batch(redis: &RedisClient, items: CommitBatch, lane: usize) -> usize {
    let shared = items.len() > 1;
    let recorded = shared.then(|| (lane, redis.inner.call_numbers.next_batch()));
    let again = if shared { RepeatPolicy::WhenDeduplicated } else { RepeatPolicy::Never };
    let items = Mutex::new(items);
    let answers = redis
        .send_admitted(CallKind::Write, again, |live, repeated| {
            let items = &items;
            async move { send_batch(redis, &live, items, recorded, repeated).await }
        })
        .await;
    let items = items.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answers = answers.unwrap_or_else(|error| vec![Err(error); items.len()]);
    let mut slots = redis.inner.commit_batches.lock();
    for (item, answer) in items.into_iter().zip(answers) {
        // Whose caller has gone is stored, and told to no one.
        drop(slots.answer(item.at, answer));
    }
    lane
}

/// Sends a batch once; `noted` are its lane and number if it is noted.
///
/// # Errors
/// Those of the whole call; each commit's own are within.
async fn send_batch(
    redis: &RedisClient,
    live: &ActiveConnection,
    items: &Mutex<CommitBatch>,
    recorded: Option<(usize, u64)>,
    repeated: bool,
) -> Result<Vec<Answer>, RedisError> {
    let lock = || items.lock().unwrap_or_else(PoisonError::into_inner);
    // What may have been executed goes again as it went first: the ledger has its answers by their places.
    if !repeated {
        redis.inner.commit_batches.lock().retain(&mut lock());
    }
    if lock().is_empty() {
        // Nothing is sent. An answer would tell the breakers that the server is well; this tells them nothing.
        return Err(RedisError::Timeout);
    }
    if repeated && !live.deduplicates {
        return Err(RedisError::ConnectionLost { reason: "calls are no longer noted".to_owned() });
    }
    let key = |lane| redis.inner.call_numbers.ledger_key(&redis.inner.prefix, OUT_MAX + lane);
    let ledger = recorded.filter(|_| live.deduplicates);
    let ledger = ledger.map(|(lane, number)| BatchLedger { key: key(lane), number, repeated });
    let encode = |name| batch::encode(&entries(&lock()), ledger.as_ref(), name);
    let reply = redis.invoke(live, ServerFunction::CommitBatch, encode).await?;
    lift_common_rejection(batch::decode(&entries(&lock()), reply)?)
}

fn entries(items: &[BatchItem<Commit>]) -> Vec<&Commit> {
    items.iter().map(|item| &item.entry).collect()
}
