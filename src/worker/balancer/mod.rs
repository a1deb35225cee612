//! Keeps the workers' numbers of connections even: one that has its share passes a new connection on.
//!
//! The kernel spreads connections by a hash, so that of 64 that are kept one of two workers may have 40. A connection
//! that was just accepted, of which nothing was read, goes through the fleet's shared queue to a worker that has less
//! than its share. That worker is woken, but the connection is not sent to it: the queue belongs to all, and the first
//! takes it that is awake and has room. So a worker that is stopped, hangs or dies holds up none that it was meant to
//! have: the one that has passed it on looks again after 2 ms and wakes others until it is gone.
//!
//! What is kept is moved only where that fell short: a worker that has had too many for a while ends some of them.

pub(in crate::worker) mod surplus;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::config::settings::SteeringMode;
use crate::listener::shared_queue;
use crate::listener::shared_queue::{SharedConnection, SharedQueue};
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::WorkerCell;
use crate::scoreboard::connection_share::{ConnectionShare, ShareQuery, connection_share};
use crate::sys::clock;
use crate::worker::background::heartbeat::HEARTBEAT_TICKS;
use crate::worker::balancer::surplus::SurplusDetector;
use crate::worker::connection::ConnectionTable;
use crate::worker::interval;
use crate::worker::options::WorkerOptions;

/// A connection that has been in the queue for so long is taken by any worker, however many it has.
const OVERDUE: Duration = Duration::from_millis(100);

/// How often a worker that has more than others, or has put one there, looks whether the queue is still not empty.
const RECHECK_INTERVAL: Duration = Duration::from_millis(2);

/// A worker without a sign of life for so long is given no connection. The supervisor steers past it after as long.
const HEARTBEAT_MAX_AGE: Duration = Duration::from_secs(1);

/// How long a worker that is not its slot's first must have served before it is given connections: it has none yet, so
/// that one which dies at once, again and again, would be given all of them.
const SUCCESSOR_DELAY: Duration = Duration::from_secs(1);

/// Connections accepted in a second that say nothing yet about how long they last.
const MIN_ACCEPT_RATE: u64 = 64;

/// A worker's part in keeping connections even.
#[derive(Debug)]
pub(super) struct ConnectionBalancer {
    queue: SharedQueue,
    /// Readable when there is one in the queue for this worker. It is an eventfd in the type of a socket, because it is only
    /// polled, and a type for any descriptor is unsafe to make.
    wakeup: UnixDatagram,
    /// This worker has put one there, and sees to it that it does not stay.
    enqueued: Notify,
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
    generation: u64,
    leaving: AtomicBool,
    /// Connections accepted in all.
    accepted: AtomicU64,
    /// A second of the monotonic clock, and how many had been accepted before it.
    second: AtomicU64,
    before: AtomicU64,
    /// Where the next look at a large fleet begins.
    turn: AtomicUsize,
}

impl ConnectionBalancer {
    /// None: the configuration does not want it, or the kernel has given the fleet no queue.
    ///
    /// # Errors
    /// When the runtime cannot watch the queue.
    pub(super) fn from_options(options: &mut WorkerOptions) -> io::Result<Option<Arc<Self>>> {
        // Steered by its address, a client is to meet the one worker that may know it.
        let enabled = options.config.balance && options.config.steering == SteeringMode::Kernel;
        let Some(queue) = options.shared_queue.take().filter(|_| enabled) else { return Ok(None) };
        let bell = queue.wake_fd(options.slot)?;
        Ok(Some(Arc::new(Self {
            queue,
            wakeup: UnixDatagram::from_std(bell.into())?,
            enqueued: Notify::new(),
            scoreboard: Arc::clone(&options.scoreboard),
            slot: options.slot,
            cell: options.cell,
            generation: options.generation,
            leaving: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            second: AtomicU64::new(0),
            before: AtomicU64::new(0),
            turn: AtomicUsize::new(options.slot),
        })))
    }

    /// Takes connections that others pass on as soon as it is known to serve.
    pub(super) async fn start_accepting_transfers(self: Arc<Self>) {
        let cell = self.cell();
        if !cell.is_first_incarnation() {
            sleep(SUCCESSOR_DELAY).await;
        }
        if !self.leaving.load(Relaxed) {
            cell.set_accepts_transfers(true);
        }
    }

    /// Ends kept connections beyond this worker's share for as long as it has too many of them.
    ///
    /// It checks with every heartbeat, so that a worker at rest is not woken for it.
    pub(super) async fn close_surplus(self: Arc<Self>, connections: Arc<ConnectionTable>) {
        let mut ticks = interval::aligned_interval(HEARTBEAT_TICKS * clock::TICK);
        let (mut surplus, mut before) = (SurplusDetector::default(), self.accepted.load(Relaxed));
        loop {
            ticks.tick().await;
            let accepted = self.accepted.load(Relaxed);
            let (came, open) = (accepted.wrapping_sub(before), self.cell().connections());
            before = accepted;
            let share = self.share(clock::monotonic(), 0).filter(|_| self.cell().accepts_transfers());
            let each = share.map(|share| share.target);
            // A heartbeat is two thirds of a second, and `tolerated_excess` is about a second.
            connections.set_surplus(surplus.check(open, each, tolerated_excess(came + came / 2, open)));
            // The worker that has put one into the queue and the one that was rung for it may both stand still.
            if self.scoreboard.pending_transfers().0 > 0 {
                self.queue.wake(self.slot);
            }
        }
    }

    /// Gives and is given nothing any more.
    pub(super) fn stop(&self) {
        self.leaving.store(true, Relaxed);
        self.cell().set_accepts_transfers(false);
    }

    /// Passes a connection on if this worker has its share already; it is returned if it is to be kept.
    pub(super) fn retain_or_transfer(&self, stream: TcpStream) -> Option<TcpStream> {
        let now = clock::monotonic();
        let (connections, accepted) = (self.cell().connections(), self.record_accepted(now));
        let has_more =
            |share: &ConnectionShare| connections >= share.target + tolerated_excess(accepted, connections);
        let share = self.share(now, 1).filter(has_more);
        let Some(share) = share.filter(|_| !self.leaving.load(Relaxed)) else { return Some(stream) };
        // Counted before it can arrive anywhere.
        self.scoreboard.start_transfer();
        if shared_queue::enqueue(&self.queue.send_end, &stream, self.slot, now).is_ok() {
            self.wake_least_loaded(share);
            self.enqueued.notify_one();
            return None;
        }
        // The queue is full, or the kernel has too many sockets on their way.
        self.scoreboard.finish_transfer();
        Some(stream)
    }

    /// The next connection that this worker is to take.
    ///
    /// # Cancel safety
    /// A connection is either still in the queue or returned, unless this fails.
    pub(super) async fn next_transferred(&self) -> io::Result<TcpStream> {
        loop {
            match self.poll_queue(clock::monotonic()) {
                Ok(Some(passed)) => return self.receive_transferred(passed),
                // Not cut short by the bell, which may be the very one that was just rung: two slots may share it.
                Ok(None) => sleep(RECHECK_INTERVAL).await,
                Err(empty) if empty.kind() == io::ErrorKind::WouldBlock => self.wait_for_queue().await?,
                Err(refused) => return Err(refused),
            }
        }
    }

    /// The oldest connection in the queue, if this worker is to take it; none: it is left to others.
    fn poll_queue(&self, now: Duration) -> io::Result<Option<SharedConnection>> {
        // Where none is passed on, what is there must not wait.
        if self.share(now, 0).is_some_and(|share| !self.has_room(&share)) {
            let since =
                shared_queue::oldest_enqueued_at(&self.queue.receive_end).ok_or(io::ErrorKind::WouldBlock)?;
            if now.saturating_sub(since) < OVERDUE {
                // The one that was rung for may stand still, and with fewest it would be rung for again and again.
                self.queue.wake(self.turn.load(Relaxed) % self.scoreboard.slots().max(1));
                return Ok(None);
            }
        }
        shared_queue::dequeue(&self.queue.receive_end).map(Some)
    }

    /// Waits until the queue, which was empty, is to be looked at again.
    async fn wait_for_queue(&self) -> io::Result<()> {
        let (passing, started) = self.scoreboard.pending_transfers();
        let rung = async {
            tokio::select! {
                biased;
                rung = self.wakeup.readable() => rung.map(|()| self.clear_wakeup()),
                () = self.enqueued.notified() => self.pause().await,
            }
        };
        if passing == 0 {
            return rung.await;
        }
        match timeout(OVERDUE, rung).await {
            Ok(rung) => rung,
            Err(_) => {
                self.scoreboard.reset_pending_transfers(started);
                Ok(())
            }
        }
    }

    /// Leaves what this worker has put into the queue to others for a moment, unless it is rung for meanwhile: if it
    /// slept through that, a client would wait.
    async fn pause(&self) -> io::Result<()> {
        match timeout(RECHECK_INTERVAL, self.wakeup.readable()).await {
            Ok(rung) => rung.map(|()| self.clear_wakeup()),
            Err(_) => Ok(()),
        }
    }

    /// From now on the next wake-up counts: the kernel reports each, whether the one before was read or not.
    fn clear_wakeup(&self) {
        let _: io::Result<()> =
            self.wakeup.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
    }

    fn wake_least_loaded(&self, share: ConnectionShare) {
        if let Some(slot) = share.least_loaded_slot {
            self.queue.wake(slot);
        }
    }

    /// Takes a connection if there is one, however many this worker has.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none.
    pub(super) fn try_take(&self) -> io::Result<TcpStream> {
        self.receive_transferred(shared_queue::dequeue(&self.queue.receive_end)?)
    }

    fn receive_transferred(
        &self,
        SharedConnection { stream, from_slot: from }: SharedConnection,
    ) -> io::Result<TcpStream> {
        // Before anything can fail: one that is counted as on its way for ever would raise the share of all workers.
        self.scoreboard.finish_transfer();
        let stream =
            stream.ok_or_else(|| io::Error::other("a passed connection has come without its socket"))?;
        if from != self.slot {
            self.cell().count_connection_transferred();
        }
        TcpStream::from_std(stream)
    }

    /// One was accepted; how many were in this second.
    fn record_accepted(&self, now: Duration) -> u64 {
        let before = self.accepted.fetch_add(1, Relaxed);
        if self.second.swap(now.as_secs(), Relaxed) != now.as_secs() {
            self.before.store(before, Relaxed);
        }
        before + 1 - self.before.load(Relaxed)
    }

    fn cell(&self) -> WorkerCell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    /// Whether this worker has less than its share.
    fn has_room(&self, share: &ConnectionShare) -> bool {
        self.cell().accepts_transfers() && self.cell().connections() < share.target
    }

    /// Its share of all connections once `more` have come.
    fn share(&self, now: Duration, more: u64) -> Option<ConnectionShare> {
        let moved_since = now.saturating_sub(HEARTBEAT_MAX_AGE).as_millis();
        let turn = self.turn.load(Relaxed).wrapping_add(1);
        self.turn.store(turn, Relaxed);
        let query = ShareQuery {
            slot: self.slot,
            cell: self.cell,
            generation: self.generation,
            heartbeat_since_ms: u64::try_from(moved_since).unwrap_or(u64::MAX),
            start_slot: turn,
        };
        connection_share(&self.scoreboard, &query, more)
    }
}

/// How many connections beyond its share a worker keeps that has accepted so many in this second and has so many open.
///
/// Where connections are kept, none: one more is one more for long. Where many more come than are open they are short,
/// numbers even out by themselves, and passing one on would cost more than it is worth.
fn tolerated_excess(accepted: u64, open: u64) -> u64 {
    if accepted > 2 * open + MIN_ACCEPT_RATE { open / 4 + 2 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_of_short_connections_keeps_more_than_its_share() {
        assert_eq!(tolerated_excess(40, 32), 0, "the first of 64 that are kept");
        assert_eq!(tolerated_excess(700, 500), 0, "a crowd that stays");
        assert_eq!(tolerated_excess(3000, 30), 9);
        assert_eq!(tolerated_excess(3000, 0), 2);
    }
}
