//! A client that has ended its side of the connection, and is still to get what it asked for.
//!
//! From here a client that only says that it will send no more looks the same as one that has closed, until something
//! is sent to it: the kernel of one that is gone answers that with a reset. So a stream of events says something every
//! [`SIGN`] ([`crate::http::SignOfLife`]), and no client is waited for longer than [`QUIET`] without a byte going out.

use std::io;
use std::os::fd::AsFd;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;

use crate::sys::fd;
use crate::sys::fd::Interest;
use crate::worker::connection::Entry;
use crate::worker::connection::TICK;

/// How long a handler may take for a client that has ended its side, and a response may pause.
const QUIET: Duration = Duration::from_secs(30);

/// How often a stream gives a sign of life.
const SIGN: Duration = Duration::from_secs(1);

/// Looks again and again whether the client is gone: nothing that can be read tells that any more.
#[derive(Debug)]
pub(super) struct HalfClosed {
    looks: Interval,
    /// Tick of the last byte that was sent.
    sent: u64,
    /// Tick in which an answer was last awaited.
    awaited: u64,
    /// Tick in which streams were last asked for a sign; none yet.
    signed: Option<u64>,
}

impl HalfClosed {
    pub(super) fn new(tick: u64) -> Self {
        let mut looks = interval(TICK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { looks, sent: tick, awaited: tick, signed: None }
    }

    /// Bytes went to the client.
    pub(super) fn sent(&mut self, tick: u64) {
        self.sent = tick;
    }

    /// It waits for an answer.
    pub(super) fn awaits(&mut self, tick: u64) {
        self.awaited = tick;
    }

    /// Whether no answer is awaited and nothing was sent since the last look.
    pub(super) fn is_settled(&self, tick: u64) -> bool {
        tick > self.sent.max(self.awaited) + 1
    }

    /// Waits until the client is gone, or has to be taken for gone.
    pub(super) fn poll_gone(
        &mut self,
        stream: &TcpStream,
        entry: &Entry,
        context: &mut Context<'_>,
    ) -> Poll<io::Error> {
        loop {
            ready!(self.looks.poll_tick(context));
            let tick = entry.tick();
            let found = fd::wait(&[(stream.as_fd(), Interest::Nothing)], Some(Duration::ZERO));
            match found {
                Err(error) => return Poll::Ready(error),
                Ok(found) if found.iter().any(|ready| ready.gone) => {
                    return Poll::Ready(io::ErrorKind::ConnectionReset.into());
                }
                Ok(_) if has_passed(QUIET, self.sent, tick) => {
                    return Poll::Ready(io::ErrorKind::TimedOut.into());
                }
                Ok(_) => {}
            }
            if self.signed.is_none_or(|signed| has_passed(SIGN, signed, tick)) {
                self.signed = Some(tick);
                entry.connection.ask_for_signs();
            }
        }
    }
}

fn has_passed(time: Duration, since: u64, tick: u64) -> bool {
    u128::from(tick.saturating_sub(since)) * TICK.as_millis() > time.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_minute_without_a_byte_is_too_long() {
        assert!(!has_passed(QUIET, 7, 7 + 300) && has_passed(QUIET, 7, 7 + 301) && !has_passed(QUIET, 7, 0));
    }
}
