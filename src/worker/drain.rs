//! How a worker leaves (lame duck): answer everything that was begun, refuse nothing that was queued.

use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout_at;

use crate::config::schema::Drain;
use crate::http::Phase;
use crate::listener::Owner;
use crate::sys::socket;
use crate::task::Tasks;
use crate::worker::accept::Answer;
use crate::worker::accept::Door;
use crate::worker::accept::Hall;
use crate::worker::connection::Order;
use crate::worker::passed::accept_at;

/// How long a listener must have had nothing to give before it is closed: handshakes under way need a round trip.
const QUIET: Duration = Duration::from_millis(50);

/// The same for a seat that closes while the fleet goes on. Nobody waits for it, so even a client on another continent,
/// or one whose last packet was lost and is sent again, ends its handshake.
const SETTLED: Duration = Duration::from_secs(1);

/// Time within which another order to leave is the same order: a service manager that signals every process of its
/// unit tells a worker beside its supervisor, which tells it too.
const SAME_ORDER: Duration = Duration::from_secs(1);

/// Why a worker leaves, and with it what becomes of its seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// The fleet ends, and with it the slot: its queue must run dry and its listeners close.
    Stop,
    /// The slot ends and the fleet goes on: new connections meet other slots already; the queue must run dry and the
    /// listeners close, and the supervisor is told when they have.
    Close,
    /// A successor sits here, or will at once: listeners and queue are the successor's, and must not be touched.
    Pass,
    /// The supervisor is gone, and with it the fleet.
    Orphaned,
}

impl Leave {
    /// Whether the seat ends with this worker.
    fn closes(self) -> bool {
        matches!(self, Self::Stop | Self::Close | Self::Orphaned)
    }
}

/// Deadlines of one leaving.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    /// Why.
    pub(super) leave: Leave,
    grace: Duration,
    quiet: Duration,
    idle: Duration,
    /// When whatever still runs is cut.
    cut_at: Instant,
}

impl Schedule {
    /// As configured, for a worker that was told.
    pub(super) fn new(leave: Leave, drain: &Drain, now: Instant) -> Self {
        let cut_at = now + drain.timeout;
        let gentle = Self { leave, grace: Duration::ZERO, quiet: QUIET, idle: drain.idle, cut_at };
        match leave {
            Leave::Stop => Self { grace: drain.grace, ..gentle },
            Leave::Close => Self { quiet: SETTLED, ..gentle },
            Leave::Pass => gentle,
            Leave::Orphaned => gentle.of_orphan(),
        }
    }

    /// For a worker whose supervisor is gone: the next fleet needs its port at once, and its clients nothing less than
    /// they would have got.
    pub(super) fn of_orphan(self) -> Self {
        Self { leave: Leave::Orphaned, grace: Duration::ZERO, quiet: QUIET, ..self }
    }
}

/// Waits for an order to leave that is not the first one said twice; `cut_now` says whether the supervisor means it so.
///
/// The kernel keeps one signal of a kind: a worker that had no time for the first order finds both as one.
pub(super) async fn told_again(leave: &mut Signal, cut_now: impl Fn() -> bool) {
    if cut_now() {
        return;
    }
    let first = Instant::now();
    while leave.recv().await.is_some() {
        if cut_now() || first.elapsed() > SAME_ORDER {
            return;
        }
    }
    std::future::pending().await
}

/// Lets the queues run dry and closes the listeners, without resetting a connection that was made.
///
/// New connections are ignored by the kernel from the end of the grace on; what it had already taken is accepted. A
/// seat that is passed on is left as it is, and so is a queue that systemd owns.
pub(super) async fn close<A: Answer>(doors: &[Door<A>], schedule: &Schedule) {
    // Others take what is there; but there may be none that does, and nothing is left to chance.
    doors.iter().for_each(|door| _ = door.take_queued());
    if !schedule.leave.closes() {
        return;
    }
    let accepting = accept_at(doors);
    sleep(schedule.grace).await;
    let fleet_ends = schedule.leave != Leave::Close;
    let shared = doors.iter().filter(|_| fleet_ends).find(|door| door.balance.is_some());
    let doors: Vec<_> = doors.iter().filter(|door| door.owner == Owner::Slot).collect();
    for door in &doors {
        if let Err(error) = socket::refuse_new(&door.listener) {
            tracing::warn!(%error, "cannot keep new connections off a closing listener");
        }
    }
    drop(accepting);
    let quiet_by = schedule.cut_at.min(Instant::now() + 4 * schedule.quiet);
    let mut quiet_since = Instant::now();
    while (!doors.is_empty() || shared.is_some())
        && quiet_since.elapsed() < schedule.quiet
        && Instant::now() < quiet_by
    {
        let mut any = shared.is_some_and(Door::take_queued);
        for door in &doors {
            any |= door.accept_queued();
        }
        if any {
            quiet_since = Instant::now();
        }
        sleep(QUIET / 10).await;
    }
    for door in &doors {
        // The pause since the last look, and a door before this one, left time for another to come.
        door.accept_queued();
        if let Err(error) = socket::stop_listening(&door.listener) {
            tracing::debug!(%error, "listener was closed already");
        }
    }
}

/// Ends at once: the listeners of a fleet that ends, and every connection; returns how many there were.
///
/// A seat that closes while the fleet goes on is not closed: its queue is left to a successor.
pub(super) async fn cut<A: Answer>(hall: &Hall, doors: &[Door<A>], schedule: &Schedule) -> usize {
    if schedule.leave == Leave::Stop {
        for door in doors.iter().filter(|door| door.owner == Owner::Slot) {
            let _ = socket::stop_listening(&door.listener);
        }
    }
    cut_all(hall).await
}

async fn cut_all(hall: &Hall) -> usize {
    let cut = hall.connections.cut_all();
    sleep(QUIET).await;
    cut
}

/// Ends streams once new connections go elsewhere.
pub(super) async fn end_streams(phase: &Phase, schedule: &Schedule) {
    sleep(schedule.grace).await;
    phase.end_streams();
}

/// Waits for the tasks that run; what has not ended by the deadline is for another worker.
pub(super) async fn work(tasks: &Tasks, schedule: &Schedule) {
    if timeout_at(schedule.cut_at, tasks.leave()).await.is_err() {
        tracing::info!("gives back the tasks that still run");
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
    cut_all(hall).await
}

#[cfg(test)]
mod tests {
    use tokio::signal::unix::SignalKind;
    use tokio::signal::unix::signal;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn an_order_to_cut_needs_no_signal_of_its_own() {
        let mut leave = signal(SignalKind::window_change()).unwrap();
        let waited = async |leave: &mut Signal, cut: bool| {
            timeout(Duration::from_millis(50), told_again(leave, || cut)).await.is_ok()
        };
        assert!(waited(&mut leave, true).await, "both came as one");
        assert!(!waited(&mut leave, false).await);
    }
}
