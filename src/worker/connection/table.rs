//! Every open connection of a worker, and the tick they measure time in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::WorkerCell;
use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::worker::connection::eviction::EvictionCandidates;
use crate::worker::connection::record::{Connection, ConnectionCommand, SMALL_HEADER};
use crate::worker::connection::state::{ConnectionTimeouts, Tick};

/// How long a connection may do what it does, and how much of it there may be.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct ConnectionLimits {
    /// From a header's first byte (or the permit) to its end.
    pub(in crate::worker) header: Duration,
    /// Without a request under way, or without the client reading what it is sent.
    pub(in crate::worker) idle: Duration,
    /// Bytes that all unfinished headers may take, beyond the first [`SMALL_HEADER`] of each.
    pub(in crate::worker) header_memory: usize,
    /// Connections that one client may have.
    pub(in crate::worker) per_client: usize,
}

/// Every open connection of this worker, and the tick they measure time in.
#[derive(Debug)]
pub(in crate::worker) struct ConnectionTable {
    index: Mutex<ConnectionIndex>,
    next_number: AtomicU64,
    tick: AtomicU64,
    /// Bytes of unfinished headers, beyond the first of each.
    header_bytes: AtomicUsize,
    /// Connections that may end with their next answer: there are too many of them.
    surplus: AtomicU64,
    /// Connections that wait for a permit.
    permit_waiters: AtomicUsize,
    pub(super) limits: ConnectionLimits,
    pub(super) timeouts: ConnectionTimeouts,
    /// Notified when there is a connection again after there was none.
    opened: Notify,
    closed: Notify,
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
}

#[derive(Debug, Default)]
struct ConnectionIndex {
    open: HashMap<u64, Arc<Connection>>,
    idle: EvictionCandidates,
    clients: HashMap<IpAddr, ClientConnections>,
}

/// The connections of one client address.
#[derive(Debug, Default)]
struct ClientConnections {
    open: usize,
    idle: EvictionCandidates,
}

impl ConnectionTable {
    pub(in crate::worker) fn new(
        limits: ConnectionLimits,
        scoreboard: Arc<Scoreboard>,
        slot: usize,
        cell: usize,
    ) -> Self {
        Self {
            index: Mutex::default(),
            next_number: AtomicU64::new(0),
            tick: AtomicU64::new(1),
            header_bytes: AtomicUsize::new(0),
            surplus: AtomicU64::new(0),
            permit_waiters: AtomicUsize::new(0),
            limits,
            timeouts: ConnectionTimeouts::new(limits.header, limits.idle),
            opened: Notify::new(),
            closed: Notify::new(),
            scoreboard,
            slot,
            cell,
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionIndex> {
        // The index is whole after any panic: each use is one insertion, removal or walk.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cell(&self) -> WorkerCell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    pub(super) fn tick(&self) -> Tick {
        self.tick.load(Relaxed)
    }

    /// Enters a new connection, until [`Self::remove`].
    ///
    /// A client that has its share of them loses the one that has been idle for longest; none: nothing of its is idle.
    pub(super) fn insert(&self, client: Option<IpAddr>) -> Option<Arc<Connection>> {
        let tick = self.tick();
        let mut index = self.lock();
        let ConnectionIndex { open, clients, .. } = &mut *index;
        if let Some(address) = client {
            let client = clients.entry(address).or_default();
            if client.open >= self.limits.per_client {
                let own = open.values().filter(|connection| connection.client == Some(address));
                if !client.idle.evict(tick, &self.timeouts, own) {
                    return None;
                }
                self.cell().count_closed(ConnectionCloseReason::Evicted);
            }
            client.open += 1;
        }
        let number = self.next_number.fetch_add(1, Relaxed);
        let connection = Arc::new(Connection::new(number, client));
        if open.is_empty() {
            self.opened.notify_one();
        }
        open.insert(number, Arc::clone(&connection));
        self.cell().count_connection_opened();
        Some(connection)
    }

    /// So many connections, and no more, end with their next answer.
    pub(in crate::worker) fn set_surplus(&self, count: u64) {
        self.surplus.store(count, Relaxed);
    }

    /// Whether some are to end with their answers.
    pub(super) fn has_surplus(&self) -> bool {
        self.surplus.load(Relaxed) > 0
    }

    /// Whether a connection that is about to answer, and otherwise `may_stay`, ends with that.
    pub(super) fn take_surplus(&self, may_stay: impl FnOnce() -> bool) -> bool {
        // The worker's own thread alone changes it: a locked instruction would be paid for by every request.
        let surplus = self.surplus.load(Relaxed);
        if surplus == 0 || !may_stay() {
            return false;
        }
        self.surplus.store(surplus - 1, Relaxed);
        self.cell().count_closed(ConnectionCloseReason::Surplus);
        true
    }

    /// A connection is closed that never came to HTTP.
    pub(in crate::worker) fn count_closed(&self, reason: ConnectionCloseReason) {
        self.cell().count_closed(reason);
    }

    /// A request is refused without reaching the application.
    pub(in crate::worker) fn count_refused(&self, reason: RefusalReason) {
        self.cell().count_refused(reason);
    }

    pub(super) fn remove(&self, number: u64, client: Option<IpAddr>) {
        let mut index = self.lock();
        index.open.remove(&number);
        if let Some(address) = client
            && let Some(client) = index.clients.get_mut(&address)
        {
            client.open = client.open.saturating_sub(1);
            if client.open == 0 {
                index.clients.remove(&address);
            }
        }
        drop(index);
        self.cell().count_connection_closed();
        self.closed.notify_one();
    }

    /// Frees a permit: the connection that has been idle for longest is closed; whether there was one.
    pub(in crate::worker) fn evict(&self) -> bool {
        let tick = self.tick();
        let mut index = self.lock();
        let ConnectionIndex { open, idle, .. } = &mut *index;
        let evicted = idle.evict(tick, &self.timeouts, open.values());
        if evicted {
            self.cell().count_closed(ConnectionCloseReason::Evicted);
        }
        evicted
    }

    /// Waits for a permit; idle connections are closed for it as long as it is waited for.
    ///
    /// # Cancel safety
    /// It does not wait any more when it is dropped.
    pub(in crate::worker) async fn acquire_permit(
        &self,
        permits: &Arc<Semaphore>,
    ) -> Option<OwnedSemaphorePermit> {
        struct WaiterGuard<'a>(&'a AtomicUsize);
        impl Drop for WaiterGuard<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Some(permit);
        }
        self.permit_waiters.fetch_add(1, Relaxed);
        let _waiter = WaiterGuard(&self.permit_waiters);
        self.evict();
        Arc::clone(permits).acquire_owned().await.ok()
    }

    /// Unfinished headers have grown by so many bytes. If they take too much, the largest of them are refused.
    pub(super) fn add_header_bytes(&self, bytes: usize) {
        let all = self.header_bytes.load(Relaxed) + bytes;
        self.header_bytes.store(all, Relaxed);
        if all <= self.limits.header_memory {
            return;
        }
        // Down to three quarters, so that this walk is rare.
        let mut excess = all - self.limits.header_memory / 4 * 3;
        let index = self.lock();
        let mut found = Vec::new();
        for connection in index.open.values().filter(|one| one.header_bytes.load(Relaxed) > SMALL_HEADER) {
            if connection.is_header_refused() {
                // It was refused before, and gives its memory back at its next read: counted again, every header of a
                // burst would be refused.
                excess = excess.saturating_sub(connection.header_bytes.load(Relaxed) - SMALL_HEADER);
            } else if !connection.is_commanded(ConnectionCommand::RefuseHeader)
                && !connection.is_overruled(ConnectionCommand::RefuseHeader)
            {
                found.push(connection);
            }
        }
        if excess == 0 {
            return;
        }
        // The largest first, and of equal ones those that have taken longest.
        found.sort_by_key(|connection| {
            (std::cmp::Reverse(connection.header_bytes.load(Relaxed)), connection.state().deadline())
        });
        for connection in found {
            connection.send_command(ConnectionCommand::RefuseHeader);
            excess = excess.saturating_sub(connection.header_bytes.load(Relaxed) - SMALL_HEADER);
            if excess == 0 {
                return;
            }
        }
    }

    pub(super) fn remove_header_bytes(&self, bytes: usize) {
        self.header_bytes.store(self.header_bytes.load(Relaxed).saturating_sub(bytes), Relaxed);
    }

    /// Open connections.
    pub(in crate::worker) fn len(&self) -> usize {
        self.lock().open.len()
    }

    /// Sends a command to every connection.
    pub(in crate::worker) fn send_all(&self, command: ConnectionCommand) {
        self.lock().open.values().for_each(|connection| connection.send_command(command));
    }

    /// Ends every connection now and counts them as cut; how many there were.
    pub(in crate::worker) fn abort_all(&self) -> usize {
        let aborted = self.len();
        self.send_all(ConnectionCommand::Abort);
        self.cell().count_aborted(aborted as u64);
        aborted
    }

    /// Waits until a connection is open: without one no clock runs, and a tick would only wake the worker.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(in crate::worker) async fn wait_until_any(&self) {
        while self.len() == 0 {
            self.opened.notified().await;
        }
    }

    /// Waits until no connection is open.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(in crate::worker) async fn wait_until_empty(&self) {
        loop {
            let closed = self.closed.notified();
            if self.len() == 0 {
                return;
            }
            closed.await;
        }
    }

    /// Ends one tick: connections past their deadline, and those that are to close, are sent their command (again).
    pub(in crate::worker) fn sweep(&self) {
        self.tick.fetch_add(1, Relaxed);
        let tick = self.tick();
        let due = |connection: &&Arc<Connection>| {
            connection.state().expiry_reason(tick).is_some()
                || connection.is_commanded(ConnectionCommand::CloseWhenIdle)
        };
        self.lock()
            .open
            .values()
            .filter(due)
            .for_each(|connection| connection.send_command(ConnectionCommand::CloseIfExpired));
        // Since then some may have become idle.
        (0..self.permit_waiters.load(Relaxed)).any(|_| !self.evict());
    }
}
