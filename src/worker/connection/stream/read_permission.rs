//! When a connection's next request may be read.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use crate::scoreboard::refusal_reason::RefusalReason;
use crate::sys::fd;
use crate::worker::admission::{AdmissionOutcome, ArrivalOutcome};
use crate::worker::connection::http2_frames::PREFACE;
use crate::worker::connection::stream::TrackedStream;

/// Under what terms a connection is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadPermission {
    /// Nothing of it has to wait.
    Ungated,
    /// The gate is open: what begins now is counted.
    GateOpen,
    /// It waited and was let in.
    Admitted,
    /// It was refused.
    Refused,
}

impl TrackedStream {
    /// Waits until the next request may be read; it stays in the kernel until then.
    ///
    /// Returns whether it was let in from the queue, or found the gate open; none: it was refused.
    pub(super) fn poll_read_permission(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<ReadPermission>> {
        let Some(gate) = &self.gate else { return Poll::Ready(Ok(ReadPermission::Ungated)) };
        let outcome = match &self.waiter {
            Some(waiter) => {
                let outcome = ready!(waiter.poll(context));
                self.waiter = None;
                self.guard.leave_queue();
                outcome
            }
            None if gate.is_open() => return Poll::Ready(Ok(ReadPermission::GateOpen)),
            None => {
                // Only what has something to read waits.
                ready!(self.stream.poll_read_ready(context))?;
                match gate.enqueue() {
                    ArrivalOutcome::Refused => AdmissionOutcome::Refused,
                    ArrivalOutcome::Queued(waiter) => {
                        self.guard.enter_queue();
                        let permission = waiter.poll(context).map(|_| Ok(ReadPermission::Admitted));
                        self.waiter = Some(waiter);
                        return permission;
                    }
                }
            }
        };
        match outcome {
            AdmissionOutcome::Admitted => {
                self.guard.state.set_admitted();
                Poll::Ready(Ok(ReadPermission::Admitted))
            }
            AdmissionOutcome::Refused if self.refuse(RefusalReason::Overload) => {
                Poll::Ready(Ok(ReadPermission::Refused))
            }
            AdmissionOutcome::Refused => Poll::Ready(Ok(ReadPermission::GateOpen)),
        }
    }

    /// Answers the request that waits unread, and says that nothing else will come; whether there was one.
    ///
    /// Not what is no request: an end, an error, or the beginning of HTTP/2, where hyper has to speak first.
    fn refuse(&mut self, reason: RefusalReason) -> bool {
        let started = Instant::now();
        let mut bytes = [0; PREFACE.len()];
        let request = match fd::receive_copy_now(&self.stream, &mut bytes) {
            Ok(count @ 1..) => &bytes[..count],
            Ok(0) | Err(_) => return false,
        };
        if self.guard.state.is_new() && PREFACE.starts_with(request) {
            return false;
        }
        self.send_refusal(reason, request.starts_with(b"HEAD "));
        if let Some(gate) = &self.gate {
            gate.record_refusal(started.elapsed());
        }
        true
    }

    /// A request begins that found the gate open.
    pub(super) fn start_request(&self) {
        if let Some(gate) = &self.gate {
            gate.start_request();
            self.guard.state.set_admitted();
        }
    }

    /// It does not wait for its turn any more.
    pub(super) fn cancel_waiting(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            waiter.cancel();
            self.guard.leave_queue();
        }
    }
}
