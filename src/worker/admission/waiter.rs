//! One request's place in the queue.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;

use crate::worker::admission::{AdmissionGate, ArrivalOutcome};

const WAITING: u8 = 0;
const ADMITTED: u8 = 1;
const REFUSED: u8 = 2;
const CANCELLED: u8 = 3;

/// A request's place in the queue; who gives it up says so with [`Ticket::give_up`].
#[derive(Debug)]
pub(in crate::worker) struct AdmissionWaiter {
    state: AtomicU8,
    waker: AtomicWaker,
    arrived_at: Duration,
    gate: Arc<AdmissionGate>,
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
    pub(super) fn new(gate: Arc<AdmissionGate>, arrived_at: Duration) -> Self {
        Self { state: AtomicU8::new(WAITING), waker: AtomicWaker::new(), arrived_at, gate }
    }

    /// Waits for a turn that cannot begin at once.
    ///
    /// # Cancel safety
    /// It leaves the queue when it is dropped.
    pub(in crate::worker) async fn wait_for_turn(gate: &Arc<AdmissionGate>) -> AdmissionOutcome {
        struct CancelGuard(Arc<AdmissionWaiter>);
        impl Drop for CancelGuard {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        match gate.enqueue() {
            ArrivalOutcome::Refused => AdmissionOutcome::Refused,
            ArrivalOutcome::Queued(waiter) => {
                let guard = CancelGuard(waiter);
                poll_fn(|context| guard.0.poll(context)).await
            }
        }
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
            self.gate.decrement_waiting();
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
            self.gate.decrement_waiting();
        }
    }
}
