//! A connection's place in the table, and what happens to it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::worker::connection::packed_state::PackedState;
use crate::worker::connection::record::{Connection, ConnectionCommand, SMALL_HEADER, UpgradedSide};
use crate::worker::connection::state::{ConnectionEvent, Tick};
use crate::worker::connection::table::ConnectionTable;

/// A connection's place in the table; with its drop the connection leaves every index.
#[derive(Debug)]
pub(in crate::worker) struct ConnectionGuard {
    pub(in crate::worker) connection: Arc<Connection>,
    table: Arc<ConnectionTable>,
}

impl ConnectionGuard {
    /// Enters a new connection into the table; none: its client has its share of them, and none of them is idle.
    pub(in crate::worker) fn open(table: &Arc<ConnectionTable>, client: Option<IpAddr>) -> Option<Self> {
        Some(Self { connection: table.insert(client)?, table: Arc::clone(table) })
    }

    #[inline]
    fn apply(&self, event: ConnectionEvent) -> PackedState {
        self.connection.apply(event, self.table.tick(), &self.table.timeouts)
    }

    /// It has its permit: from now on its first header is waited for.
    pub(in crate::worker) fn start_header_timeout(&self) {
        self.apply(ConnectionEvent::PermitAcquired);
    }

    /// A request has come and waits for its turn.
    pub(super) fn enter_queue(&self) {
        self.apply(ConnectionEvent::QueueEntered);
    }

    /// Its turn has come.
    pub(super) fn leave_queue(&self) {
        self.apply(ConnectionEvent::QueueLeft { first: self.connection.is_new() });
    }

    /// Whether some connections are to end with their answers.
    pub(super) fn has_surplus(&self) -> bool {
        self.table.has_surplus()
    }

    /// Whether it ends with the answer that is about to be sent, so that its client's next one goes to another worker.
    pub(super) fn take_surplus(&self, may_stay: impl FnOnce() -> bool) -> bool {
        self.table.take_surplus(may_stay)
    }

    /// One of its requests was refused.
    pub(super) fn count_refused(&self, reason: RefusalReason) {
        self.table.cell().count_refused(reason);
    }

    /// This side has ended, and the client's end is waited for.
    pub(super) fn start_linger(&self) {
        self.finish_header();
        self.apply(ConnectionEvent::LingerStarted);
    }

    /// The body of a request is to come, until [`Self::request_body_finished`].
    pub(super) fn request_body_started(&self) {
        self.apply(ConnectionEvent::BodyStarted);
    }

    /// A request's body has come, or nothing of it is read any more.
    pub(super) fn request_body_finished(&self) {
        let state = self.apply(ConnectionEvent::BodyFinished);
        if self.connection.is_http2() && state.is_idle() {
            self.connection.body_pace.restart(self.table.tick());
        }
    }

    /// Whether a handler now waits for more of a request's body than has come; called only when that changes.
    pub(super) fn set_body_starved(&self, starved: bool) {
        match starved {
            true => self.connection.starved_bodies.fetch_add(1, Relaxed),
            false => self.connection.starved_bodies.fetch_sub(1, Relaxed),
        };
    }

    /// Something of a request's body is left unread: the connection can only end.
    pub(super) fn mark_unread(&self) {
        self.connection.unread.store(true, Relaxed);
    }

    /// It is closed before its client wants that.
    pub(in crate::worker) fn count_closed(&self, reason: ConnectionCloseReason) {
        self.table.cell().count_closed(reason);
    }

    /// A request's header is complete; it is under way until [`Self::response_taken`].
    pub(super) fn request_started(&self, http2: bool) {
        let connection = &self.connection;
        if http2 {
            connection.http2.store(true, Relaxed);
            self.stop_body_pace();
        } else {
            connection.send_pace.forgive();
        }
        connection.fresh.store(false, Relaxed);
        self.finish_header();
        self.apply(ConnectionEvent::RequestStarted);
    }

    /// A request begins that its client may take: what it owes of others stays, an idle connection owed nothing.
    fn stop_body_pace(&self) {
        let Connection { body_pace, .. } = &*self.connection;
        if body_pace.is_running() {
            body_pace.record_read(self.table.tick(), 0);
        }
        if self.connection.requests().active == 0 {
            body_pace.forgive();
        }
    }

    /// A request's response has been taken over for sending, or given up.
    pub(super) fn response_taken(&self) {
        let state = self.apply(ConnectionEvent::ResponseTaken);
        if !self.connection.is_http2() {
            return;
        }
        if state.requests().active == 0 {
            self.connection.body_pace.restart(self.table.tick());
        } else {
            self.update_flow_blocked();
        }
    }

    /// A response's body in HTTP/2 was polled, or there is one more or less; whether the client holds it up.
    pub(super) fn set_body_blocked(&self, was_blocked: bool, is_blocked: bool) {
        let connection = &self.connection;
        if connection.body_pace.is_running() {
            connection.body_pace.record_read(self.table.tick(), 0);
        }
        match (was_blocked, is_blocked) {
            (false, true) => _ = connection.blocked_bodies.fetch_add(1, Relaxed),
            (true, false) => _ = connection.blocked_bodies.fetch_sub(1, Relaxed),
            _ => {}
        }
        self.update_flow_blocked();
    }

    /// The client is waited for while it holds up every response.
    fn update_flow_blocked(&self) {
        let connection = &self.connection;
        let active = u32::from(connection.requests().active);
        if active > 0 && connection.blocked_bodies.load(Relaxed) == active {
            connection.body_pace.start(self.table.tick());
            self.apply(ConnectionEvent::BodiesBlocked { deadline: self.body_deadline() });
        } else {
            self.apply(ConnectionEvent::BodiesUnblocked);
        }
    }

    fn body_deadline(&self) -> Tick {
        self.connection.body_pace.deadline(self.table.limits.idle)
    }

    /// So many bytes of bodies went to a client of HTTP/2.
    pub(super) fn record_body_sent(&self, bytes: usize) {
        let pace = &self.connection.body_pace;
        // It also runs without a request: hyper may have taken all of a body long before the client has.
        if pace.is_running() {
            let tick = self.table.tick();
            pace.record_read(tick, bytes);
            pace.start(tick);
            self.apply(ConnectionEvent::BodySent { deadline: self.body_deadline() });
        }
    }

    /// Now, in ticks.
    pub(super) fn tick(&self) -> Tick {
        self.table.tick()
    }

    /// It leaves HTTP with the response to the request under way.
    pub(super) fn set_upgraded(&self) {
        self.apply(ConnectionEvent::Upgraded);
    }

    /// Whether it is to end now.
    pub(super) fn is_aborted(&self) -> bool {
        self.connection.is_commanded(ConnectionCommand::Abort)
    }

    /// Whether an upgraded connection has to end: it was cut, or its client reads nothing of what is sent to it.
    ///
    /// If not, the waker is woken by the next command. The task that uses the connection finishes it.
    pub(super) fn must_close(&self, side: UpgradedSide, waker: &Waker) -> bool {
        self.connection.register_waker(side, waker);
        if self.connection.is_commanded(ConnectionCommand::Continue) {
            return false;
        }
        self.is_aborted() || self.check_expired().is_some()
    }

    /// Bytes came from the client: while no request is under way they begin a header, or go on with it.
    ///
    /// In HTTP/2 they are frames, which may be anything: a connection that is idle there has no stream open.
    pub(super) fn record_read(&self, bytes: usize) {
        let connection = &self.connection;
        if connection.is_http2() || !connection.waits_for_request() {
            return;
        }
        self.apply(ConnectionEvent::HeaderBytesRead);
        let before = connection.header_bytes.load(Relaxed);
        connection.header_bytes.store(before + bytes, Relaxed);
        if before + bytes > SMALL_HEADER {
            self.table.add_header_bytes(before + bytes - before.max(SMALL_HEADER));
        }
    }

    /// Nothing of a header is waited for any more.
    fn finish_header(&self) {
        let bytes = self.connection.header_bytes.load(Relaxed);
        self.connection.header_bytes.store(0, Relaxed);
        if bytes > SMALL_HEADER {
            self.table.remove_header_bytes(bytes - SMALL_HEADER);
        }
    }

    /// Whether a request has begun to come, and may still take its time.
    pub(in crate::worker) fn is_reading_header(&self) -> bool {
        self.connection.is_reading_header() && self.expiry_reason().is_none()
    }

    /// Bytes went to the client.
    pub(super) fn record_sent(&self, bytes: usize) {
        let connection = &self.connection;
        if !connection.send_pace.is_running() {
            return;
        }
        connection.send_pace.record_read(self.table.tick(), bytes);
        self.apply(ConnectionEvent::SendResumed);
        if connection.is_http2() {
            self.update_flow_blocked();
            if connection.body_pace.is_running() {
                // What is not of a body, as the answer to a ping, makes no connection less idle.
                self.apply(ConnectionEvent::BodySent { deadline: self.body_deadline() });
            }
        }
    }

    /// The client does not read what is sent to it.
    pub(super) fn send_stalled(&self) {
        self.connection.send_pace.start(self.table.tick());
        let deadline = self.connection.send_pace.deadline(self.table.limits.idle);
        self.apply(ConnectionEvent::SendStalled { deadline });
    }

    fn expiry_reason(&self) -> Option<ConnectionCloseReason> {
        self.connection.state().expiry_reason(self.table.tick())
    }

    /// Why a command to expire still holds; if it does not, it is taken back.
    pub(in crate::worker) fn check_expired(&self) -> Option<ConnectionCloseReason> {
        let reason = self.expiry_reason();
        if reason.is_none() {
            self.connection.withdraw_command(ConnectionCommand::CloseIfExpired);
        }
        reason
    }

    /// A command to refuse the header was carried out, or came too late.
    pub(in crate::worker) fn clear_header_refusal(&self) {
        self.connection.withdraw_command(ConnectionCommand::RefuseHeader);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.finish_header();
        self.table.remove(self.connection.number, self.connection.client);
    }
}
