//! The queues of begins and commits that wait to be sent.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;

use crate::limiter::commands::RateLimitCheck;
use crate::redis::RedisError;
use crate::request_state::batching::caller_table::{BatchItem, CallerTable};
use crate::request_state::batching::reply_sizes::ReplySizes;
use crate::request_state::begin::batch::BeginEntry;
use crate::request_state::begin::{BeginReply, BeginRequest};
use crate::request_state::commit_batch::CommitEntry;
use crate::sessions::commit::CommitOutcome;

/// The entries of one worker that wait to be sent or are under way; each `T` is answered by an `A`.
pub(in crate::request_state) struct BatchQueue<T, A> {
    slots: Mutex<CallerTable<T, A>>,
    pub(super) sender_waker: AtomicWaker,
    /// Sizes of recent replies; not used for commits, whose replies are small.
    pub(super) sizes: ReplySizes,
}

/// The entries of one call.
pub(super) type SealedEntries<T> = Vec<BatchItem<T>>;

impl<T, A> BatchQueue<T, A> {
    pub(in crate::request_state) const fn new() -> Self {
        Self {
            slots: Mutex::new(CallerTable::new()),
            sender_waker: AtomicWaker::new(),
            sizes: ReplySizes::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, CallerTable<T, A>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an entry of about this many bytes.
    pub(super) fn enqueue(&self, entry: T, bytes: usize) -> ReplyFuture<'_, T, A> {
        let (at, first) = self.lock().push(entry, bytes);
        if first {
            self.sender_waker.wake();
        }
        ReplyFuture { queue: self, at: Some(at) }
    }
}

/// Waits for a reply; dropping it earlier abandons the entry.
pub(super) struct ReplyFuture<'a, T, A> {
    queue: &'a BatchQueue<T, A>,
    /// The slot, until the reply was taken from it.
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

/// The queue of begins.
pub(in crate::request_state) type BeginQueue = BatchQueue<QueuedBegin, Result<BeginReply, RedisError>>;

/// One request's begin.
pub(in crate::request_state) struct QueuedBegin {
    pub(super) entry: BeginEntry,
    /// Whether it changes anything if it is granted.
    pub(super) changes: bool,
    /// Keys of concurrency limits and the token of the permits in them; most requests have none.
    pub(super) permits: Option<Box<RequestedPermits>>,
}

pub(super) struct RequestedPermits {
    pub(super) keys: Vec<String>,
    pub(super) name: String,
}

impl QueuedBegin {
    pub(super) fn new(request: &BeginRequest<'_>) -> Self {
        let permits = request.limits.iter().any(RateLimitCheck::needs_permit).then(|| {
            let permits = request.limits.iter().filter(|limit| limit.needs_permit());
            let keys = permits.map(|limit| limit.key.clone()).collect();
            Box::new(RequestedPermits { keys, name: request.token.to_owned() })
        });
        Self { entry: BeginEntry::new(request), changes: request.changes(), permits }
    }
}

/// The queue of commits.
pub(in crate::request_state) type CommitQueue = BatchQueue<CommitEntry, Result<CommitOutcome, RedisError>>;

/// Most bytes of a commit that shares a call: small commits would wait until a large one has been read and written.
pub(in crate::request_state) const MAX_SHARED_COMMIT_BYTES: usize = 8 * 1024;

/// Makes an error that all entries share the error of the call, so that the breakers see it.
pub(super) fn lift_common_rejection<R: PartialEq>(
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
