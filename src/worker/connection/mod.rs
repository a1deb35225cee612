//! One open connection as the worker sees it: what it is doing, since when, and how to end it.
//!
//! Deadlines cost nothing per request: a connection only stores the tick in which it last changed, and one sweep a
//! tick ends those that overstayed. hyper's own header timer would allocate and arm a timer for every request, and
//! would count the idle time between two requests as slow header.
//!
//! There are three clocks, so that nothing a client does sets back another one than that it is about: since when it
//! pauses (idle, or within a header), what it owes of what it is sent, and what its HTTP/2 control frames cost.

mod eviction;
mod guard;
pub(in crate::worker) mod half_closed;
pub(in crate::worker) mod http2_frames;
pub(in crate::worker) mod in_flight;
pub(in crate::worker) mod incoming_body;
pub(in crate::worker) mod linger;
pub(in crate::worker) mod pending_response;
mod read_pace;
pub(in crate::worker) mod refusals;
pub(in crate::worker) mod stream;
mod table;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::task::AtomicWaker;
pub(super) use guard::ConnectionGuard;
use read_pace::ReadPace;
pub(super) use table::ConnectionTable;
use tokio::sync::Notify;

use crate::http::KeepAliveTrigger;

/// Length of a tick; deadlines are met within one.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// What a connection is told; a later one in this list overrules an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionCommand {
    /// Nothing: go on.
    Continue,
    /// End if you still overstay: a request may have come while the order was on its way.
    CloseIfExpired,
    /// Refuse the header that is under way, if it still is: unfinished ones take too much memory.
    RefuseHeader,
    /// End when the request under way is answered, at once if there is none.
    CloseWhenIdle,
    /// End now.
    Abort,
}

/// How long a connection may do what it does, and how much of it there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// From a header's first byte (or the accept) to its end.
    pub(super) header: Duration,
    /// Without a request under way, or without the client reading what it is sent.
    pub(super) idle: Duration,
    /// Bytes that all unfinished headers may take, beyond the first [`SMALL_HEADER`] of each.
    pub(super) header_memory: usize,
    /// Connections that one client may have.
    pub(super) per_client: usize,
}

/// Bytes of a header that are not counted: every connection that has ever sent something has a buffer of this size.
const SMALL_HEADER: usize = 8 << 10;

/// What a connection does while no request is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionPhase {
    /// It waits for its turn (it was accepted, or its next request has come), for which it cannot be blamed.
    AwaitingPermit,
    /// The connection's first header is waited for.
    AwaitingHeader,
    /// A part of a header has come.
    ReadingHeader,
    /// Nothing has come since the last request.
    Idle,
    /// It speaks another protocol now, whose pauses are none of ours.
    Upgraded,
    /// Our side has ended; its client is to read that, and to close it, for as long as [`super::connection::linger`] lets it.
    Lingering,
}

/// One connection's state.
#[derive(Debug, Default)]
pub(super) struct ConnectionState {
    /// Its client, as connections are counted; none for a trusted proxy.
    client: Option<IpAddr>,
    /// Its place in the order in which connections came.
    number: u64,
    /// Requests being answered; more than one only in HTTP/2.
    active: AtomicU32,
    /// Of these, responses that HTTP/2 holds back because the client gives no room for them.
    flow_blocked: AtomicU32,
    /// Requests whose bodies are still to come; one may go on after its answer.
    receiving: AtomicU32,
    /// Of these, bodies of which a handler waits for more than has come.
    body_starved: AtomicU32,
    /// Whether something of a request was left unread, so that the connection can only end.
    unread: AtomicBool,
    /// Whether its client has ended its side, and waits for answers.
    half_closed: AtomicBool,
    /// Streams under way that can be told to give a sign of life.
    signs_of_life: Mutex<Vec<KeepAliveTrigger>>,
    /// What its client owes of those; what else goes over the connection, as the answer to a ping, does not count.
    blocked_pace: ReadPace,
    /// What it does while no request is under way, as [`Pause`].
    phase: AtomicU8,
    /// Tick in which that last changed.
    phase_since: AtomicU64,
    /// Whether no request has come yet.
    fresh: AtomicBool,
    /// Whether its client has stopped reading.
    stalled: AtomicBool,
    /// What its client owes of what it is sent.
    pace: ReadPace,
    /// Whether it speaks HTTP/2, where a frame is not the beginning of a header.
    http2: AtomicBool,
    /// Bytes that have come of a header which is not complete.
    header_bytes: AtomicUsize,
    command: AtomicU8,
    command_sent: Notify,
    /// Whether its next request was let in by the gate while it was still unread.
    admitted: AtomicBool,
    /// Whether reading it must not trust the reactor, because nothing that has come may be left unread.
    past_reactor: AtomicBool,
    /// Who reads and who writes it since it was upgraded, to be woken by orders: nobody waits for those any more.
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// One of the two sides from which an upgraded connection is used, which may be two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpgradedSide {
    /// Who waits for bytes of the client's.
    Reader,
    /// Who waits until the client takes some.
    Writer,
}

impl ConnectionState {
    fn new(now: u64, number: u64, client: Option<IpAddr>) -> Self {
        // Zeros are [`Pause::Waiting`] and [`Order::Serve`].
        Self {
            client,
            number,
            phase_since: AtomicU64::new(now),
            fresh: AtomicBool::new(true),
            ..Self::default()
        }
    }

    /// Whether whatever the kernel has is to be read from now on.
    pub(super) fn set_read_past_reactor(&self, enabled: bool) {
        self.past_reactor.store(enabled, Relaxed);
    }

    /// Whether whatever the kernel has is to be read.
    pub(super) fn reads_past_reactor(&self) -> bool {
        self.past_reactor.load(Relaxed)
    }

    /// Waits for the next order.
    ///
    /// # Cancel safety
    /// An order is kept until it is read.
    pub(super) async fn next_command(&self) -> ConnectionCommand {
        self.command_sent.notified().await;
        match self.command.load(Relaxed) {
            0 => ConnectionCommand::Continue,
            1 => ConnectionCommand::CloseIfExpired,
            2 => ConnectionCommand::RefuseHeader,
            3 => ConnectionCommand::CloseWhenIdle,
            _ => ConnectionCommand::Abort,
        }
    }

    fn send_command(&self, command: ConnectionCommand) {
        self.command.fetch_max(command as u8, Relaxed);
        self.command_sent.notify_one();
        if self.is_upgraded() {
            self.reader.wake();
            self.writer.wake();
        }
    }

    /// Takes an order back; a stronger one that came meanwhile stays.
    fn withdraw_command(&self, command: ConnectionCommand) {
        let _ =
            self.command.compare_exchange(command as u8, ConnectionCommand::Continue as u8, Relaxed, Relaxed);
    }

    fn is_in_phase(&self, phase: ConnectionPhase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    /// Whether a request that it reads next would be one that begins, and may be kept waiting.
    ///
    /// Whatever gives places back is not held up: a connection that is to end, and the rest of a request.
    pub(super) fn may_wait(&self) -> bool {
        (self.is_in_phase(ConnectionPhase::Idle)
            || self.is_in_phase(ConnectionPhase::AwaitingHeader)
            || self.is_in_phase(ConnectionPhase::AwaitingPermit))
            && !self.is_busy()
            && !self.is_http2()
            && !self.reads_past_reactor()
            && self.command.load(Relaxed) < ConnectionCommand::CloseWhenIdle as u8
    }

    /// Whether a request is under way, or the rest of its body.
    pub(super) fn is_busy(&self) -> bool {
        self.active.load(Relaxed) > 0 || self.receiving.load(Relaxed) > 0
    }

    /// Whether all of a request has come that is not answered yet.
    pub(super) fn awaits_answer(&self) -> bool {
        self.active.load(Relaxed) > 0 && self.receiving.load(Relaxed) == 0 && !self.is_upgraded()
    }

    /// Whether a request's body is still to come.
    pub(super) fn is_receiving(&self) -> bool {
        self.receiving.load(Relaxed) > 0
    }

    /// Whether bodies of requests are still to come, and of each its handler waits for more than has come.
    pub(super) fn is_body_starved(&self) -> bool {
        self.is_receiving() && self.body_starved.load(Relaxed) == self.receiving.load(Relaxed)
    }

    /// Whether something of a request was left unread, so that its client may still be sending it.
    pub(super) fn has_unread_input(&self) -> bool {
        self.unread.load(Relaxed) || self.is_in_phase(ConnectionPhase::ReadingHeader)
    }

    /// Its client has ended its side: whether it is still there is found out by what is sent to it, now and again.
    pub(super) fn request_signs_of_life(&self) {
        self.half_closed.store(true, Relaxed);
        self.lock_signs_of_life().iter().for_each(KeepAliveTrigger::send_now);
    }

    /// A stream is under way that can be told to give a sign of life.
    pub(super) fn add_sign_of_life(&self, sign: KeepAliveTrigger) {
        if self.half_closed.load(Relaxed) {
            sign.send_now();
        }
        let mut signs = self.lock_signs_of_life();
        signs.retain(KeepAliveTrigger::is_stream_open);
        signs.push(sign);
    }

    fn lock_signs_of_life(&self) -> MutexGuard<'_, Vec<KeepAliveTrigger>> {
        self.signs_of_life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no request has come yet: it may turn out to speak HTTP/2.
    pub(super) fn is_new(&self) -> bool {
        self.fresh.load(Relaxed)
    }

    /// Its next request has been let in.
    pub(super) fn set_admitted(&self) {
        self.admitted.store(true, Relaxed);
    }

    /// Whether a request that begins was let in before it was read; it is so only once.
    pub(super) fn take_admitted(&self) -> bool {
        let admitted = self.admitted.load(Relaxed);
        if admitted {
            self.admitted.store(false, Relaxed);
        }
        admitted
    }

    /// Whether it has left HTTP.
    pub(super) fn is_upgraded(&self) -> bool {
        self.is_in_phase(ConnectionPhase::Upgraded)
    }

    /// Whether it speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    /// Whether its header is to be refused that is under way.
    pub(super) fn is_header_refused(&self) -> bool {
        self.command.load(Relaxed) == ConnectionCommand::RefuseHeader as u8
            && self.is_in_phase(ConnectionPhase::ReadingHeader)
    }
}
