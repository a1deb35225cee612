//! Requests' starts on their way as one call: sent, sent again if its connection was lost, and its answers handed out.
//!
//! Guarantees that a batch is executed once however often it is sent, and that a caller who left keeps no place in a limit
//! on concurrency.

use std::sync::{Mutex, PoisonError};

use crate::redis::RedisClient;
use crate::redis::batching::caller_table::BatchItem;
use crate::redis::batching::{BatchQueue, lift_common_rejection};
use crate::redis::begin::batch::{BatchLedger, BeginEntry as Begin};
use crate::redis::begin::{BeginReply, BeginRequest, RateLimitCheck, batch};
use crate::redis::breakers::CallKind;
use crate::redis::client::RepeatPolicy;
use crate::redis::connection::ActiveConnection;
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;

/// The queue of requests' starts.
pub(in crate::redis) type BeginQueue = BatchQueue<QueuedBegin, Answer>;

type Answer = Result<BeginReply, RedisError>;
type BeginBatch = super::SealedEntries<QueuedBegin>;

/// One request's start, as it is sent.
pub(in crate::redis) struct QueuedBegin {
    entry: Begin,
    /// Whether it changes anything if it is granted.
    changes: bool,
    /// Keys of limits on concurrency and the name of the place in them; none for most.
    permits: Option<Box<RequestedPermits>>,
}

struct RequestedPermits {
    keys: Vec<String>,
    name: String,
}

impl QueuedBegin {
    fn new(request: &BeginRequest<'_>) -> Self {
        let places = request.limits.iter().any(RateLimitCheck::needs_permit).then(|| {
            let places = request.limits.iter().filter(|limit| limit.needs_permit());
            let keys = places.map(|limit| limit.key.clone()).collect();
            Box::new(RequestedPermits { keys, name: request.token.to_owned() })
        });
        Self { entry: Begin::new(request), changes: request.changes(), permits: places }
    }
}

impl RedisClient {
    /// A request's start, in one call with those of its turn.
    ///
    /// # Errors
    /// Its own; what fails the whole call is the error of each.
    pub(in crate::redis) async fn begin_gathered(
        &self,
        request: &BeginRequest<'_>,
    ) -> Result<BeginReply, RedisError> {
        let _place = self.inner.acquire_call_permit()?;
        self.inner.wait_while_held().await?;
        let queued = QueuedBegin::new(request);
        let bytes = queued.entry.bytes();
        self.inner.begin_batches.enqueue(queued, bytes).await
    }
}

/// Brings a batch to its answers; `ledger` is its lane and the number of its ledger, which is handed back: a late first
/// sending finds its own number there or a higher one.
pub(super) async fn run_batch(redis: &RedisClient, items: BeginBatch, ledger: usize) -> usize {
    let number = redis.inner.call_numbers.next_batch();
    let items = Mutex::new(items);
    let answers = redis
        .send_admitted(CallKind::Begin, RepeatPolicy::WhenDeduplicated, |live, repeated| {
            let items = &items;
            async move { send_batch(redis, &live, items, (ledger, number), repeated).await }
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
/// Those of the whole call; each entry's own are within.
async fn send_batch(
    redis: &RedisClient,
    live: &ActiveConnection,
    items: &Mutex<BeginBatch>,
    (ledger, number): (usize, u64),
    repeated: bool,
) -> Result<Vec<Answer>, RedisError> {
    let lock = || items.lock().unwrap_or_else(PoisonError::into_inner);
    // What may have been executed goes again as it went first: the ledger notes its entries by their places.
    if !repeated {
        redis.inner.begin_batches.lock().retain(&mut lock());
    }
    if lock().is_empty() {
        // Nothing is sent. An answer would tell the breakers that the server is well; this tells them nothing.
        return Err(RedisError::Timeout);
    }
    // What changes nothing leaves nothing behind.
    let changes = lock().iter().any(|item| item.entry.changes);
    if repeated && changes && !live.deduplicates {
        return Err(RedisError::ConnectionLost { reason: "calls are no longer noted".to_owned() });
    }
    let recorded = live.deduplicates && changes;
    let key = || redis.inner.call_numbers.ledger_key(&redis.inner.prefix, ledger);
    let ledger = recorded.then(|| BatchLedger { key: key(), number, repeated });
    let encode = |name| batch::encode(&entries(&lock()), ledger.as_ref(), name);
    let count = lock().len();
    // Sessions with much in them, over a line that is not fast, are no silence of the server.
    let long = redis.inner.begin_batches.sizes.is_large(count).then(|| live.clone().with_long_timeout());
    let reply = redis.invoke(long.as_ref().unwrap_or(live), ServerFunction::BeginBatch, encode).await?;
    redis.inner.begin_batches.sizes.answered(count, &reply);
    lift_common_rejection(batch::decode(&entries(&lock()), reply)?)
}

fn entries(items: &[BatchItem<QueuedBegin>]) -> Vec<&Begin> {
    items.iter().map(|item| &item.entry.entry).collect()
}

fn hand_out(redis: &RedisClient, items: BeginBatch, answers: Vec<Answer>) {
    let mut orphaned = Vec::new();
    let mut slots = redis.inner.begin_batches.lock();
    for (item, answer) in items.into_iter().zip(answers) {
        let answer = slots.answer(item.at, answer);
        if let (Some(Ok(BeginReply::Granted { .. })), Some(places)) = (answer, item.entry.permits) {
            orphaned.push(places);
        }
    }
    drop(slots);
    for places in orphaned {
        tokio::spawn(release_permits(redis.clone(), *places));
    }
}

/// Gives back places that were granted after their caller had gone, and so after it gave them back itself.
async fn release_permits(redis: RedisClient, places: RequestedPermits) {
    for key in &places.keys {
        redis.release_permit_or_log(key, &places.name).await;
    }
}
