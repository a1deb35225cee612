//! How a worker leaves (lame duck): answer everything that was begun, refuse nothing that was queued.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::sleep_until;
use tokio::time::timeout_at;

use crate::config::schema::Drain;
use crate::sys::socket;
use crate::worker::accept::Answer;
use crate::worker::accept::Door;
use crate::worker::accept::Hall;
use crate::worker::connection::Order;

/// How long a listener must have had nothing to give before it is closed: handshakes under way need a round trip.
const QUIET: Duration = Duration::from_millis(50);

/// How long an orphan may take in all: its successors need its port.
const ORPHAN: Duration = Duration::from_millis(600);

/// Deadlines of one leaving.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    grace: Duration,
    idle: Duration,
    /// When whatever still runs is cut.
    pub(super) cut_at: Instant,
    /// What becomes of the seat.
    seat: Seat,
}

/// What becomes of the seat a worker leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    /// The fleet ends, and with it the slot: its queue must run dry and its listeners close.
    Closed,
    /// A successor takes it: listeners and queue are the successor's, and must not be touched.
    Passed,
}

impl Schedule {
    /// As configured, for a fleet that stops.
    pub(super) fn stopping(drain: &Drain, now: Instant) -> Self {
        Self { grace: drain.grace, idle: drain.idle, cut_at: now + drain.timeout, seat: Seat::Closed }
    }

    /// For a worker that somebody told to leave while the fleet goes on. New connections wait for its successor, so
    /// it does not wait for idle ones.
    pub(super) fn leaving(drain: &Drain, now: Instant) -> Self {
        Self { grace: Duration::ZERO, idle: Duration::ZERO, cut_at: now + drain.timeout, seat: Seat::Passed }
    }

    /// For a worker whose supervisor is gone.
    pub(super) fn orphaned(now: Instant) -> Self {
        Self { grace: Duration::ZERO, idle: QUIET, cut_at: now + ORPHAN, seat: Seat::Closed }
    }
}

/// Lets the queues run dry and closes the listeners, without resetting a connection that was made.
///
/// New connections are ignored by the kernel from the end of the grace on; what it had already taken is accepted.
pub(super) async fn close<A: Answer>(doors: &[Door<A>], schedule: &Schedule) {
    if schedule.seat == Seat::Passed {
        return;
    }
    let accepting: JoinSet<()> = doors.iter().map(|door| door.clone().accept()).collect();
    sleep(schedule.grace).await;
    for door in doors {
        if let Err(error) = socket::refuse_new(&door.listener) {
            tracing::warn!(%error, "cannot keep new connections off a closing listener");
        }
    }
    drop(accepting);
    let quiet_by = schedule.cut_at.min(Instant::now() + 4 * QUIET);
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < QUIET && Instant::now() < quiet_by {
        for door in doors {
            if door.accept_queued() {
                quiet_since = Instant::now();
            }
        }
        sleep(QUIET / 10).await;
    }
    for door in doors {
        if let Err(error) = socket::stop_listening(&door.listener) {
            tracing::debug!(%error, "listener was closed already");
        }
    }
}

/// Waits for the open connections; returns how many had to be cut.
///
/// Idle ones stay open for a while, so that a request its client has already sent is answered, not reset.
pub(super) async fn finish(hall: &Hall, schedule: &Schedule) -> usize {
    let idle_until = schedule.cut_at.min(Instant::now() + schedule.idle);
    if timeout_at(idle_until, hall.connections.empty()).await.is_ok() {
        return 0;
    }
    hall.connections.tell_all(Order::Finish);
    if timeout_at(schedule.cut_at, hall.connections.empty()).await.is_ok() {
        return 0;
    }
    let cut = hall.connections.cut_all();
    sleep_until(Instant::now() + QUIET).await;
    cut
}
