//! Why a worker leaves, how it departs, and what ends it if it does not.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep};

use crate::http::{DrainState, HttpService};
use crate::scoreboard::cell::{DrainOrder, WorkerCell};
use crate::sys::parent_exit;
use crate::tasks::TaskQueue;
use crate::worker::acceptor::{Acceptor, ConnectionServer};
use crate::worker::drain;
use crate::worker::drain::{DrainKind, DrainPlan};

/// Time from the drain's deadline to the end of an orphan that does not end by itself.
pub(super) const ORPHAN_MARGIN: Duration = Duration::from_secs(2);

/// Says to all who ask that this worker leaves, and with it the fleet if that ends.
pub(super) fn announce(phase: &DrainState, fleet_ends: bool) {
    if fleet_ends { phase.start_stop() } else { phase.start_drain() }
}

/// Bounds the time that this worker may outlive its supervisor.
pub(super) fn set_orphan_timeout(grace: Duration) {
    if let Err(error) = parent_exit::exit_after_parent(grace) {
        tracing::debug!(%error, "the end of the supervisor would be the end of what is served");
    }
}

/// Why it is told to leave.
///
/// A service manager may tell every process of the fleet at once: what the supervisor makes of it is waited for, and
/// connections are still taken meanwhile.
pub(super) async fn await_drain_order(cell: WorkerCell<'_>) -> DrainKind {
    let until = Instant::now() + ORDER_TIMEOUT;
    loop {
        match cell.drain_order() {
            DrainOrder::None if Instant::now() < until => sleep(ORDER_TIMEOUT / 20).await,
            DrainOrder::None | DrainOrder::HandOver | DrainOrder::Abort => return DrainKind::HandOver,
            DrainOrder::Retire => return DrainKind::RetireSlot,
            DrainOrder::Stop => return DrainKind::Stop,
        }
    }
}

/// Time in which a supervisor that was told to stop beside its workers has told them too.
const ORDER_TIMEOUT: Duration = Duration::from_millis(200);

/// Drains; a supervisor that dies meanwhile closes its seat, and a second order to leave ends it.
pub(super) async fn drain_and_exit(
    server: &ConnectionServer,
    acceptors: &[Acceptor<HttpService>],
    plan: &DrainPlan,
    mut status_pipe: File,
    lifeline: &Receiver,
    second_order: impl Future<Output = ()>,
    (phase, tasks): (&DrainState, &TaskQueue),
) {
    let connections = async {
        tokio::join!(drain::close_listeners(acceptors, plan), drain::end_streams(phase, plan));
        if plan.kind == DrainKind::RetireSlot {
            let _ = writeln!(status_pipe, "closed");
        }
        drain::wait_for_connections(server, plan).await
    };
    // The worker claims no task from here on, also if its drain is cut short below.
    tasks.stop_claiming();
    let drained = async { tokio::join!(connections, drain::wait_for_tasks(tasks, plan)).0 };
    let (aborted, when) = tokio::select! {
        // The next fleet's supervisor tells what is left of the one before to leave: to a worker that knows already this
        // is no second order.
        biased;
        () = wait_until_orphaned(lifeline) => {
            phase.close_streams();
            let plan = plan.for_orphan();
            drain::close_listeners(acceptors, &plan).await;
            let connections = drain::wait_for_connections(server, &plan);
            (tokio::join!(connections, drain::wait_for_tasks(tasks, &plan)).0, "at the drain's deadline")
        }
        () = second_order => {
            (drain::abort(server, acceptors, plan).await, "when it was told to leave once more")
        }
        aborted = drained => (aborted, "at the drain's deadline"),
    };
    tasks.release_running().await;
    if aborted > 0 {
        tracing::warn!(connections = aborted, "cut {aborted} connections that were still open {when}");
    }
}

pub(super) async fn wait_until_orphaned(lifeline: &Receiver) {
    if lifeline.readable().await.is_err() {
        std::future::pending::<()>().await;
    }
}
