//! When a connection's next request may be read.

use std::io;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Instant;

use crate::scoreboard::refusal::Refusal;
use crate::sys::fd;
use crate::worker::frames::PREFACE;
use crate::worker::gate::Arrival;
use crate::worker::gate::Verdict;
use crate::worker::stream::Watched;

/// Under what terms a connection is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing of it has to wait.
    Free,
    /// The gate is open: what begins now is counted.
    Open,
    /// It waited and was let in.
    Admitted,
    /// It was refused.
    Refused,
}

impl Watched {
    /// Waits until the next request may be read; it stays in the kernel until then.
    ///
    /// Returns whether it was let in from the queue, or found the gate open; none: it was refused.
    pub(super) fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Turn>> {
        let Some(gate) = &self.gate else { return Poll::Ready(Ok(Turn::Free)) };
        let verdict = match &self.ticket {
            Some(ticket) => {
                let verdict = ready!(ticket.poll(context));
                self.ticket = None;
                self.entry.resume();
                verdict
            }
            None if gate.is_open() => return Poll::Ready(Ok(Turn::Open)),
            None => {
                // Only what has something to read waits.
                ready!(self.stream.poll_read_ready(context))?;
                match gate.arrive() {
                    Arrival::Refused => Verdict::Refused,
                    Arrival::Waits(ticket) => {
                        self.entry.wait();
                        let waits = ticket.poll(context).map(|_| Ok(Turn::Admitted));
                        self.ticket = Some(ticket);
                        return waits;
                    }
                }
            }
        };
        match verdict {
            Verdict::Admitted => {
                self.entry.connection.admit();
                Poll::Ready(Ok(Turn::Admitted))
            }
            Verdict::Refused if self.refuse(Refusal::Overload) => Poll::Ready(Ok(Turn::Refused)),
            Verdict::Refused => Poll::Ready(Ok(Turn::Open)),
        }
    }

    /// Answers the request that waits unread, and says that nothing else will come; whether there was one.
    ///
    /// Not what is no request: an end, an error, or the beginning of HTTP/2, where hyper has to speak first.
    fn refuse(&mut self, why: Refusal) -> bool {
        let begun = Instant::now();
        let mut bytes = [0; PREFACE.len()];
        let request = match fd::peek_now(&self.stream, &mut bytes) {
            Ok(count @ 1..) => &bytes[..count],
            Ok(0) | Err(_) => return false,
        };
        if self.entry.connection.is_new() && PREFACE.starts_with(request) {
            return false;
        }
        self.send_refusal(why, request.starts_with(b"HEAD "));
        if let Some(gate) = &self.gate {
            gate.refused(begun.elapsed());
        }
        true
    }

    /// A request begins that found the gate open.
    pub(super) fn begin(&self) {
        if let Some(gate) = &self.gate {
            gate.enter();
            self.entry.connection.admit();
        }
    }

    /// It does not wait for its turn any more.
    pub(super) fn give_up_waiting(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            ticket.give_up();
            self.entry.resume();
        }
    }
}
