//! A connection's place among all, and what happens on it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::worker::connection::{
    ConnectionCommand, ConnectionPhase, ConnectionState, ConnectionTable, SMALL_HEADER, UpgradedSide,
};

/// A connection's place among all; leaves with its drop, and with it the connection leaves every book.
#[derive(Debug)]
pub(in crate::worker) struct ConnectionGuard {
    pub(in crate::worker) state: Arc<ConnectionState>,
    pub(super) table: Arc<ConnectionTable>,
}

impl ConnectionGuard {
    fn touch(&self) {
        self.state.phase_since.store(self.table.tick(), Relaxed);
    }

    fn set_phase(&self, phase: ConnectionPhase) {
        self.state.phase.store(phase as u8, Relaxed);
    }

    /// Its turn has come: from now on its first header is waited for.
    pub(in crate::worker) fn start_header_timeout(&self) {
        self.touch();
        self.set_phase(ConnectionPhase::AwaitingHeader);
    }

    /// A request has come and waits for its turn.
    pub(in crate::worker) fn enter_queue(&self) {
        self.set_phase(ConnectionPhase::AwaitingPermit);
    }

    /// Its turn has come.
    pub(in crate::worker) fn leave_queue(&self) {
        self.touch();
        self.set_phase(if self.state.is_new() {
            ConnectionPhase::AwaitingHeader
        } else {
            ConnectionPhase::Idle
        });
    }

    /// Whether some connections are to end with their answers.
    pub(in crate::worker) fn has_surplus(&self) -> bool {
        self.table.has_surplus()
    }

    /// Whether it ends with the answer that is about to be sent, so that its client's next one goes to another worker.
    pub(in crate::worker) fn take_surplus(&self, may_stay: impl FnOnce() -> bool) -> bool {
        self.table.take_surplus(may_stay)
    }

    /// One of its requests was refused.
    pub(in crate::worker) fn count_refused(&self, why: RefusalReason) {
        self.table.cell().count_refused(why);
    }

    /// Our side has ended, and its client is waited for until it closes.
    pub(in crate::worker) fn start_linger(&self) {
        self.finish_header();
        self.set_phase(ConnectionPhase::Lingering);
    }

    /// The body of a request is to come, until [`Entry::body_ended`].
    pub(in crate::worker) fn request_body_started(&self) {
        self.state.receiving.fetch_add(1, Relaxed);
    }

    /// A request's body has come, or nothing of it is read any more.
    pub(in crate::worker) fn request_body_finished(&self) {
        self.state.receiving.fetch_sub(1, Relaxed);
        if !self.state.is_busy() {
            self.touch();
        }
    }

    /// Whether a handler now waits for more of a request's body than has come; said only when that changes.
    pub(in crate::worker) fn set_body_starved(&self, starved: bool) {
        match starved {
            true => self.state.body_starved.fetch_add(1, Relaxed),
            false => self.state.body_starved.fetch_sub(1, Relaxed),
        };
    }

    /// Something of a request's body is left unread: the connection can only end.
    pub(in crate::worker) fn mark_unread(&self) {
        self.state.unread.store(true, Relaxed);
    }

    /// It is closed before its client wants that.
    pub(in crate::worker) fn count_closed(&self, why: ConnectionCloseReason) {
        self.table.cell().count_closed(why);
    }

    /// A request's header is complete; it is under way until [`Entry::answered`].
    pub(in crate::worker) fn request_started(&self, http2: bool) {
        let connection = &self.state;
        // The worker's own thread alone changes it: a locked instruction would be paid for by every request.
        connection.active.store(connection.active.load(Relaxed) + 1, Relaxed);
        self.set_phase(ConnectionPhase::Idle);
        connection.fresh.store(false, Relaxed);
        self.finish_header();
        if http2 {
            connection.http2.store(true, Relaxed);
        } else {
            connection.pace.reset();
        }
    }

    /// A request's response has been taken over for sending, or given up.
    pub(in crate::worker) fn response_taken(&self) {
        let active = self.state.active.load(Relaxed).saturating_sub(1);
        self.state.active.store(active, Relaxed);
        self.touch();
        if active == 0 {
            self.state.blocked_pace.reset();
            self.state.blocked_pace.start(self.table.tick());
        }
    }

    /// A response's body in HTTP/2 was asked for more, or there is one more or less; whether the client holds it up.
    pub(in crate::worker) fn set_body_blocked(&self, was_blocked: bool, is_blocked: bool) {
        let connection = &self.state;
        let tick = self.table.tick();
        if connection.is_flow_blocked() {
            connection.blocked_pace.record_read(tick, 0);
        }
        match (was_blocked, is_blocked) {
            (false, true) => _ = connection.flow_blocked.fetch_add(1, Relaxed),
            (true, false) => _ = connection.flow_blocked.fetch_sub(1, Relaxed),
            _ => {}
        }
        if connection.is_flow_blocked() {
            connection.blocked_pace.start(tick);
        }
    }

    /// So many bytes of bodies went to a client of HTTP/2.
    pub(in crate::worker) fn record_body_sent(&self, bytes: usize) {
        // hyper may have taken over all there is of a body long before the client has.
        if self.state.is_flow_blocked() || self.state.active.load(Relaxed) == 0 {
            self.state.blocked_pace.record_read(self.table.tick(), bytes);
        }
    }

    /// Now, in ticks.
    pub(in crate::worker) fn tick(&self) -> u64 {
        self.table.tick()
    }

    /// It leaves HTTP with the response to the request under way.
    pub(in crate::worker) fn set_upgraded(&self) {
        self.set_phase(ConnectionPhase::Upgraded);
    }

    /// Whether it was told to end now.
    pub(in crate::worker) fn is_aborted(&self) -> bool {
        self.state.command.load(Relaxed) == ConnectionCommand::Abort as u8
    }

    /// Whether an upgraded connection has to end: it was cut, or its client reads nothing of what is sent to it.
    ///
    /// If not, the waker is woken by the next order. The task that speaks on it finishes it.
    pub(in crate::worker) fn must_close(&self, side: UpgradedSide, waker: &Waker) -> bool {
        match side {
            UpgradedSide::Reader => self.state.reader.register(waker),
            UpgradedSide::Writer => self.state.writer.register(waker),
        }
        match self.state.command.load(Relaxed) {
            order if order == ConnectionCommand::Abort as u8 => true,
            order if order == ConnectionCommand::Continue as u8 => false,
            _ => self.check_expired().is_some(),
        }
    }

    /// Bytes came from the client: while no request is under way they begin a header, or go on with it.
    ///
    /// In HTTP/2 they are frames, which say nothing: what is idle there has no stream open.
    pub(in crate::worker) fn record_read(&self, bytes: usize) {
        let connection = &self.state;
        if connection.is_busy() || connection.is_upgraded() || connection.is_http2() {
            return;
        }
        // The time for a connection's first header runs from its start.
        if connection.is_in_phase(ConnectionPhase::Idle) {
            self.touch();
        }
        self.set_phase(ConnectionPhase::ReadingHeader);
        let before = connection.header_bytes.load(Relaxed);
        connection.header_bytes.store(before + bytes, Relaxed);
        if before + bytes > SMALL_HEADER {
            self.table.add_header_bytes(before + bytes - before.max(SMALL_HEADER));
        }
    }

    /// Nothing of a header is waited for any more.
    fn finish_header(&self) {
        let bytes = self.state.header_bytes.load(Relaxed);
        self.state.header_bytes.store(0, Relaxed);
        if bytes > SMALL_HEADER {
            self.table.remove_header_bytes(bytes - SMALL_HEADER);
        }
    }

    /// Whether a request has begun to come, and may still take its time.
    pub(in crate::worker) fn is_reading_header(&self) -> bool {
        self.state.is_in_phase(ConnectionPhase::ReadingHeader)
            && self.table.expiry_reason(&self.state).is_none()
    }

    /// Bytes went to the client.
    pub(in crate::worker) fn record_sent(&self, bytes: usize) {
        let connection = &self.state;
        if connection.stalled.load(Relaxed) {
            connection.stalled.store(false, Relaxed);
            connection.pace.record_read(self.table.tick(), bytes);
            if connection.is_in_phase(ConnectionPhase::Idle) {
                // From now on, not from when the response was made.
                self.touch();
            }
        }
    }

    /// The client does not read what is sent to it.
    pub(in crate::worker) fn send_stalled(&self) {
        if !self.state.stalled.swap(true, Relaxed) {
            self.state.pace.start(self.table.tick());
        }
    }

    /// Why an order to expire still holds; if it does not, it is taken back.
    pub(in crate::worker) fn check_expired(&self) -> Option<ConnectionCloseReason> {
        let why = self.table.expiry_reason(&self.state);
        if why.is_none() {
            self.state.withdraw_command(ConnectionCommand::CloseIfExpired);
        }
        why
    }

    /// An order to refuse the header under way was carried out, or came too late.
    pub(in crate::worker) fn clear_header_refusal(&self) {
        self.state.withdraw_command(ConnectionCommand::RefuseHeader);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.finish_header();
        self.table.remove(self.state.number, self.state.client);
    }
}
