//! Every open connection of a worker, and the tick they measure time in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Cell;
use crate::scoreboard::refusal::Closing;
use crate::scoreboard::refusal::Refusal;
use crate::worker::connection::Connection;
use crate::worker::connection::Entry;
use crate::worker::connection::Order;
use crate::worker::connection::Patience;
use crate::worker::connection::Pause;
use crate::worker::connection::SMALL_HEADER;
use crate::worker::connection::TICK;
use crate::worker::connection::idle::Candidates;

/// Every open connection of this worker, and the tick they measure time in.
#[derive(Debug)]
pub(in crate::worker) struct Connections {
    books: Mutex<Books>,
    next: AtomicU64,
    tick: AtomicU64,
    /// Bytes of unfinished headers, beyond the first of each.
    headers: AtomicUsize,
    /// Connections that may end with their next answer: there are too many of them.
    ending: AtomicU64,
    /// Connections that wait for a place.
    wanting: AtomicUsize,
    patience: Patience,
    /// Told when there is a connection again after there was none.
    opened: Notify,
    ended: Notify,
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
}

#[derive(Debug, Default)]
struct Books {
    open: HashMap<u64, Arc<Connection>>,
    idle: Candidates,
    clients: HashMap<IpAddr, Client>,
}

/// The connections of one client address.
#[derive(Debug, Default)]
struct Client {
    open: usize,
    idle: Candidates,
}

impl Connections {
    pub(in crate::worker) fn new(
        patience: Patience,
        scoreboard: Arc<Scoreboard>,
        slot: usize,
        cell: usize,
    ) -> Self {
        Self {
            books: Mutex::default(),
            next: AtomicU64::new(0),
            tick: AtomicU64::new(1),
            headers: AtomicUsize::new(0),
            ending: AtomicU64::new(0),
            wanting: AtomicUsize::new(0),
            patience,
            opened: Notify::new(),
            ended: Notify::new(),
            scoreboard,
            slot,
            cell,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // The books are whole after any panic: each use is one insertion, removal or walk.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cell(&self) -> Cell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    pub(super) fn tick(&self) -> u64 {
        self.tick.load(Relaxed)
    }

    /// Takes note of a new connection until the entry is dropped.
    ///
    /// A client that has its share of them loses the one that has been idle for longest; none: nothing of its is idle.
    pub(in crate::worker) fn open(self: &Arc<Self>, client: Option<IpAddr>) -> Option<Entry> {
        let tick = self.tick();
        let mut books = self.lock();
        let Books { open, clients, .. } = &mut *books;
        if let Some(address) = client {
            let client = clients.entry(address).or_default();
            if client.open >= self.patience.per_client {
                let own = open.values().filter(|connection| connection.client == Some(address));
                if !client.idle.evict(tick, own) {
                    return None;
                }
                self.cell().closed(Closing::Evicted);
            }
            client.open += 1;
        }
        let number = self.next.fetch_add(1, Relaxed);
        let connection = Arc::new(Connection::new(tick, number, client));
        if open.is_empty() {
            self.opened.notify_one();
        }
        open.insert(number, Arc::clone(&connection));
        self.cell().connection_opened();
        Some(Entry { connection, all: Arc::clone(self) })
    }

    /// So many connections, and no more, end with their next answer.
    pub(in crate::worker) fn end_after_answers(&self, count: u64) {
        self.ending.store(count, Relaxed);
    }

    /// Whether some are to end with their answers.
    pub(super) fn has_surplus(&self) -> bool {
        self.ending.load(Relaxed) > 0
    }

    /// Whether a connection that is about to answer, and otherwise `may_stay`, ends with that.
    pub(super) fn takes_end(&self, may_stay: impl FnOnce() -> bool) -> bool {
        // The worker's own thread alone changes it: a locked instruction would be paid for by every request.
        let ending = self.ending.load(Relaxed);
        if ending == 0 || !may_stay() {
            return false;
        }
        self.ending.store(ending - 1, Relaxed);
        self.cell().closed(Closing::Surplus);
        true
    }

    /// A connection was refused.
    pub(in crate::worker) fn turned_away(&self, why: Refusal) {
        self.cell().refused(why);
    }

    pub(super) fn closed(&self, number: u64, client: Option<IpAddr>) {
        let mut books = self.lock();
        books.open.remove(&number);
        if let Some(address) = client
            && let Some(client) = books.clients.get_mut(&address)
        {
            client.open = client.open.saturating_sub(1);
            if client.open == 0 {
                books.clients.remove(&address);
            }
        }
        drop(books);
        self.cell().connection_closed();
        self.ended.notify_one();
    }

    /// Gives a place back: the connection that has been idle for longest is closed; whether there was one.
    pub(in crate::worker) fn evict(&self) -> bool {
        let tick = self.tick();
        let mut books = self.lock();
        let Books { open, idle, .. } = &mut *books;
        let evicted = idle.evict(tick, open.values());
        if evicted {
            self.cell().closed(Closing::Evicted);
        }
        evicted
    }

    /// Waits for a place, which idle connections give back as long as it is waited for.
    ///
    /// # Cancel safety
    /// It does not wait any more when it is dropped.
    pub(in crate::worker) async fn place(&self, permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        struct Wanting<'a>(&'a AtomicUsize);
        impl Drop for Wanting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        if let Ok(place) = Arc::clone(permits).try_acquire_owned() {
            return Some(place);
        }
        self.wanting.fetch_add(1, Relaxed);
        let _wanting = Wanting(&self.wanting);
        self.evict();
        Arc::clone(permits).acquire_owned().await.ok()
    }

    /// Unfinished headers have grown by so many bytes. If they take too much, the largest of them are refused.
    pub(super) fn header_grew(&self, bytes: usize) {
        let all = self.headers.load(Relaxed) + bytes;
        self.headers.store(all, Relaxed);
        if all <= self.patience.header_memory {
            return;
        }
        // Down to three quarters, so that this walk is rare.
        let mut excess = all - self.patience.header_memory / 4 * 3;
        let books = self.lock();
        let mut found = Vec::new();
        for connection in books.open.values().filter(|one| one.header.load(Relaxed) > SMALL_HEADER) {
            if connection.is_header_refused() {
                // It was told before, and gives its memory back when it is looked at: counted again, every
                // header of a burst would be refused.
                excess = excess.saturating_sub(connection.header.load(Relaxed) - SMALL_HEADER);
            } else if connection.order.load(Relaxed) < Order::RefuseHeader as u8 {
                found.push(connection);
            }
        }
        if excess == 0 {
            return;
        }
        // The largest first, and of equal ones those that have taken longest.
        found.sort_by_key(|connection| {
            (std::cmp::Reverse(connection.header.load(Relaxed)), connection.since.load(Relaxed))
        });
        for connection in found {
            connection.tell(Order::RefuseHeader);
            excess = excess.saturating_sub(connection.header.load(Relaxed) - SMALL_HEADER);
            if excess == 0 {
                return;
            }
        }
    }

    pub(super) fn header_ended(&self, bytes: usize) {
        self.headers.store(self.headers.load(Relaxed).saturating_sub(bytes), Relaxed);
    }

    /// Open connections.
    pub(in crate::worker) fn len(&self) -> usize {
        self.lock().open.len()
    }

    /// Tells every connection.
    pub(in crate::worker) fn tell_all(&self, order: Order) {
        self.lock().open.values().for_each(|connection| connection.tell(order));
    }

    /// Ends every connection now and counts them as cut; how many there were.
    pub(in crate::worker) fn cut_all(&self) -> usize {
        let cut = self.len();
        self.tell_all(Order::Cut);
        self.cell().connections_cut(cut as u64);
        cut
    }

    /// Waits until a connection is open: without one no clock runs, and a tick would only wake the worker.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(in crate::worker) async fn any(&self) {
        while self.len() == 0 {
            self.opened.notified().await;
        }
    }

    /// Waits until no connection is open.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(in crate::worker) async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            if self.len() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Ends one tick: connections that overstayed are told, and those that are to finish are told again.
    pub(in crate::worker) fn sweep(&self) {
        self.tick.fetch_add(1, Relaxed);
        let finishes = |connection: &Connection| connection.order.load(Relaxed) == Order::Finish as u8;
        let told =
            |connection: &&Arc<Connection>| self.overstays(connection).is_some() || finishes(connection);
        self.lock().open.values().filter(told).for_each(|connection| connection.tell(Order::Expire));
        // Since then some may have become idle.
        (0..self.wanting.load(Relaxed)).any(|_| !self.evict());
    }

    /// Why a connection is to be closed, if it is.
    pub(super) fn overstays(&self, connection: &Connection) -> Option<Closing> {
        let tick = self.tick();
        let slow = |pace: &super::Pace| {
            (u128::from(pace.owed_ms(tick)) > self.patience.idle.as_millis()).then_some(Closing::SlowReader)
        };
        if connection.stalled.load(Relaxed) {
            return slow(&connection.pace);
        }
        if connection.all_held() {
            return slow(&connection.held_pace);
        }
        if connection.is_busy() {
            return None;
        }
        let late = |patience: Duration, why| {
            let ticks = u64::try_from(patience.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u64::MAX);
            (tick.saturating_sub(connection.since.load(Relaxed)) > ticks).then_some(why)
        };
        match connection.pause.load(Relaxed) {
            waiting if waiting == Pause::Waiting as u8 => None,
            upgraded if upgraded == Pause::Upgraded as u8 => None,
            // It has a clock of its own.
            lingering if lingering == Pause::Lingering as u8 => None,
            // What it still takes of answered requests keeps it, at its pace.
            idle if idle == Pause::Idle as u8 && connection.is_http2() => {
                slow(&connection.held_pace).map(|_| Closing::Idle)
            }
            idle if idle == Pause::Idle as u8 => late(self.patience.idle, Closing::Idle),
            _ => late(self.patience.header, Closing::SlowHeader),
        }
    }
}

impl Connection {
    /// Whether every response under way is held up by the client, in HTTP/2.
    pub(super) fn all_held(&self) -> bool {
        let active = self.active.load(Relaxed);
        active > 0 && self.held.load(Relaxed) == active
    }
}
