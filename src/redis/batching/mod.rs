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

mod begin_queue;
mod call_pacer;
mod caller_table;
pub(super) mod cluster_queue;
mod commit_queue;
mod hash_slot_queues;
mod reply_sizes;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

pub(super) use begin_queue::BeginQueue;
use call_pacer::CallPacer;
use caller_table::{BatchItem, CallerTable, OUT_MAX};
pub(super) use commit_queue::{CommitQueue, SHARED_MAX};
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::task::AtomicWaker;
use hash_slot_queues::CallStart;
use reply_sizes::ReplySizes;

use crate::redis::availability::RedisAvailability;
use crate::redis::error::RedisError;
use crate::redis::transport::RedisTransport;
use crate::redis::{ClientInner, RedisClient};

/// Entries `T` that wait to be sent or are out, of one worker, each of which is answered by an `A`.
pub(super) struct BatchQueue<T, A> {
    slots: Mutex<CallerTable<T, A>>,
    sender_waker: AtomicWaker,
    /// What answers were like; commits', which are letters and sums, are not looked at.
    sizes: ReplySizes,
}

/// What goes as one call.
type SealedEntries<T> = Vec<BatchItem<T>>;

impl<T, A> BatchQueue<T, A> {
    pub(super) const fn new() -> Self {
        Self {
            slots: Mutex::new(CallerTable::new()),
            sender_waker: AtomicWaker::new(),
            sizes: ReplySizes::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, CallerTable<T, A>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an entry of about so many bytes into the queue.
    fn enqueue(&self, entry: T, bytes: usize) -> ReplyFuture<'_, T, A> {
        let (at, first) = self.lock().push(entry, bytes);
        if first {
            self.sender_waker.wake();
        }
        ReplyFuture { queue: self, at: Some(at) }
    }
}

/// A caller who waits for an answer. Dropped before it came it says that the caller has gone.
struct ReplyFuture<'a, T, A> {
    queue: &'a BatchQueue<T, A>,
    /// Its slot, until the answer was taken from it.
    at: Option<usize>,
}

impl<T, A> Future for ReplyFuture<'_, T, A> {
    type Output = A;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<A> {
        let Some(at) = self.at else { return Poll::Pending };
        let answer = ready!(self.queue.lock().poll(at, cx.waker()));
        self.at = None;
        Poll::Ready(answer)
    }
}

impl<T, A> Drop for ReplyFuture<'_, T, A> {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.queue.lock().abandon(at);
        }
    }
}

impl ClientInner {
    /// Waits while calls are held; whatever there is to send on afterwards is the batch's matter.
    pub(super) async fn wait_while_held(&self) -> Result<(), RedisError> {
        match &*self.availability.borrow() {
            RedisAvailability::Available(_) => return Ok(()),
            RedisAvailability::Unavailable(reason) => return Err(RedisError::unavailable(&**reason)),
            RedisAvailability::Waiting { .. } => {}
        }
        Box::pin(self.wait_for_connection()).await.map(|_| ())
    }

    /// A number that changes when the connection does; in a cluster when the map of slots or any node's does.
    fn connection_version(&self) -> u64 {
        match &*self.availability.borrow() {
            RedisAvailability::Available(live) => match &live.transport {
                RedisTransport::Cluster(router) => router.change_count().wrapping_add(live.number),
                RedisTransport::Standalone(_) => live.number,
            },
            RedisAvailability::Waiting { .. } | RedisAvailability::Unavailable(_) => u64::MAX,
        }
    }
}

/// Sends what gathers, for as long as the runtime lives. Without it no request of this worker would ever be answered, so
/// a worker whose keeper panics ends, and its successor serves.
pub(super) async fn run(inner: Arc<ClientInner>) {
    let begins = tokio::spawn(send_begins(RedisClient { inner: Arc::clone(&inner) }));
    let commits = tokio::spawn(send_commits(RedisClient { inner }));
    let (Either::Left((finished, _)) | Either::Right((finished, _))) = select(begins, commits).await;
    if finished.is_err_and(|error| error.is_panic()) {
        tracing::error!("a task that sends to Redis panicked: this worker ends");
        std::process::abort();
    }
}

async fn send_begins(redis: RedisClient) {
    if redis.inner.endpoint.cluster_seeds().is_some() {
        return cluster_queue::send_batches(redis).await;
    }
    send_batches(&redis.inner, &redis.inner.begin_batches, |batch, lane| {
        begin_queue::run_batch(&redis, batch, lane)
    })
    .await;
}

async fn send_commits(redis: RedisClient) {
    send_batches(&redis.inner, &redis.inner.commit_batches, |batch, lane| {
        commit_queue::run_batch(&redis, batch, lane)
    })
    .await;
}

/// One no to all entries is the call's, which tells the breakers how the server is.
fn lift_common_rejection<R: PartialEq>(
    answers: Vec<Result<R, RedisError>>,
) -> Result<Vec<Result<R, RedisError>>, RedisError> {
    match answers.first() {
        Some(Err(error @ RedisError::Rejected { .. }))
            if answers.iter().all(|answer| answer.as_ref().err() == Some(error)) =>
        {
            Err(error.clone())
        }
        _ => Ok(answers),
    }
}

/// Sends what comes into a queue. Each call that is out has a lane of its own, below [`OUT_MAX`]: `carry` brings a batch to
/// its answers and hands its lane back.
async fn send_batches<T, A, F>(
    inner: &ClientInner,
    queue: &BatchQueue<T, A>,
    run_batch: impl Fn(SealedEntries<T>, usize) -> F,
) where
    F: Future<Output = usize>,
{
    let mut out = FuturesUnordered::new();
    let mut lanes: Vec<usize> = (0..OUT_MAX).collect();
    let (mut pace, mut started) = (CallPacer::default(), [None::<CallStart>; OUT_MAX]);
    std::future::poll_fn(|cx| {
        queue.sender_waker.register(cx.waker());
        let mut answered = false;
        loop {
            while let Poll::Ready(Some(lane)) = out.poll_next_unpin(cx) {
                lanes.push(lane);
                answered = true;
                if let Some(start) = started[lane].take() {
                    pace.answered(start.at.elapsed());
                }
            }
            // There is one for each call that may be out. It is taken first: a batch without one would never be answered.
            let Some(lane) = lanes.pop() else { return Poll::<()>::Pending };
            let now = CallStart { connection_version: inner.connection_version(), at: Instant::now() };
            // What is out may be late to answer, or not answer at all: calls of another connection than the present one,
            // and all of them while breakers refuse.
            let others = || {
                started
                    .iter()
                    .flatten()
                    .any(|started_call| started_call.connection_version != now.connection_version)
            };
            let urgent =
                || answered || pace.is_due(now.at) || others() || !inner.breakers.states().all_closed();
            let batch = queue.lock().seal(out.len(), urgent);
            let Some(batch) = batch else {
                lanes.push(lane);
                return Poll::Pending;
            };
            started[lane] = Some(now);
            pace.sent(now.at);
            out.push(run_batch(batch, lane));
        }
    })
    .await;
}
