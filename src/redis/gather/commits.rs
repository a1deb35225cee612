//! What requests commit on its way as one call: sent, sent again if its connection was lost, and its answers handed out.
//!
//! Guarantees that a batch of several is executed once however often it is sent, that one that is alone is sent once, and
//! that two commits of one session are executed in the order in which they came. A caller who leaves once the batch is
//! sealed has its commit stored all the same.

use std::sync::Mutex;
use std::sync::PoisonError;

use crate::redis::Redis;
use crate::redis::begin::batch::Ledger;
use crate::redis::commit::Reply;
use crate::redis::commit::Request;
use crate::redis::commit::batch;
use crate::redis::commit::batch::Entry as Commit;
use crate::redis::error::Error;
use crate::redis::gather::Gather;
use crate::redis::gather::of_all;
use crate::redis::gather::slots::Item;
use crate::redis::gather::slots::OUT_MAX;
use crate::redis::guard::Again;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::link::Live;

/// The queue of commits.
pub(in crate::redis) type Commits = Gather<Commit, Answer>;

type Answer = Result<Reply, Error>;
type Batch = super::Batch<Commit>;

/// Most bytes of a commit that shares a call: small ones are not to wait until a large one has been read and written.
pub(in crate::redis) const SHARED_MAX: usize = 8 * 1024;

impl Redis {
    /// A request's changes of about so many bytes, in one call with those of its turn.
    ///
    /// # Errors
    /// Its own; what fails the whole call is the error of each.
    pub(in crate::redis) async fn commit_gathered(
        &self,
        request: &Request<'_>,
        bytes: usize,
    ) -> Result<Reply, Error> {
        let _place = self.inner.place()?;
        self.inner.expected().await?;
        self.inner.commits.put(Commit::new(request), bytes).await
    }
}

/// Brings a batch to its answers. Its lane, which is handed back, has a ledger, behind those of starts: a late first
/// sending finds its own number there or a higher one. What is alone is not noted, which would cost half as much as itself.
pub(super) async fn carry(redis: &Redis, items: Batch, lane: usize) -> usize {
    let shared = items.len() > 1;
    let noted = shared.then(|| (lane, redis.inner.numbers.batch()));
    let again = if shared { Again::Noted } else { Again::Never };
    let items = Mutex::new(items);
    let answers = redis
        .guard_again(Kind::Commit, again, |live, repeated| {
            let items = &items;
            async move { call(redis, &live, items, noted, repeated).await }
        })
        .await;
    let items = items.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answers = answers.unwrap_or_else(|error| vec![Err(error); items.len()]);
    let mut slots = redis.inner.commits.lock();
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
async fn call(
    redis: &Redis,
    live: &Live,
    items: &Mutex<Batch>,
    noted: Option<(usize, u64)>,
    repeated: bool,
) -> Result<Vec<Answer>, Error> {
    let lock = || items.lock().unwrap_or_else(PoisonError::into_inner);
    // What may have been executed goes again as it went first: the ledger has its answers by their places.
    if !repeated {
        redis.inner.commits.lock().retain(&mut lock());
    }
    if lock().is_empty() {
        // Nothing is sent. An answer would tell the breakers that the server is well; this tells them nothing.
        return Err(Error::Timeout);
    }
    if repeated && !live.notes {
        return Err(Error::Lost { reason: "calls are no longer noted".to_owned() });
    }
    let key = |lane| redis.inner.numbers.ledger(&redis.inner.prefix, OUT_MAX + lane);
    let ledger = noted.filter(|_| live.notes);
    let ledger = ledger.map(|(lane, number)| Ledger { key: key(lane), number, repeated });
    let encode = |name| batch::encode(&entries(&lock()), ledger.as_ref(), name);
    let reply = redis.execute(live, Entry::CommitBatch, encode).await?;
    of_all(batch::decode(&entries(&lock()), reply)?)
}

fn entries(items: &[Item<Commit>]) -> Vec<&Commit> {
    items.iter().map(|item| &item.entry).collect()
}
