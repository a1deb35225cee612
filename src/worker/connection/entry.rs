//! A connection's place among all, and what happens on it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use crate::scoreboard::refusal::Closing;
use crate::scoreboard::refusal::Refusal;
use crate::worker::connection::Connection;
use crate::worker::connection::Connections;
use crate::worker::connection::Order;
use crate::worker::connection::Pause;
use crate::worker::connection::SMALL_HEADER;
use crate::worker::connection::Side;

/// A connection's place among all; leaves with its drop, and with it the connection leaves every book.
#[derive(Debug)]
pub(in crate::worker) struct Entry {
    pub(in crate::worker) connection: Arc<Connection>,
    pub(super) all: Arc<Connections>,
}

impl Entry {
    fn changed(&self) {
        self.connection.since.store(self.all.tick(), Relaxed);
    }

    fn pause(&self, pause: Pause) {
        self.connection.pause.store(pause as u8, Relaxed);
    }

    /// Its turn has come: from now on its first header is waited for.
    pub(in crate::worker) fn seat(&self) {
        self.changed();
        self.pause(Pause::Header);
    }

    /// A request has come and waits for its turn.
    pub(in crate::worker) fn wait(&self) {
        self.pause(Pause::Waiting);
    }

    /// Its turn has come.
    pub(in crate::worker) fn resume(&self) {
        self.changed();
        self.pause(if self.connection.is_new() { Pause::Header } else { Pause::Idle });
    }

    /// Whether some connections are to end with their answers.
    pub(in crate::worker) fn has_surplus(&self) -> bool {
        self.all.has_surplus()
    }

    /// Whether it ends with the answer that is about to be sent, so that its client's next one goes to another worker.
    pub(in crate::worker) fn takes_end(&self, may_stay: impl FnOnce() -> bool) -> bool {
        self.all.takes_end(may_stay)
    }

    /// One of its requests was refused.
    pub(in crate::worker) fn turned_away(&self, why: Refusal) {
        self.all.cell().refused(why);
    }

    /// Our side has ended, and its client is waited for until it closes.
    pub(in crate::worker) fn lingers(&self) {
        self.header_ended();
        self.pause(Pause::Lingering);
    }

    /// The body of a request is to come, until [`Entry::body_ended`].
    pub(in crate::worker) fn body_begins(&self) {
        self.connection.receiving.fetch_add(1, Relaxed);
    }

    /// A request's body has come, or nothing of it is read any more.
    pub(in crate::worker) fn body_ended(&self) {
        self.connection.receiving.fetch_sub(1, Relaxed);
        if !self.connection.is_busy() {
            self.changed();
        }
    }

    /// Whether a handler now waits for more of a request's body than has come; said only when that changes.
    pub(in crate::worker) fn body_starves(&self, starves: bool) {
        match starves {
            true => self.connection.starving.fetch_add(1, Relaxed),
            false => self.connection.starving.fetch_sub(1, Relaxed),
        };
    }

    /// Something of a request's body is left unread: the connection can only end.
    pub(in crate::worker) fn left_unread(&self) {
        self.connection.unread.store(true, Relaxed);
    }

    /// It is closed before its client wants that.
    pub(in crate::worker) fn closed(&self, why: Closing) {
        self.all.cell().closed(why);
    }

    /// A request's header is complete; it is under way until [`Entry::answered`].
    pub(in crate::worker) fn asked(&self, http2: bool) {
        let connection = &self.connection;
        // The worker's own thread alone changes it: a locked instruction would be paid for by every request.
        connection.active.store(connection.active.load(Relaxed) + 1, Relaxed);
        self.pause(Pause::Idle);
        connection.fresh.store(false, Relaxed);
        self.header_ended();
        if http2 {
            connection.http2.store(true, Relaxed);
        } else {
            connection.pace.forgive();
        }
    }

    /// A request's response has been taken over for sending, or given up.
    pub(in crate::worker) fn answered(&self) {
        let active = self.connection.active.load(Relaxed).saturating_sub(1);
        self.connection.active.store(active, Relaxed);
        self.changed();
        if active == 0 {
            self.connection.held_pace.forgive();
            self.connection.held_pace.start(self.all.tick());
        }
    }

    /// A response's body in HTTP/2 was asked for more, or there is one more or less; whether the client holds it up.
    pub(in crate::worker) fn body_moved(&self, was_held: bool, is_held: bool) {
        let connection = &self.connection;
        let tick = self.all.tick();
        if connection.all_held() {
            connection.held_pace.took(tick, 0);
        }
        match (was_held, is_held) {
            (false, true) => _ = connection.held.fetch_add(1, Relaxed),
            (true, false) => _ = connection.held.fetch_sub(1, Relaxed),
            _ => {}
        }
        if connection.all_held() {
            connection.held_pace.start(tick);
        }
    }

    /// So many bytes of bodies went to a client of HTTP/2.
    pub(in crate::worker) fn body_sent(&self, bytes: usize) {
        // hyper may have taken over all there is of a body long before the client has.
        if self.connection.all_held() || self.connection.active.load(Relaxed) == 0 {
            self.connection.held_pace.took(self.all.tick(), bytes);
        }
    }

    /// Now, in ticks.
    pub(in crate::worker) fn tick(&self) -> u64 {
        self.all.tick()
    }

    /// It leaves HTTP with the response to the request under way.
    pub(in crate::worker) fn upgraded(&self) {
        self.pause(Pause::Upgraded);
    }

    /// Whether it was told to end now.
    pub(in crate::worker) fn is_cut(&self) -> bool {
        self.connection.order.load(Relaxed) == Order::Cut as u8
    }

    /// Whether an upgraded connection has to end: it was cut, or its client reads nothing of what is sent to it.
    ///
    /// If not, the waker is woken by the next order. The task that speaks on it finishes it.
    pub(in crate::worker) fn must_end(&self, side: Side, waker: &Waker) -> bool {
        match side {
            Side::Reader => self.connection.reader.register(waker),
            Side::Writer => self.connection.writer.register(waker),
        }
        match self.connection.order.load(Relaxed) {
            order if order == Order::Cut as u8 => true,
            order if order == Order::Serve as u8 => false,
            _ => self.expired().is_some(),
        }
    }

    /// Bytes came from the client: while no request is under way they begin a header, or go on with it.
    ///
    /// In HTTP/2 they are frames, which say nothing: what is idle there has no stream open.
    pub(in crate::worker) fn read(&self, bytes: usize) {
        let connection = &self.connection;
        if connection.is_busy() || connection.is_upgraded() || connection.is_http2() {
            return;
        }
        // The time for a connection's first header runs from its start.
        if connection.is(Pause::Idle) {
            self.changed();
        }
        self.pause(Pause::Begun);
        let before = connection.header.load(Relaxed);
        connection.header.store(before + bytes, Relaxed);
        if before + bytes > SMALL_HEADER {
            self.all.header_grew(before + bytes - before.max(SMALL_HEADER));
        }
    }

    /// Nothing of a header is waited for any more.
    fn header_ended(&self) {
        let bytes = self.connection.header.load(Relaxed);
        self.connection.header.store(0, Relaxed);
        if bytes > SMALL_HEADER {
            self.all.header_ended(bytes - SMALL_HEADER);
        }
    }

    /// Whether a request has begun to come, and may still take its time.
    pub(in crate::worker) fn is_begun(&self) -> bool {
        self.connection.is(Pause::Begun) && self.all.overstays(&self.connection).is_none()
    }

    /// Bytes went to the client.
    pub(in crate::worker) fn sent(&self, bytes: usize) {
        let connection = &self.connection;
        if connection.stalled.load(Relaxed) {
            connection.stalled.store(false, Relaxed);
            connection.pace.took(self.all.tick(), bytes);
            if connection.is(Pause::Idle) {
                // From now on, not from when the response was made.
                self.changed();
            }
        }
    }

    /// The client does not read what is sent to it.
    pub(in crate::worker) fn stalls(&self) {
        if !self.connection.stalled.swap(true, Relaxed) {
            self.connection.pace.start(self.all.tick());
        }
    }

    /// Why an order to expire still holds; if it does not, it is taken back.
    pub(in crate::worker) fn expired(&self) -> Option<Closing> {
        let why = self.all.overstays(&self.connection);
        if why.is_none() {
            self.connection.take_back(Order::Expire);
        }
        why
    }

    /// An order to refuse the header under way was carried out, or came too late.
    pub(in crate::worker) fn header_spared(&self) {
        self.connection.take_back(Order::RefuseHeader);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.header_ended();
        self.all.closed(self.connection.number, self.connection.client);
    }
}
