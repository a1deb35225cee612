//! One request's place in the queue.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use crate::worker::gate::Arrival;
use crate::worker::gate::Gate;

const WAITS: u8 = 0;
const ADMITTED: u8 = 1;
const REFUSED: u8 = 2;
const GONE: u8 = 3;

/// A request's place in the queue; who gives it up says so with [`Ticket::give_up`].
#[derive(Debug)]
pub(in crate::worker) struct Ticket {
    state: AtomicU8,
    waker: AtomicWaker,
    came: Duration,
    gate: Arc<Gate>,
}

/// What became of a request that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Verdict {
    /// It may begin.
    Admitted,
    /// It waited too long.
    Refused,
}

impl Ticket {
    pub(super) fn new(gate: Arc<Gate>, came: Duration) -> Self {
        Self { state: AtomicU8::new(WAITS), waker: AtomicWaker::new(), came, gate }
    }

    /// Waits for a turn that cannot begin at once.
    ///
    /// # Cancel safety
    /// It leaves the queue when it is dropped.
    pub(in crate::worker) async fn turn(gate: &Arc<Gate>) -> Verdict {
        struct Held(Arc<Ticket>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.give_up();
            }
        }
        match gate.arrive() {
            Arrival::Refused => Verdict::Refused,
            Arrival::Waits(ticket) => {
                let held = Held(ticket);
                poll_fn(|context| held.0.poll(context)).await
            }
        }
    }

    /// How long it has waited.
    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.came)
    }

    /// Lets it in; whether it was still there.
    pub(super) fn admit(&self) -> bool {
        self.decide(ADMITTED)
    }

    /// Refuses it; whether it was still there.
    pub(super) fn refuse(&self) -> bool {
        self.decide(REFUSED)
    }

    fn decide(&self, verdict: u8) -> bool {
        let waits = self.state.load(Relaxed) == WAITS;
        if waits {
            self.state.store(verdict, Relaxed);
            self.gate.leave();
            self.waker.wake();
        }
        waits
    }

    /// What was decided; the task is woken when it is.
    pub(in crate::worker) fn poll(&self, context: &Context<'_>) -> Poll<Verdict> {
        match self.state.load(Relaxed) {
            ADMITTED => Poll::Ready(Verdict::Admitted),
            REFUSED => Poll::Ready(Verdict::Refused),
            _ => {
                self.waker.register(context.waker());
                Poll::Pending
            }
        }
    }

    /// It does not wait any more: its connection ended, or must not be held up.
    pub(in crate::worker) fn give_up(&self) {
        if self.state.load(Relaxed) == WAITS {
            self.state.store(GONE, Relaxed);
            self.gate.leave();
        }
    }
}
