//! Why a worker leaves, how it departs, and what ends it if it does not.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::http::Face;
use crate::http::Phase;
use crate::scoreboard::cell::Cell;
use crate::scoreboard::cell::Order;
use crate::sys::orphan;
use crate::task::Tasks;
use crate::worker::accept::Door;
use crate::worker::accept::Hall;
use crate::worker::drain;
use crate::worker::drain::Leave;
use crate::worker::drain::Schedule;

/// Time from the drain's deadline to the end of an orphan that does not end by itself.
pub(super) const ORPHAN_MARGIN: Duration = Duration::from_secs(2);

/// Says to all who ask that this worker leaves, and with it the fleet if that ends.
pub(super) fn begin(phase: &Phase, fleet_ends: bool) {
    if fleet_ends { phase.begin_stop() } else { phase.begin_drain() }
}

/// Bounds the time that this worker may outlive its supervisor.
pub(super) fn limit_orphan(grace: Duration) {
    if let Err(error) = orphan::kill_after_parent(grace) {
        tracing::debug!(%error, "the end of the supervisor would be the end of what is served");
    }
}

/// Why it is told to leave.
///
/// A service manager may tell every process of the fleet at once: what the supervisor makes of it is waited for, and
/// connections are still taken meanwhile.
pub(super) async fn ordered(cell: Cell<'_>) -> Leave {
    let until = Instant::now() + SUPERVISOR_TOLD;
    loop {
        match cell.order() {
            Order::Untold if Instant::now() < until => sleep(SUPERVISOR_TOLD / 20).await,
            Order::Untold | Order::Pass | Order::Cut => return Leave::Pass,
            Order::Close => return Leave::Close,
            Order::Stop => return Leave::Stop,
        }
    }
}

/// Time in which a supervisor that was told to stop beside its workers has told them too.
const SUPERVISOR_TOLD: Duration = Duration::from_millis(200);

/// Drains; a supervisor that dies meanwhile closes its seat, and a second order to leave ends it.
pub(super) async fn depart(
    hall: &Hall,
    doors: &[Door<Face>],
    schedule: &Schedule,
    mut report: File,
    lifeline: &Receiver,
    told_again: impl Future<Output = ()>,
    (phase, tasks): (&Phase, &Tasks),
) {
    let connections = async {
        tokio::join!(drain::close(doors, schedule), drain::end_streams(phase, schedule));
        if schedule.leave == Leave::Close {
            let _ = writeln!(report, "closed");
        }
        drain::finish(hall, schedule).await
    };
    // The worker claims no task from here on, also if its drain is cut short below.
    tasks.stop_taking();
    let drained = async { tokio::join!(connections, drain::work(tasks, schedule)).0 };
    let (cut, when) = tokio::select! {
        // The next fleet's supervisor tells what is left of the one before to leave: to a worker that knows already this
        // is no second order.
        biased;
        () = orphaned(lifeline) => {
            phase.end_streams();
            let schedule = schedule.of_orphan();
            drain::close(doors, &schedule).await;
            let connections = drain::finish(hall, &schedule);
            (tokio::join!(connections, drain::work(tasks, &schedule)).0, "at the drain's deadline")
        }
        () = told_again => {
            (drain::cut(hall, doors, schedule).await, "when it was told to leave once more")
        }
        cut = drained => (cut, "at the drain's deadline"),
    };
    tasks.give_back().await;
    if cut > 0 {
        tracing::warn!(connections = cut, "cut {cut} connections that were still open {when}");
    }
}

pub(super) async fn orphaned(lifeline: &Receiver) {
    if lifeline.readable().await.is_err() {
        std::future::pending::<()>().await;
    }
}
