//! Requests' starts on their way as one call: sent, sent again if its connection was lost, and its answers handed out.
//!
//! Guarantees that a batch is executed once however often it is sent, and that a caller who left keeps no place in a limit
//! on concurrency.

use std::sync::Mutex;
use std::sync::PoisonError;

use crate::redis::Redis;
use crate::redis::begin::LimitArg;
use crate::redis::begin::Reply;
use crate::redis::begin::Request;
use crate::redis::begin::batch;
use crate::redis::begin::batch::Entry as Begin;
use crate::redis::begin::batch::Ledger;
use crate::redis::error::Error;
use crate::redis::gather::Gather;
use crate::redis::gather::of_all;
use crate::redis::gather::slots::Item;
use crate::redis::guard::Again;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::link::Live;

/// The queue of requests' starts.
pub(in crate::redis) type Begins = Gather<Wanted, Answer>;

type Answer = Result<Reply, Error>;
type Batch = super::Batch<Wanted>;

/// One request's start, as it is sent.
pub(in crate::redis) struct Wanted {
    entry: Begin,
    /// Whether it changes anything if it is granted.
    changes: bool,
    /// Keys of limits on concurrency and the name of the place in them; none for most.
    places: Option<Box<Places>>,
}

struct Places {
    keys: Vec<String>,
    name: String,
}

impl Wanted {
    fn new(request: &Request<'_>) -> Self {
        let places = request.limits.iter().any(LimitArg::is_place).then(|| {
            let places = request.limits.iter().filter(|limit| limit.is_place());
            let keys = places.map(|limit| limit.key.clone()).collect();
            Box::new(Places { keys, name: request.token.to_owned() })
        });
        Self { entry: Begin::new(request), changes: request.changes(), places }
    }
}

impl Redis {
    /// A request's start, in one call with those of its turn.
    ///
    /// # Errors
    /// Its own; what fails the whole call is the error of each.
    pub(in crate::redis) async fn begin_gathered(&self, request: &Request<'_>) -> Result<Reply, Error> {
        let _place = self.inner.place()?;
        self.inner.expected().await?;
        let wanted = Wanted::new(request);
        let bytes = wanted.entry.bytes();
        self.inner.begins.put(wanted, bytes).await
    }
}

/// Brings a batch to its answers; `ledger` is its lane and the number of its ledger, which is handed back: a late first
/// sending finds its own number there or a higher one.
pub(super) async fn carry(redis: &Redis, items: Batch, ledger: usize) -> usize {
    let number = redis.inner.numbers.batch();
    let items = Mutex::new(items);
    let answers = redis
        .guard_again(Kind::Begin, Again::Noted, |live, repeated| {
            let items = &items;
            async move { call(redis, &live, items, (ledger, number), repeated).await }
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
async fn call(
    redis: &Redis,
    live: &Live,
    items: &Mutex<Batch>,
    (ledger, number): (usize, u64),
    repeated: bool,
) -> Result<Vec<Answer>, Error> {
    let lock = || items.lock().unwrap_or_else(PoisonError::into_inner);
    // What may have been executed goes again as it went first: the ledger notes its entries by their places.
    if !repeated {
        redis.inner.begins.lock().retain(&mut lock());
    }
    if lock().is_empty() {
        // Nothing is sent. An answer would tell the breakers that the server is well; this tells them nothing.
        return Err(Error::Timeout);
    }
    // What changes nothing leaves nothing behind.
    let changes = lock().iter().any(|item| item.entry.changes);
    if repeated && changes && !live.notes {
        return Err(Error::Lost { reason: "calls are no longer noted".to_owned() });
    }
    let notes = live.notes && changes;
    let key = || redis.inner.numbers.ledger(&redis.inner.prefix, ledger);
    let ledger = notes.then(|| Ledger { key: key(), number, repeated });
    let encode = |name| batch::encode(&entries(&lock()), ledger.as_ref(), name);
    let count = lock().len();
    // Sessions with much in them, over a line that is not fast, are no silence of the server.
    let long = redis.inner.begins.sizes.is_large(count).then(|| live.clone().long());
    let reply = redis.execute(long.as_ref().unwrap_or(live), Entry::BeginBatch, encode).await?;
    redis.inner.begins.sizes.answered(count, &reply);
    of_all(batch::decode(&entries(&lock()), reply)?)
}

fn entries(items: &[Item<Wanted>]) -> Vec<&Begin> {
    items.iter().map(|item| &item.entry.entry).collect()
}

fn hand_out(redis: &Redis, items: Batch, answers: Vec<Answer>) {
    let mut unwanted = Vec::new();
    let mut slots = redis.inner.begins.lock();
    for (item, answer) in items.into_iter().zip(answers) {
        let answer = slots.answer(item.at, answer);
        if let (Some(Ok(Reply::Granted { .. })), Some(places)) = (answer, item.entry.places) {
            unwanted.push(places);
        }
    }
    drop(slots);
    for places in unwanted {
        tokio::spawn(give_back(redis.clone(), *places));
    }
}

/// Gives back places that were granted after their caller had gone, and so after it gave them back itself.
async fn give_back(redis: Redis, places: Places) {
    for key in &places.keys {
        redis.let_go(key, &places.name).await;
    }
}
