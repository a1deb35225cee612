//! What requests want of a cluster at their start, gathered by slot: in a turn one call for each slot they touch.
//!
//! A request's start lies in several slots (`redis/split`), and an entry here is what of it lies in one. So the total that
//! all share is added to once a turn, and the sessions, which lie in one slot, are one call. Guarantees that a call whose
//! outcome is unknown is not made again, and that a slot which is on its way to another node holds no entry up that could
//! be executed alone.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Instant;

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::stream::StreamExt;
use futures_util::task::AtomicWaker;

use crate::redis::Redis;
use crate::redis::begin::Reply;
use crate::redis::begin::Request;
use crate::redis::begin::batch;
use crate::redis::begin::batch::Entry as Begin;
use crate::redis::error::Error;
use crate::redis::gather::by_slot::Begun;
use crate::redis::gather::by_slot::BySlot;
use crate::redis::gather::by_slot::Seat;
use crate::redis::gather::of_all;
use crate::redis::gather::sizes::Sizes;
use crate::redis::gather::slots::Item;
use crate::redis::guard::Again;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::link::Live;
use crate::redis::topology;

type Answer = Result<Reply, Error>;
type Batch = Vec<Item<Begin>>;

/// What waits to be sent to a cluster and what is out, of one worker.
pub(in crate::redis) struct Parts {
    queues: Mutex<BySlot<Begin, Answer>>,
    keeper: AtomicWaker,
    sizes: Sizes,
}

impl Parts {
    pub(in crate::redis) fn new() -> Self {
        Self { queues: Mutex::new(BySlot::new()), keeper: AtomicWaker::new(), sizes: Sizes::new() }
    }

    fn lock(&self) -> MutexGuard<'_, BySlot<Begin, Answer>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what lies in each of these slots into the queues. Keys have the names that they have in a cluster.
    pub(in crate::redis) fn put<'a>(&self, parts: impl Iterator<Item = (u16, Request<'a>)>) -> Vec<Pending> {
        let mut wake = false;
        let put = |(slot, request): (u16, Request<'_>)| {
            let entry = Begin::new(&request);
            let bytes = entry.bytes();
            let (seat, first) = self.lock().push(slot, entry, bytes);
            wake |= first;
            Pending::Waits(seat)
        };
        let parts = parts.map(put).collect();
        if wake {
            self.keeper.wake();
        }
        parts
    }

    /// Looks for answers; whether all are there.
    pub(in crate::redis) fn poll(&self, parts: &mut [Pending], cx: &Context<'_>) -> bool {
        let (mut queues, mut all) = (self.lock(), true);
        for part in parts {
            if let Pending::Waits(seat) = part {
                match queues.poll(*seat, cx.waker()) {
                    Poll::Ready(answer) => *part = Pending::Answered(answer),
                    Poll::Pending => all = false,
                }
            }
        }
        all
    }

    /// Takes a request's parts out of the queues, unless one of them may have been sent: all or nothing is to be done, so
    /// then the others are to go, too. Whether they were taken out.
    pub(in crate::redis) fn withdraw(&self, parts: &[Pending]) -> bool {
        let mut queues = self.lock();
        let waiting =
            parts.iter().all(|part| matches!(part, Pending::Waits(seat) if queues.is_waiting(*seat)));
        if waiting {
            Self::leave(&mut queues, parts);
        }
        waiting
    }

    /// Leaves without the answers that are not there yet.
    pub(in crate::redis) fn abandon(&self, parts: &[Pending]) {
        Self::leave(&mut self.lock(), parts);
    }

    fn leave(queues: &mut BySlot<Begin, Answer>, parts: &[Pending]) {
        for part in parts {
            if let Pending::Waits(seat) = part {
                queues.leave(*seat);
            }
        }
    }
}

/// A part of a request's start, until it was answered and afterwards.
#[derive(Debug)]
pub(in crate::redis) enum Pending {
    /// It is in a queue, or in a call that is out.
    Waits(Seat),
    /// Its node's answer, or why there is none.
    Answered(Answer),
}

/// Sends what gathers, for as long as the runtime lives; what it needs of the runtime is as in `gather/mod.rs`.
pub(super) async fn gathering(redis: Redis) {
    let (inner, mut out) = (&*redis.inner, FuturesUnordered::new());
    std::future::poll_fn(|cx| {
        inner.parts.keeper.register(cx.waker());
        loop {
            let mut due = Vec::new();
            while let Poll::Ready(Some(answered)) = out.poll_next_unpin(cx) {
                due.push((answered, true));
            }
            due.extend(inner.parts.lock().told().into_iter().map(|slot| (slot, false)));
            if due.is_empty() {
                return Poll::<()>::Pending;
            }
            let now = Begun { state: inner.state(), at: Instant::now() };
            let refused = !inner.lanes.states().are_closed();
            for (slot, answered) in due {
                loop {
                    let batch = inner.parts.lock().seal(slot, now, answered || refused);
                    let Some(batch) = batch else { break };
                    out.push(carry(&redis, (slot, now), batch));
                }
            }
        }
    })
    .await;
}

/// Brings a batch to its answers; its slot.
async fn carry(redis: &Redis, (slot, begun): (u16, Begun), batch: Batch) -> u16 {
    let batch = Mutex::new(batch);
    let answers = redis
        .guard_again(Kind::Begin, Again::Never, |live, _| {
            let batch = &batch;
            async move { call(redis, &live, slot, batch).await }
        })
        .await;
    let batch = batch.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answers = answers.unwrap_or_else(|error| vec![Err(error); batch.len()]);
    let answers = batch.into_iter().map(|item| item.at).zip(answers);
    redis.inner.parts.lock().answer(slot, begun, Instant::now(), answers);
    slot
}

/// Sends a batch.
///
/// # Errors
/// Those of the whole call; each entry's own are within.
async fn call(redis: &Redis, live: &Live, slot: u16, batch: &Mutex<Batch>) -> Result<Vec<Answer>, Error> {
    let lock = || batch.lock().unwrap_or_else(PoisonError::into_inner);
    redis.inner.parts.lock().retain(slot, &mut lock());
    let count = lock().len();
    if count == 0 {
        // Nothing is sent. An answer would tell the breakers that the server is well; this tells them nothing.
        return Err(Error::Timeout);
    }
    let encode = |name| batch::encode(&entries(&lock()), None, name);
    let sizes = &redis.inner.parts.sizes;
    let long = sizes.is_large(count).then(|| live.clone().long());
    let live = long.as_ref().unwrap_or(live);
    let decode = |reply| {
        sizes.answered(count, &reply);
        batch::decode(&entries(&lock()), reply)
    };
    let answers = if count == 1 {
        decode(redis.execute(live, Entry::BeginBatch, encode).await?)?
    } else {
        match redis.execute(&live.clone().torn(), Entry::BeginBatch, encode).await {
            Ok(reply) => decode(reply)?,
            // Nothing of it was executed.
            Err(error) if topology::torn(&error) => of_pieces(Box::pin(alone(redis, live, batch)).await)?,
            Err(error) => return Err(error),
        }
    };
    of_all(answers)
}

/// Each entry as a call of its own, all at once: while a slot is on its way no node executes a call whose keys lie on two,
/// but each of them executes those for whose keys it is the one.
async fn alone(redis: &Redis, live: &Live, batch: &Mutex<Batch>) -> Vec<Answer> {
    let count = batch.lock().unwrap_or_else(PoisonError::into_inner).len();
    let call = |at: usize| async move {
        let lock = || batch.lock().unwrap_or_else(PoisonError::into_inner);
        let encode = |name| batch::encode(&[&lock()[at].entry], None, name);
        let reply = redis.execute(live, Entry::BeginBatch, encode).await?;
        batch::decode(&[&lock()[at].entry], reply)?
            .pop()
            .ok_or_else(|| Error::protocol("an entry has no answer"))?
    };
    join_all((0..count).map(call)).await
}

/// If the node answered none of its pieces it did not answer the call: the breakers would take it for well.
fn of_pieces(answers: Vec<Answer>) -> Result<Vec<Answer>, Error> {
    let silent = |answer: &Answer| matches!(answer, Err(error) if !matches!(error, Error::Refused { .. }));
    if !answers.iter().all(silent) {
        return Ok(answers);
    }
    // One that may have been executed decides, so that no caller takes what is unknown for what was not sent.
    let (lost, others): (Vec<_>, Vec<_>) =
        answers.into_iter().filter_map(Result::err).partition(|error| matches!(error, Error::Lost { .. }));
    Err(lost.into_iter().chain(others).next().unwrap_or(Error::Timeout))
}

fn entries(batch: &[Item<Begin>]) -> Vec<&Begin> {
    batch.iter().map(|item| &item.entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_answers_no_piece_has_not_answered() {
        let lost = || Error::Lost { reason: "it broke".to_owned() };
        let away = || Error::unavailable("it is away");
        assert_eq!(of_pieces(vec![Err(away()), Err(lost()), Err(away())]), Err(lost()));
        assert_eq!(of_pieces(vec![Err(away()), Err(away())]), Err(away()));
        let denied = || Ok(Reply::Denied { limits: vec![] });
        assert_eq!(of_pieces(vec![Err(lost()), denied()]), Ok(vec![Err(lost()), denied()]));
    }
}
