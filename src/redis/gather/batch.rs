//! One batch on its way: sent, sent again if its connection was lost, and its answers handed out.

use std::sync::Mutex;
use std::sync::PoisonError;

use crate::redis::Redis;
use crate::redis::begin::Reply;
use crate::redis::begin::batch;
use crate::redis::begin::batch::Entry as Begin;
use crate::redis::begin::batch::Ledger;
use crate::redis::error::Error;
use crate::redis::gather::Answer;
use crate::redis::gather::Batch;
use crate::redis::gather::Places;
use crate::redis::gather::Wanted;
use crate::redis::gather::slots::Item;
use crate::redis::guard::Again;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::link::Live;

/// Brings a batch to its answers; `ledger` is the number of its ledger, which is handed back.
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
        redis.inner.gather.lock().retain(&mut lock());
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
    let reply = redis.execute(live, Entry::BeginBatch, encode).await?;
    let answers = batch::decode(&entries(&lock()), reply)?;
    match answers.first() {
        // One no to all of them is the call's, which tells the breakers how the server is.
        Some(Err(error @ Error::Refused { .. }))
            if answers.iter().all(|answer| answer.as_ref() == Err(error)) =>
        {
            Err(error.clone())
        }
        _ => Ok(answers),
    }
}

fn entries(items: &[Item<Wanted>]) -> Vec<&Begin> {
    items.iter().map(|item| &item.entry.entry).collect()
}

fn hand_out(redis: &Redis, items: Batch, answers: Vec<Answer>) {
    let mut unwanted = Vec::new();
    let mut slots = redis.inner.gather.lock();
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
        if let Err(error) = redis.release(key, &places.name).await {
            tracing::debug!(%error, "a place was not given back and ends by itself: {error}");
        }
    }
}
