//! Sends a batch of begins, again if its connection was lost, and hands out the replies.
//!
//! Guarantees that a batch is executed once however often it is sent, and that a request whose caller left keeps no
//! permit of a concurrency limit.

use std::sync::{Mutex, PoisonError};

use crate::redis::functions::ServerFunction;
use crate::redis::{ActiveConnection, CallKind, RedisError, RepeatPolicy};
use crate::request_state::batching::caller_table::BatchItem;
use crate::request_state::batching::queue::{
    QueuedBegin, RequestedPermits, SealedEntries, lift_common_rejection,
};
use crate::request_state::begin::batch::{BatchLedger, BeginEntry};
use crate::request_state::begin::{BeginReply, BeginRequest, batch};
use crate::request_state::state_client::StateClient;

type Answer = Result<BeginReply, RedisError>;
type BeginBatch = SealedEntries<QueuedBegin>;

impl StateClient {
    /// A request's begin, in one call with others of the same turn of the event loop.
    ///
    /// # Errors
    /// The request's own; an error of the whole call is returned to each.
    pub(in crate::request_state) async fn begin_batched(
        &self,
        request: &BeginRequest<'_>,
    ) -> Result<BeginReply, RedisError> {
        let _permit = self.acquire_call_permit()?;
        self.wait_while_held().await?;
        let queued = QueuedBegin::new(request);
        let bytes = queued.entry.bytes();
        self.batches.begins.enqueue(queued, bytes).await
    }
}

/// Sends a batch and hands out its replies. `ledger` is the batch's lane and the number of its ledger; it is returned
/// only afterwards, so a delayed first sending finds its own number in the ledger or a higher one.
pub(super) async fn run_batch(redis: &StateClient, items: BeginBatch, ledger: usize) -> usize {
    let number = redis.batches.call_numbers.next_batch();
    let items = Mutex::new(items);
    let answers = redis
        .send_admitted(CallKind::Begin, RepeatPolicy::WhenDeduplicated, |active, repeated| {
            let items = &items;
            async move { send_batch(redis, &active, items, (ledger, number), repeated).await }
        })
        .await;
    let items = items.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answers = answers.unwrap_or_else(|error| vec![Err(error); items.len()]);
    hand_out(redis, items, answers);
    ledger
}

/// Sends a batch once.
///
/// # Errors
/// Those of the whole call; each entry's own are in the list.
async fn send_batch(
    redis: &StateClient,
    active: &ActiveConnection,
    items: &Mutex<BeginBatch>,
    (ledger, number): (usize, u64),
    repeated: bool,
) -> Result<Vec<Answer>, RedisError> {
    let lock = || items.lock().unwrap_or_else(PoisonError::into_inner);
    // A batch that may have been executed is repeated unchanged: the ledger records its entries by their position.
    if !repeated {
        redis.batches.begins.lock().retain(&mut lock());
    }
    if lock().is_empty() {
        // Nothing is sent. A timeout, unlike a result, shows the breakers nothing about the server.
        return Err(RedisError::Timeout);
    }
    // A batch that changes nothing needs no ledger.
    let changes = lock().iter().any(|item| item.entry.changes);
    if repeated && changes && !active.deduplicates {
        return Err(RedisError::ConnectionLost { reason: "calls are no longer recorded".to_owned() });
    }
    let recorded = active.deduplicates && changes;
    let key = || redis.batches.call_numbers.ledger_key(redis.prefix(), ledger);
    let ledger = recorded.then(|| BatchLedger { key: key(), number, repeated });
    let encode = |name| batch::encode(&entries(&lock()), ledger.as_ref(), name);
    let count = lock().len();
    // Large sessions over a slow connection must not count as a silent server.
    let slow = redis.batches.begins.sizes.is_large(count).then(|| active.clone().with_long_timeout());
    let reply = redis.invoke(slow.as_ref().unwrap_or(active), ServerFunction::BeginBatch, encode).await?;
    redis.batches.begins.sizes.answered(count, &reply);
    lift_common_rejection(batch::decode(&entries(&lock()), reply)?)
}

fn entries(items: &[BatchItem<QueuedBegin>]) -> Vec<&BeginEntry> {
    items.iter().map(|item| &item.entry.entry).collect()
}

fn hand_out(redis: &StateClient, items: BeginBatch, answers: Vec<Answer>) {
    let mut orphaned = Vec::new();
    let mut slots = redis.batches.begins.lock();
    for (item, answer) in items.into_iter().zip(answers) {
        let answer = slots.answer(item.at, answer);
        if let (Some(Ok(BeginReply::Granted { .. })), Some(permits)) = (answer, item.entry.permits) {
            orphaned.push(permits);
        }
    }
    drop(slots);
    for permits in orphaned {
        tokio::spawn(release_permits(redis.clone(), *permits));
    }
}

/// Releases permits that were granted after their caller had left, and so after it tried to release them itself.
async fn release_permits(redis: StateClient, permits: RequestedPermits) {
    for key in &permits.keys {
        redis.release_permit_or_log(key, &permits.name).await;
    }
}
