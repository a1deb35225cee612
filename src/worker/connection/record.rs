//! One open connection as the worker sees it: its state, what else is known of it, and the command to it.
//!
//! The worker's one thread changes nearly all of it, so that loads and stores need no order and no locked instruction. The
//! state alone may be changed by another thread that drops a body.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use crate::http::KeepAliveTrigger;
use crate::worker::connection::packed_state::PackedState;
use crate::worker::connection::read_pace::ReadPace;
use crate::worker::connection::state::{
    ConnectionEvent, ConnectionState, ConnectionTimeouts, RequestCounts, Tick,
};

/// What a connection is commanded to do; a later one in this list overrules an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum ConnectionCommand {
    /// Go on.
    Continue,
    /// Close if the deadline has still passed: a request may have come while the command was on its way.
    CloseIfExpired,
    /// Refuse the header that is being read, if it still is: unfinished ones take too much memory.
    RefuseHeader,
    /// Close when no request is under way any more.
    CloseWhenIdle,
    /// Close now.
    Abort,
}

/// Bytes of a header that are not counted: every connection that has ever sent something has a buffer of this size.
pub(super) const SMALL_HEADER: usize = 8 << 10;

/// One of the two sides from which an upgraded connection is used, which may be two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpgradedSide {
    /// The task that reads.
    Reader,
    /// The task that writes.
    Writer,
}

/// One connection.
#[derive(Debug)]
pub(in crate::worker) struct Connection {
    /// Its client, as connections are counted; none for a trusted proxy.
    pub(super) client: Option<IpAddr>,
    /// Its place in the order in which connections came.
    pub(super) number: u64,
    /// Its [`ConnectionState`], packed.
    state: AtomicU64,
    /// Whether no request has come yet.
    pub(super) fresh: AtomicBool,
    /// Whether it speaks HTTP/2, where a frame is not the beginning of a header.
    pub(super) http2: AtomicBool,
    /// Responses that HTTP/2 holds back because the client gives no room for them.
    pub(super) blocked_bodies: AtomicU32,
    /// Bodies of requests of which a handler waits for more than has come.
    pub(super) starved_bodies: AtomicU32,
    /// What its client owes of what it is sent (TCP).
    pub(super) send_pace: ReadPace,
    /// What its client owes of the bodies it is sent (HTTP/2); the answer to a ping does not count.
    pub(super) body_pace: ReadPace,
    /// Whether something of a request was left unread, so that the connection can only end.
    pub(super) unread: AtomicBool,
    /// Whether its client has ended its side, and waits for answers.
    half_closed: AtomicBool,
    /// Streams under way that can be made to give a sign of life.
    signs_of_life: Mutex<Vec<KeepAliveTrigger>>,
    /// Bytes that have come of a header which is not complete.
    pub(super) header_bytes: AtomicUsize,
    command: AtomicU8,
    command_sent: Notify,
    /// Whether its next request was let in by the gate while it was still unread.
    admitted: AtomicBool,
    /// Whether a read looks into the kernel where the reactor knows of nothing, because nothing that has come may be left
    /// unread.
    past_reactor: AtomicBool,
    /// The tasks of an upgraded connection, to be woken by commands: hyper does not wait for those any more.
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Connection {
    pub(super) fn new(number: u64, client: Option<IpAddr>) -> Self {
        Self {
            client,
            number,
            state: AtomicU64::new(PackedState::pack(ConnectionState::AwaitingPermit).word()),
            fresh: AtomicBool::new(true),
            http2: AtomicBool::new(false),
            blocked_bodies: AtomicU32::new(0),
            starved_bodies: AtomicU32::new(0),
            send_pace: ReadPace::default(),
            body_pace: ReadPace::default(),
            unread: AtomicBool::new(false),
            half_closed: AtomicBool::new(false),
            signs_of_life: Mutex::default(),
            header_bytes: AtomicUsize::new(0),
            command: AtomicU8::new(ConnectionCommand::Continue as u8),
            command_sent: Notify::new(),
            admitted: AtomicBool::new(false),
            past_reactor: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
        }
    }

    /// What it does now.
    pub(super) fn state(&self) -> ConnectionState {
        self.packed_state().unpack()
    }

    fn packed_state(&self) -> PackedState {
        PackedState::from_word(self.state.load(Relaxed))
    }

    /// Something has happened to it; the state after that.
    ///
    /// The response's body may be dropped on another thread, at the same time as an event here: a plain store would lose
    /// one of the two, and with it a deadline or a request under way.
    // Inlined where the event is known, so that the events of a plain request cost no call.
    #[inline]
    pub(super) fn apply(
        &self,
        event: ConnectionEvent,
        now: Tick,
        timeouts: &ConnectionTimeouts,
    ) -> PackedState {
        let state = self.packed_state();
        if let Some(next) = state.on_plain_request(event, now, timeouts)
            && self.replace_state(state, next).is_ok()
        {
            return next;
        }
        self.apply_any(event, now, timeouts)
    }

    #[inline(never)]
    fn apply_any(&self, event: ConnectionEvent, now: Tick, timeouts: &ConnectionTimeouts) -> PackedState {
        let mut state = self.packed_state();
        loop {
            let next = state.on(event, now, timeouts);
            match self.replace_state(state, next) {
                Ok(_) => return next,
                Err(present) => state = PackedState::from_word(present),
            }
        }
    }

    fn replace_state(&self, state: PackedState, next: PackedState) -> Result<u64, u64> {
        self.state.compare_exchange(state.word(), next.word(), Relaxed, Relaxed)
    }

    /// From now on reads look into the kernel, or no more.
    pub(in crate::worker) fn set_read_past_reactor(&self, enabled: bool) {
        self.past_reactor.store(enabled, Relaxed);
    }

    /// Whether reads look into the kernel.
    pub(super) fn reads_past_reactor(&self) -> bool {
        self.past_reactor.load(Relaxed)
    }

    /// Waits for the next command.
    ///
    /// # Cancel safety
    /// A command is kept until it is read.
    pub(in crate::worker) async fn next_command(&self) -> ConnectionCommand {
        self.command_sent.notified().await;
        match self.command.load(Relaxed) {
            0 => ConnectionCommand::Continue,
            1 => ConnectionCommand::CloseIfExpired,
            2 => ConnectionCommand::RefuseHeader,
            3 => ConnectionCommand::CloseWhenIdle,
            _ => ConnectionCommand::Abort,
        }
    }

    pub(super) fn send_command(&self, command: ConnectionCommand) {
        self.command.fetch_max(command as u8, Relaxed);
        self.command_sent.notify_one();
        if self.is_upgraded() {
            self.reader.wake();
            self.writer.wake();
        }
    }

    /// Takes a command back; a stronger one that came meanwhile stays.
    pub(super) fn withdraw_command(&self, command: ConnectionCommand) {
        let _ =
            self.command.compare_exchange(command as u8, ConnectionCommand::Continue as u8, Relaxed, Relaxed);
    }

    /// Whether this very command is in force.
    pub(super) fn is_commanded(&self, command: ConnectionCommand) -> bool {
        self.command.load(Relaxed) == command as u8
    }

    /// Whether a command is in force that overrules this one.
    pub(super) fn is_overruled(&self, command: ConnectionCommand) -> bool {
        self.command.load(Relaxed) > command as u8
    }

    /// The task that uses one side of an upgraded connection is woken by commands from now on.
    pub(super) fn register_waker(&self, side: UpgradedSide, waker: &std::task::Waker) {
        match side {
            UpgradedSide::Reader => self.reader.register(waker),
            UpgradedSide::Writer => self.writer.register(waker),
        }
    }

    /// Whether a request that it reads next would be one that begins, and may be kept waiting.
    ///
    /// What gives permits back is not held up: a connection that is to end, and the rest of a request.
    pub(super) fn may_wait(&self) -> bool {
        let state = self.packed_state();
        state.waits_for_request()
            && !state.is_reading_header()
            && !self.is_http2()
            && !self.reads_past_reactor()
            && !self.is_overruled(ConnectionCommand::RefuseHeader)
    }

    /// Whether the next bytes may be those of a request that begins.
    pub(super) fn waits_for_request(&self) -> bool {
        self.packed_state().waits_for_request()
    }

    /// Requests under way.
    pub(super) fn requests(&self) -> RequestCounts {
        self.packed_state().requests()
    }

    /// Whether a request is under way, or the rest of its body.
    pub(super) fn is_busy(&self) -> bool {
        !self.requests().is_none()
    }

    /// Whether all of a request has come that is not answered yet.
    pub(super) fn awaits_answer(&self) -> bool {
        let state = self.packed_state();
        let requests = state.requests();
        requests.active > 0 && requests.receiving == 0 && !state.is_upgraded()
    }

    /// Whether a request's body is still to come.
    pub(super) fn is_receiving(&self) -> bool {
        self.requests().receiving > 0
    }

    /// Whether bodies of requests are still to come, and of each its handler waits for more than has come.
    pub(super) fn is_body_starved(&self) -> bool {
        let receiving = self.requests().receiving;
        receiving > 0 && self.starved_bodies.load(Relaxed) == u32::from(receiving)
    }

    /// Whether something of a request was left unread, so that its client may still be sending it.
    pub(super) fn has_unread_input(&self) -> bool {
        self.unread.load(Relaxed) || self.is_reading_header()
    }

    /// Whether a part of a header has come.
    pub(super) fn is_reading_header(&self) -> bool {
        self.packed_state().is_reading_header()
    }

    /// Its client has ended its side: what is sent to it now and then shows whether it is still there.
    pub(super) fn request_signs_of_life(&self) {
        self.half_closed.store(true, Relaxed);
        self.lock_signs_of_life().iter().for_each(KeepAliveTrigger::send_now);
    }

    /// A stream is under way that can be made to give a sign of life.
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
    pub(in crate::worker) fn take_admitted(&self) -> bool {
        let admitted = self.admitted.load(Relaxed);
        if admitted {
            self.admitted.store(false, Relaxed);
        }
        admitted
    }

    /// Whether it has left HTTP.
    pub(super) fn is_upgraded(&self) -> bool {
        self.packed_state().is_upgraded()
    }

    /// Whether it speaks HTTP/2.
    pub(in crate::worker) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    /// Whether the header that is being read is to be refused.
    pub(in crate::worker) fn is_header_refused(&self) -> bool {
        self.is_commanded(ConnectionCommand::RefuseHeader) && self.is_reading_header()
    }
}
