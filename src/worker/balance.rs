//! Keeps the workers' numbers of connections even: one that has its share passes a new connection on.
//!
//! The kernel spreads connections by a hash, so that of 64 that are kept one of two workers may have 40. A connection
//! that was just accepted, of which nothing was read, goes through the fleet's shared queue to a worker that has less
//! than its share. That worker is woken, but the connection is not sent to it: the queue belongs to all, and the first
//! takes it that is awake and has room. So a worker that is stopped, hangs or dies holds up none that it was meant to
//! have: the one that has passed it on looks again after 2 ms and wakes others until it is gone.
//!
//! What is kept is moved only where that fell short: a worker that has had too many for a while ends some of them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::net::UnixDatagram;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::config::schema::Steering;
use crate::listener::shared;
use crate::listener::shared::Passed;
use crate::listener::shared::SharedQueue;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Cell;
use crate::scoreboard::shares::Asking;
use crate::scoreboard::shares::Share;
use crate::sys::time;
use crate::worker::Start;
use crate::worker::connection::Connections;
use crate::worker::heartbeat::BEAT;
use crate::worker::surplus::Surplus;
use crate::worker::ticks;

/// A connection that has been in the queue for so long is taken by any worker, however many it has.
const LATE: Duration = Duration::from_millis(100);

/// How often a worker that has more than others, or has put one there, looks whether the queue is still not empty.
const LOOK: Duration = Duration::from_millis(2);

/// A worker without a sign of life for so long is given no connection. The supervisor steers past it after as long.
const SILENT: Duration = Duration::from_secs(1);

/// How long a worker that is not its slot's first must have served before it is given connections: it has none yet, so
/// that one which dies at once, again and again, would be given all of them.
const SETTLED: Duration = Duration::from_secs(1);

/// Connections accepted in a second that say nothing yet about how long they last.
const MANY: u64 = 64;

/// A worker's part in keeping connections even.
#[derive(Debug)]
pub(super) struct Balance {
    queue: SharedQueue,
    /// Rung when there is one in the queue for this worker. Nothing but being watched is asked of it, for which it makes
    /// no difference that it is no socket; what could be asked of any descriptor is unsafe to make.
    bell: UnixDatagram,
    /// This worker has put one there, and sees to it that it does not stay.
    put: Notify,
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

impl Balance {
    /// None: the configuration does not want it, or the kernel has given the fleet no queue.
    ///
    /// # Errors
    /// When the runtime cannot watch the queue.
    pub(super) fn from_start(start: &mut Start) -> io::Result<Option<Arc<Self>>> {
        // Steered by its address, a client is to meet the one worker that may know it.
        let wanted = start.config.balance && start.config.steering == Steering::Kernel;
        let Some(queue) = start.shared.take().filter(|_| wanted) else { return Ok(None) };
        let bell = queue.bell(start.slot)?;
        Ok(Some(Arc::new(Self {
            queue,
            bell: UnixDatagram::from_std(bell.into())?,
            put: Notify::new(),
            scoreboard: Arc::clone(&start.scoreboard),
            slot: start.slot,
            cell: start.cell,
            generation: start.generation,
            leaving: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            second: AtomicU64::new(0),
            before: AtomicU64::new(0),
            turn: AtomicUsize::new(start.slot),
        })))
    }

    /// Takes connections that others pass on as soon as it is known to serve.
    pub(super) async fn settle(self: Arc<Self>) {
        let cell = self.cell();
        if !cell.is_first() {
            sleep(SETTLED).await;
        }
        if !self.leaving.load(Relaxed) {
            cell.set_takes(true);
        }
    }

    /// Ends kept connections beyond this worker's share for as long as it has too many of them.
    ///
    /// It looks when the heart beats, so that a worker at rest is not woken for it.
    pub(super) async fn even_out(self: Arc<Self>, connections: Arc<Connections>) {
        let mut ticks = ticks::every(BEAT * time::TICK);
        let (mut surplus, mut before) = (Surplus::default(), self.accepted.load(Relaxed));
        loop {
            ticks.tick().await;
            let accepted = self.accepted.load(Relaxed);
            let (came, open) = (accepted.wrapping_sub(before), self.cell().connections());
            before = accepted;
            let share = self.share(time::monotonic(), 0).filter(|_| self.cell().takes());
            let each = share.map(|share| share.each);
            // A beat is two thirds of a second, and a second is what `tolerated` is about.
            connections.end_after_answers(surplus.look(open, each, tolerated(came + came / 2, open)));
            // The worker that has put one into the queue and the one that was rung for it may both stand still.
            if self.scoreboard.connections_passing().0 > 0 {
                self.queue.ring(self.slot);
            }
        }
    }

    /// Gives and is given nothing any more.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Relaxed);
        self.cell().set_takes(false);
    }

    /// Passes a connection on if this worker has its share already; it is returned if it is to be kept.
    pub(super) fn pass(&self, stream: TcpStream) -> Option<TcpStream> {
        let now = time::monotonic();
        let (connections, accepted) = (self.cell().connections(), self.accepted(now));
        let has_more = |share: &Share| connections >= share.each + tolerated(accepted, connections);
        let share = self.share(now, 1).filter(has_more);
        let Some(share) = share.filter(|_| !self.leaving.load(Relaxed)) else { return Some(stream) };
        // Counted before it can arrive anywhere.
        self.scoreboard.connection_leaves();
        if shared::put(&self.queue.entrance, &stream, self.slot, now).is_ok() {
            self.ring(share);
            self.put.notify_one();
            return None;
        }
        // The queue is full, or the kernel has too many sockets on their way.
        self.scoreboard.connection_arrives();
        Some(stream)
    }

    /// The next connection that this worker is to take.
    ///
    /// # Cancel safety
    /// A connection is either still in the queue or returned, unless this fails.
    pub(super) async fn next(&self) -> io::Result<TcpStream> {
        loop {
            match self.look(time::monotonic()) {
                Ok(Some(passed)) => return self.take_over(passed),
                // Not cut short by the bell, which may be the very one that was just rung: two slots may share it.
                Ok(None) => sleep(LOOK).await,
                Err(empty) if empty.kind() == io::ErrorKind::WouldBlock => self.rung().await?,
                Err(refused) => return Err(refused),
            }
        }
    }

    /// The oldest connection in the queue, if this worker is to take it; none: it is left to others.
    fn look(&self, now: Duration) -> io::Result<Option<Passed>> {
        // Where none is passed on, what is there must not wait.
        if self.share(now, 0).is_some_and(|share| !self.has_room(&share)) {
            let since = shared::oldest(&self.queue.exit).ok_or(io::ErrorKind::WouldBlock)?;
            if now.saturating_sub(since) < LATE {
                // The one that was rung for may stand still, and with fewest it would be rung for again and again.
                self.queue.ring(self.turn.load(Relaxed) % self.scoreboard.slots().max(1));
                return Ok(None);
            }
        }
        shared::take(&self.queue.exit).map(Some)
    }

    /// Waits until the queue, which was empty, is to be looked at again.
    async fn rung(&self) -> io::Result<()> {
        let (passing, begun) = self.scoreboard.connections_passing();
        let rung = async {
            tokio::select! {
                biased;
                rung = self.bell.readable() => rung.map(|()| self.heard()),
                () = self.put.notified() => self.pause().await,
            }
        };
        if passing == 0 {
            return rung.await;
        }
        match timeout(LATE, rung).await {
            Ok(rung) => rung,
            Err(_) => {
                self.scoreboard.no_connection_passes(begun);
                Ok(())
            }
        }
    }

    /// Leaves what this worker has put into the queue to others for a moment, unless it is rung for meanwhile: if it
    /// slept through that, a client would wait.
    async fn pause(&self) -> io::Result<()> {
        match timeout(LOOK, self.bell.readable()).await {
            Ok(rung) => rung.map(|()| self.heard()),
            Err(_) => Ok(()),
        }
    }

    /// The next ring is one to wake up for: the kernel tells of each, whatever was read.
    fn heard(&self) {
        let _: io::Result<()> =
            self.bell.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
    }

    fn ring(&self, share: Share) {
        if let Some(slot) = share.fewest {
            self.queue.ring(slot);
        }
    }

    /// Takes a connection if there is one, however many this worker has.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none.
    pub(super) fn take(&self) -> io::Result<TcpStream> {
        self.take_over(shared::take(&self.queue.exit)?)
    }

    fn take_over(&self, Passed { stream, from }: Passed) -> io::Result<TcpStream> {
        // Before anything can fail: one that is counted as on its way for ever would raise the share of all workers.
        self.scoreboard.connection_arrives();
        let stream =
            stream.ok_or_else(|| io::Error::other("a passed connection has come without its socket"))?;
        if from != self.slot {
            self.cell().connection_passed();
        }
        TcpStream::from_std(stream)
    }

    /// One was accepted; how many were in this second.
    fn accepted(&self, now: Duration) -> u64 {
        let before = self.accepted.fetch_add(1, Relaxed);
        if self.second.swap(now.as_secs(), Relaxed) != now.as_secs() {
            self.before.store(before, Relaxed);
        }
        before + 1 - self.before.load(Relaxed)
    }

    fn cell(&self) -> Cell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    /// Whether this worker has less than its share.
    fn has_room(&self, share: &Share) -> bool {
        self.cell().takes() && self.cell().connections() < share.each
    }

    /// Its share of all connections once `more` have come.
    fn share(&self, now: Duration, more: u64) -> Option<Share> {
        let moved_since = now.saturating_sub(SILENT).as_millis();
        let turn = self.turn.load(Relaxed).wrapping_add(1);
        self.turn.store(turn, Relaxed);
        let asking = Asking {
            slot: self.slot,
            cell: self.cell,
            generation: self.generation,
            moved_since_ms: u64::try_from(moved_since).unwrap_or(u64::MAX),
            turn,
        };
        self.scoreboard.share_of_connections(&asking, more)
    }
}

/// How many connections beyond its share a worker keeps that has accepted so many in this second and has so many open.
///
/// Where connections are kept, none: one more is one more for long. Where many more come than are open they are short,
/// numbers even out by themselves, and passing one on would cost more than it is worth.
fn tolerated(accepted: u64, open: u64) -> u64 {
    if accepted > 2 * open + MANY { open / 4 + 2 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_of_short_connections_keeps_more_than_its_share() {
        assert_eq!(tolerated(40, 32), 0, "the first of 64 that are kept");
        assert_eq!(tolerated(700, 500), 0, "a crowd that stays");
        assert_eq!(tolerated(3000, 30), 9);
        assert_eq!(tolerated(3000, 0), 2);
    }
}
