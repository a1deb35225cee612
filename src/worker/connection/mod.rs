//! One open connection as the worker sees it: what it is doing, since when, and how to end it.
//!
//! Deadlines cost nothing per request: a connection only stores the tick in which it last changed, and one sweep a
//! tick ends those that overstayed. hyper's own header timer would allocate and arm a timer for every request, and
//! would count the idle time between two requests as slow header.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Cell;
use crate::scoreboard::refusal::Refusal;

/// Length of a tick; deadlines are met within one.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// How long a refused client may take to read its refusal and to close.
const LINGER: Duration = Duration::from_secs(1);

/// What a connection is told; a later one in this list overrules an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing: go on.
    Serve,
    /// End if you still overstay: a request may have come while the order was on its way.
    Expire,
    /// End when the request under way is answered, at once if there is none.
    Finish,
    /// End now.
    Cut,
}

/// How long a connection may do what it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From a header's first byte (or the accept) to its end.
    pub(super) header: Duration,
    /// Without a request under way, or without the client reading what it is sent.
    pub(super) idle: Duration,
}

/// What a connection does while no request is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// It waits for its turn (it was accepted, or its next request has come), for which it cannot be blamed.
    Waiting,
    /// The connection's first header is waited for.
    Header,
    /// A part of a header has come.
    Begun,
    /// Nothing has come since the last request.
    Idle,
    /// It speaks another protocol now, whose pauses are none of ours.
    Upgraded,
    /// It was refused; its client is to read that, and to close it.
    Refused,
}

/// One connection's state.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Requests being answered; more than one only in HTTP/2.
    active: AtomicU32,
    /// Of these, responses that HTTP/2 holds back because the client gives no room for them.
    held: AtomicU32,
    /// Tick in which any of those last moved; what else goes over the connection, as the answer to a ping, does not count.
    moved: AtomicU64,
    /// What it does while no request is under way, as [`Pause`].
    pause: AtomicU8,
    /// Whether no request has come yet.
    fresh: AtomicBool,
    /// Whether its client has stopped reading.
    stalled: AtomicBool,
    /// Whether it speaks HTTP/2, where a frame is not the beginning of a header.
    http2: AtomicBool,
    /// Tick of the last change of the first three, or of the last byte sent.
    since: AtomicU64,
    order: AtomicU8,
    told: Notify,
    /// Whether its next request was let in by the gate while it was still unread.
    admitted: AtomicBool,
    /// Whether reading it must not trust the reactor, because nothing that has come may be left unread.
    looked_at: AtomicBool,
    /// Who reads and who writes it since it was upgraded, to be woken by orders: nobody waits for those any more.
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// One of the two sides from which an upgraded connection is used, which may be two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Who waits for bytes of the client's.
    Reader,
    /// Who waits until the client takes some.
    Writer,
}

impl Connection {
    fn new(now: u64) -> Self {
        // Zeros are [`Pause::Waiting`] and [`Order::Serve`].
        Self { since: AtomicU64::new(now), fresh: AtomicBool::new(true), ..Self::default() }
    }

    /// Whether whatever the kernel has is to be read from now on.
    pub(super) fn look(&self, closely: bool) {
        self.looked_at.store(closely, Relaxed);
    }

    /// Whether whatever the kernel has is to be read.
    pub(super) fn is_looked_at(&self) -> bool {
        self.looked_at.load(Relaxed)
    }

    /// Waits for the next order.
    ///
    /// # Cancel safety
    /// An order is kept until it is read.
    pub(super) async fn told(&self) -> Order {
        self.told.notified().await;
        match self.order.load(Relaxed) {
            0 => Order::Serve,
            1 => Order::Expire,
            2 => Order::Finish,
            _ => Order::Cut,
        }
    }

    fn tell(&self, order: Order) {
        self.order.fetch_max(order as u8, Relaxed);
        self.told.notify_one();
        if self.is_upgraded() {
            self.reader.wake();
            self.writer.wake();
        }
    }

    /// Whether a request that it reads next would be one that begins, and may be kept waiting.
    ///
    /// Whatever gives places back is not held up: a connection that is to end, and the rest of a request.
    pub(super) fn may_wait(&self) -> bool {
        let pause = self.pause.load(Relaxed);
        (pause == Pause::Idle as u8 || pause == Pause::Header as u8 || pause == Pause::Waiting as u8)
            && self.active.load(Relaxed) == 0
            && !self.is_http2()
            && !self.is_looked_at()
            && self.order.load(Relaxed) < Order::Finish as u8
    }

    /// Whether it is new: it may yet turn out to speak HTTP/2.
    pub(super) fn is_new(&self) -> bool {
        self.fresh.load(Relaxed)
    }

    /// Its next request has been let in.
    pub(super) fn admit(&self) {
        self.admitted.store(true, Relaxed);
    }

    /// Whether a request that begins was let in before it was read; it is so only once.
    pub(super) fn was_admitted(&self) -> bool {
        let admitted = self.admitted.load(Relaxed);
        if admitted {
            self.admitted.store(false, Relaxed);
        }
        admitted
    }

    /// Whether it has left HTTP.
    pub(super) fn is_upgraded(&self) -> bool {
        self.pause.load(Relaxed) == Pause::Upgraded as u8
    }

    /// Whether it speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }
}

/// Every open connection of this worker, and the tick they measure time in.
#[derive(Debug)]
pub(super) struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    tick: AtomicU64,
    patience: Patience,
    ended: Notify,
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
}

impl Connections {
    pub(super) fn new(patience: Patience, scoreboard: Arc<Scoreboard>, slot: usize, cell: usize) -> Self {
        Self {
            open: Mutex::default(),
            next: AtomicU64::new(0),
            tick: AtomicU64::new(1),
            patience,
            ended: Notify::new(),
            scoreboard,
            slot,
            cell,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        // The map is whole after any panic: each use is one insertion, removal or walk.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self) -> Cell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    /// Takes note of a new connection until the entry is dropped.
    pub(super) fn open(self: &Arc<Self>) -> Entry {
        let connection = Arc::new(Connection::new(self.tick.load(Relaxed)));
        let number = self.next.fetch_add(1, Relaxed);
        self.lock().insert(number, Arc::clone(&connection));
        self.cell().connection_opened();
        Entry { number, connection, all: Arc::clone(self) }
    }

    /// Open connections.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Tells every connection.
    pub(super) fn tell_all(&self, order: Order) {
        self.lock().values().for_each(|connection| connection.tell(order));
    }

    /// Ends every connection now and counts them as cut; how many there were.
    pub(super) fn cut_all(&self) -> usize {
        let cut = self.len();
        self.tell_all(Order::Cut);
        self.cell().connections_cut(cut as u64);
        cut
    }

    /// Waits until no connection is open.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            if self.len() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Ends one tick: whoever overstayed is told, and whoever is to finish is told again.
    pub(super) fn sweep(&self) {
        self.tick.fetch_add(1, Relaxed);
        let finishes = |connection: &Connection| connection.order.load(Relaxed) == Order::Finish as u8;
        let told = |connection: &&Arc<Connection>| self.overstays(connection) || finishes(connection);
        self.lock().values().filter(told).for_each(|connection| connection.tell(Order::Expire));
    }

    fn overstays(&self, connection: &Connection) -> bool {
        let active = connection.active.load(Relaxed);
        let busy = active > 0;
        let stalled = connection.stalled.load(Relaxed);
        let held = !stalled && busy && connection.held.load(Relaxed) == active;
        let since = if held { &connection.moved } else { &connection.since };
        let patience = match connection.pause.load(Relaxed) {
            _ if stalled => self.patience.idle,
            _ if held => self.patience.idle,
            _ if busy => return false,
            waiting if waiting == Pause::Waiting as u8 => return false,
            upgraded if upgraded == Pause::Upgraded as u8 => return false,
            refused if refused == Pause::Refused as u8 => LINGER,
            idle if idle == Pause::Idle as u8 => self.patience.idle,
            _ => self.patience.header,
        };
        let ticks = u64::try_from(patience.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u64::MAX);
        self.tick.load(Relaxed).saturating_sub(since.load(Relaxed)) > ticks
    }
}

/// A connection's place among all; leaves with its drop, and with it the connection leaves every book.
#[derive(Debug)]
pub(super) struct Entry {
    number: u64,
    pub(super) connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Entry {
    fn changed(&self) {
        self.connection.since.store(self.all.tick.load(Relaxed), Relaxed);
    }

    /// Its turn has come: from now on its first header is waited for.
    pub(super) fn seat(&self) {
        self.changed();
        self.connection.pause.store(Pause::Header as u8, Relaxed);
    }

    /// A request has come and waits for its turn.
    pub(super) fn wait(&self) {
        self.connection.pause.store(Pause::Waiting as u8, Relaxed);
    }

    /// Its turn has come.
    pub(super) fn resume(&self) {
        self.changed();
        let pause = if self.connection.is_new() { Pause::Header } else { Pause::Idle };
        self.connection.pause.store(pause as u8, Relaxed);
    }

    /// One of its requests was refused.
    pub(super) fn turned_away(&self, why: Refusal) {
        self.all.cell().refused(why);
    }

    /// It was refused, and is waited for until its client closes.
    pub(super) fn refused(&self, why: Refusal) {
        self.all.cell().refused(why);
        self.changed();
        self.connection.pause.store(Pause::Refused as u8, Relaxed);
    }

    /// A request's header is complete; it is under way until [`Entry::answered`].
    pub(super) fn asked(&self, http2: bool) {
        self.connection.active.fetch_add(1, Relaxed);
        self.connection.pause.store(Pause::Idle as u8, Relaxed);
        self.connection.fresh.store(false, Relaxed);
        if http2 {
            self.connection.http2.store(true, Relaxed);
        }
    }

    /// A request's response has been taken over for sending, or given up.
    pub(super) fn answered(&self) {
        self.connection.active.fetch_sub(1, Relaxed);
        self.changed();
    }

    /// A response's body in HTTP/2 was asked for more, or there is one more or less; whether the client holds it up.
    pub(super) fn body_moved(&self, was_held: bool, is_held: bool) {
        self.connection.moved.store(self.all.tick.load(Relaxed), Relaxed);
        match (was_held, is_held) {
            (false, true) => _ = self.connection.held.fetch_add(1, Relaxed),
            (true, false) => _ = self.connection.held.fetch_sub(1, Relaxed),
            _ => {}
        }
    }

    /// It leaves HTTP with the response to the request under way.
    pub(super) fn upgraded(&self) {
        self.connection.pause.store(Pause::Upgraded as u8, Relaxed);
    }

    /// Whether an upgraded connection has to end: it was cut, or its client reads nothing of what is sent to it.
    ///
    /// If not, the waker is woken by the next order. To finish is left to whoever speaks on it.
    pub(super) fn must_end(&self, side: Side, waker: &Waker) -> bool {
        match side {
            Side::Reader => self.connection.reader.register(waker),
            Side::Writer => self.connection.writer.register(waker),
        }
        match self.connection.order.load(Relaxed) {
            order if order == Order::Cut as u8 => true,
            order if order == Order::Serve as u8 => false,
            _ => self.is_expired(),
        }
    }

    /// Bytes came from the client: while no request is under way they begin a header; in HTTP/2 they are a sign of life.
    pub(super) fn read(&self) {
        let connection = &self.connection;
        if connection.active.load(Relaxed) > 0 || connection.is_upgraded() {
            return;
        }
        let idle = connection.pause.load(Relaxed) == Pause::Idle as u8;
        if !connection.is_http2() {
            connection.pause.store(Pause::Begun as u8, Relaxed);
        }
        // The time for a connection's first header runs from its start.
        if idle {
            self.changed();
        }
    }

    /// Whether a request has begun to come, and may still take its time.
    pub(super) fn is_begun(&self) -> bool {
        self.connection.pause.load(Relaxed) == Pause::Begun as u8 && !self.all.overstays(&self.connection)
    }

    /// Bytes went to the client.
    pub(super) fn sent(&self) {
        self.connection.stalled.store(false, Relaxed);
        self.changed();
    }

    /// The client does not read what is sent to it.
    pub(super) fn stalls(&self) {
        if !self.connection.stalled.swap(true, Relaxed) {
            self.changed();
        }
    }

    /// Whether an order to expire still holds; if not, it is taken back.
    pub(super) fn is_expired(&self) -> bool {
        let expired = self.all.overstays(&self.connection);
        if !expired {
            let (from, to) = (Order::Expire as u8, Order::Serve as u8);
            // A stronger order that came meanwhile stays.
            let _ = self.connection.order.compare_exchange(from, to, Relaxed, Relaxed);
        }
        expired
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
        self.all.cell().connection_closed();
        self.all.ended.notify_one();
    }
}

#[cfg(test)]
mod tests;
