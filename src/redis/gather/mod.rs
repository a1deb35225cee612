//! One call for all that the requests of one turn of the worker's loop want of Redis: one for their starts, one for what
//! they commit.
//!
//! A request puts its entry into the queue and waits for the answer. The first entry of a turn wakes one task, the
//! keeper, which the runtime therefore polls behind every task that was runnable by then: it sends what has gathered as
//! one call. So a request that is alone is sent in its own turn, without a timer, and 64 that come together cost one
//! call. What comes while a call is out waits for the next answer at most, or for enough company to be worth a call.
//!
//! Guarantees that a caller who leaves before the batch is sealed has sent nothing, and that one who leaves later harms no
//! other entry. What goes into a call, and when it may be sent again, is the matter of what is carried: see [`begins`] and
//! [`commits`].

mod begins;
mod by_slot;
pub(super) mod cluster;
mod commits;
mod pace;
mod sizes;
mod slots;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Instant;

use futures_util::future::Either;
use futures_util::future::select;
use futures_util::stream::FuturesUnordered;
use futures_util::stream::StreamExt;
use futures_util::task::AtomicWaker;

use crate::redis::Inner;
use crate::redis::Redis;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::standing::Gate;
pub(super) use begins::Begins;
use by_slot::Begun;
pub(super) use commits::Commits;
pub(super) use commits::SHARED_MAX;
use pace::Pace;
use sizes::Sizes;
use slots::Item;
use slots::OUT_MAX;
use slots::Slots;

/// Entries `T` that wait to be sent or are out, of one worker, each of which is answered by an `A`.
pub(super) struct Gather<T, A> {
    slots: Mutex<Slots<T, A>>,
    keeper: AtomicWaker,
    /// What answers were like; commits', which are letters and sums, are not looked at.
    sizes: Sizes,
}

/// What goes as one call.
type Batch<T> = Vec<Item<T>>;

impl<T, A> Gather<T, A> {
    pub(super) const fn new() -> Self {
        Self { slots: Mutex::new(Slots::new()), keeper: AtomicWaker::new(), sizes: Sizes::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Slots<T, A>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an entry of about so many bytes into the queue.
    fn put(&self, entry: T, bytes: usize) -> Waiting<'_, T, A> {
        let (at, first) = self.lock().push(entry, bytes);
        if first {
            self.keeper.wake();
        }
        Waiting { gather: self, at: Some(at) }
    }
}

/// A caller who waits for an answer. Dropped before it came it says that the caller has gone.
struct Waiting<'a, T, A> {
    gather: &'a Gather<T, A>,
    /// Its slot, until the answer was taken from it.
    at: Option<usize>,
}

impl<T, A> Future for Waiting<'_, T, A> {
    type Output = A;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<A> {
        let Some(at) = self.at else { return Poll::Pending };
        let answer = ready!(self.gather.lock().poll(at, cx.waker()));
        self.at = None;
        Poll::Ready(answer)
    }
}

impl<T, A> Drop for Waiting<'_, T, A> {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.gather.lock().leave(at);
        }
    }
}

impl Inner {
    /// Waits while calls are held; whatever there is to send on afterwards is the batch's matter.
    pub(super) async fn expected(&self) -> Result<(), Error> {
        match &*self.gate.borrow() {
            Gate::Open(_) => return Ok(()),
            Gate::Shut(reason) => return Err(Error::unavailable(&**reason)),
            Gate::Held { .. } => {}
        }
        Box::pin(self.connection()).await.map(|_| ())
    }

    /// A number that changes when the connection does; in a cluster when the map of slots or any node's does.
    fn state(&self) -> u64 {
        match &*self.gate.borrow() {
            Gate::Open(live) => match &live.caller {
                Caller::Cluster(router) => router.changes().wrapping_add(live.number),
                Caller::One(_) => live.number,
            },
            Gate::Held { .. } | Gate::Shut(_) => u64::MAX,
        }
    }
}

/// Sends what gathers, for as long as the runtime lives. Without it no request of this worker would ever be answered, so
/// a worker whose keeper panics ends, and its successor serves.
pub(super) async fn keep(inner: Arc<Inner>) {
    let begins = tokio::spawn(gathering_begins(Redis { inner: Arc::clone(&inner) }));
    let commits = tokio::spawn(gathering_commits(Redis { inner }));
    let (Either::Left((ended, _)) | Either::Right((ended, _))) = select(begins, commits).await;
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!("a task that sends to Redis panicked: this worker ends");
        std::process::abort();
    }
}

async fn gathering_begins(redis: Redis) {
    if redis.inner.endpoint.cluster().is_some() {
        return cluster::gathering(redis).await;
    }
    gathering(&redis.inner, &redis.inner.begins, |batch, lane| begins::carry(&redis, batch, lane)).await;
}

async fn gathering_commits(redis: Redis) {
    gathering(&redis.inner, &redis.inner.commits, |batch, lane| commits::carry(&redis, batch, lane)).await;
}

/// One no to all entries is the call's, which tells the breakers how the server is.
fn of_all<R: PartialEq>(answers: Vec<Result<R, Error>>) -> Result<Vec<Result<R, Error>>, Error> {
    match answers.first() {
        Some(Err(error @ Error::Refused { .. }))
            if answers.iter().all(|answer| answer.as_ref().err() == Some(error)) =>
        {
            Err(error.clone())
        }
        _ => Ok(answers),
    }
}

/// Sends what comes into a queue. Each call that is out has a lane of its own, below [`OUT_MAX`]: `carry` brings a batch to
/// its answers and hands its lane back.
async fn gathering<T, A, F>(inner: &Inner, gather: &Gather<T, A>, carry: impl Fn(Batch<T>, usize) -> F)
where
    F: Future<Output = usize>,
{
    let mut out = FuturesUnordered::new();
    let mut lanes: Vec<usize> = (0..OUT_MAX).collect();
    let (mut pace, mut begun) = (Pace::default(), [None::<Begun>; OUT_MAX]);
    std::future::poll_fn(|cx| {
        gather.keeper.register(cx.waker());
        let mut answered = false;
        loop {
            while let Poll::Ready(Some(lane)) = out.poll_next_unpin(cx) {
                lanes.push(lane);
                answered = true;
                if let Some(begun) = begun[lane].take() {
                    pace.answered(begun.at.elapsed());
                }
            }
            // There is one for each call that may be out. It is taken first: a batch without one would never be answered.
            let Some(lane) = lanes.pop() else { return Poll::<()>::Pending };
            let now = Begun { state: inner.state(), at: Instant::now() };
            // What is out may be late to answer, or not answer at all: calls of another connection than the present one,
            // and all of them while breakers refuse.
            let others = || begun.iter().flatten().any(|begun| begun.state != now.state);
            let urgent = || answered || pace.is_due(now.at) || others() || !inner.lanes.states().are_closed();
            let batch = gather.lock().seal(out.len(), urgent);
            let Some(batch) = batch else {
                lanes.push(lane);
                return Poll::Pending;
            };
            begun[lane] = Some(now);
            pace.sent(now.at);
            out.push(carry(batch, lane));
        }
    })
    .await;
}
