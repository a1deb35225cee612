//! One request's place in the queue.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicUsize};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;

const WAITING: u8 = 0;
const ADMITTED: u8 = 1;
const REFUSED: u8 = 2;
const CANCELLED: u8 = 3;

/// A request's place in the queue; a task that gives it up calls [`Self::cancel`].
#[derive(Debug)]
pub(in crate::worker) struct AdmissionWaiter {
    state: AtomicU8,
    waker: AtomicWaker,
    arrived_at: Duration,
    /// How many wait, over the whole gate.
    waiting: Arc<AtomicUsize>,
}

/// What became of a request that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum AdmissionOutcome {
    /// It may begin.
    Admitted,
    /// It waited too long.
    Refused,
}

impl AdmissionWaiter {
    pub(super) fn new(waiting: Arc<AtomicUsize>, arrived_at: Duration) -> Self {
        Self { state: AtomicU8::new(WAITING), waker: AtomicWaker::new(), arrived_at, waiting }
    }

    /// How long it has waited.
    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.arrived_at)
    }

    /// Lets it in; whether it was still there.
    pub(super) fn admit(&self) -> bool {
        self.resolve(ADMITTED)
    }

    /// Refuses it; whether it was still there.
    pub(super) fn refuse(&self) -> bool {
        self.resolve(REFUSED)
    }

    fn resolve(&self, outcome: u8) -> bool {
        let waits = self.state.load(Relaxed) == WAITING;
        if waits {
            self.state.store(outcome, Relaxed);
            self.decrement_waiting();
            self.waker.wake();
        }
        waits
    }

    /// What was decided; the task is woken when it is.
    pub(in crate::worker) fn poll(&self, context: &Context<'_>) -> Poll<AdmissionOutcome> {
        match self.state.load(Relaxed) {
            ADMITTED => Poll::Ready(AdmissionOutcome::Admitted),
            REFUSED => Poll::Ready(AdmissionOutcome::Refused),
            _ => {
                self.waker.register(context.waker());
                Poll::Pending
            }
        }
    }

    /// It does not wait any more: its connection ended, or must not be held up.
    pub(in crate::worker) fn cancel(&self) {
        if self.state.load(Relaxed) == WAITING {
            self.state.store(CANCELLED, Relaxed);
            self.decrement_waiting();
        }
    }

    fn decrement_waiting(&self) {
        self.waiting.store(self.waiting.load(Relaxed).saturating_sub(1), Relaxed);
    }
}
