//! A client that has ended its side of the connection, and still gets its answers.
//!
//! A client that only sends no more looks the same as one that has closed, until something
//! is sent to it: the kernel of one that is gone answers that with a reset. So a stream of events sends something every
//! [`SIGN_INTERVAL`] ([`crate::http::KeepAliveTrigger`]), and no client is waited for longer than [`QUIET_TIMEOUT`]
//! without a byte going out.

use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::sys::fd;
use crate::sys::fd::Interest;
use crate::worker::connection::guard::ConnectionGuard;
use crate::worker::connection::state::TICK;

/// How long a handler may take for a client that has ended its side, and a response may pause.
const QUIET_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a stream gives a sign of life.
const SIGN_INTERVAL: Duration = Duration::from_secs(1);

/// Polls whether the client is gone: no read reports that any more.
#[derive(Debug)]
pub(in crate::worker) struct HalfClosed {
    checks: Interval,
    /// Tick of the last byte that was sent.
    sent_at: u64,
    /// Tick in which an answer was last awaited.
    awaited_at: u64,
    /// Tick in which streams were last triggered; none yet.
    signed_at: Option<u64>,
}

impl HalfClosed {
    pub(in crate::worker) fn new(tick: u64) -> Self {
        let mut checks = interval(TICK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { checks, sent_at: tick, awaited_at: tick, signed_at: None }
    }

    /// Bytes went to the client.
    pub(in crate::worker) fn record_sent(&mut self, tick: u64) {
        self.sent_at = tick;
    }

    /// It waits for an answer.
    pub(in crate::worker) fn record_awaiting(&mut self, tick: u64) {
        self.awaited_at = tick;
    }

    /// Whether no answer is awaited and nothing was sent since the last look.
    pub(in crate::worker) fn is_quiet(&self, tick: u64) -> bool {
        tick > self.sent_at.max(self.awaited_at) + 1
    }

    /// Waits until the client is gone, or has to be taken for gone.
    pub(in crate::worker) fn poll_gone(
        &mut self,
        stream: &TcpStream,
        guard: &ConnectionGuard,
        context: &mut Context<'_>,
    ) -> Poll<io::Error> {
        loop {
            ready!(self.checks.poll_tick(context));
            let tick = guard.tick();
            let found = fd::poll(&[(stream.as_fd(), Interest::Nothing)], Some(Duration::ZERO));
            match found {
                Err(error) => return Poll::Ready(error),
                Ok(found) if found.iter().any(|ready| ready.gone) => {
                    return Poll::Ready(io::ErrorKind::ConnectionReset.into());
                }
                Ok(_) if has_elapsed(QUIET_TIMEOUT, self.sent_at, tick) => {
                    return Poll::Ready(io::ErrorKind::TimedOut.into());
                }
                Ok(_) => {}
            }
            if self.signed_at.is_none_or(|signed| has_elapsed(SIGN_INTERVAL, signed, tick)) {
                self.signed_at = Some(tick);
                guard.connection.request_signs_of_life();
            }
        }
    }
}

fn has_elapsed(time: Duration, since: u64, tick: u64) -> bool {
    u128::from(tick.saturating_sub(since)) * TICK.as_millis() > time.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_minute_without_a_byte_is_too_long() {
        assert!(
            !has_elapsed(QUIET_TIMEOUT, 7, 7 + 300)
                && has_elapsed(QUIET_TIMEOUT, 7, 7 + 301)
                && !has_elapsed(QUIET_TIMEOUT, 7, 0)
        );
    }
}
