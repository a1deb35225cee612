//! How a worker drains (lame duck): it answers everything that was begun and refuses nothing that was queued.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::Signal;
use tokio::time::{Instant, sleep, timeout_at};

use crate::application::RunningApp;
use crate::config::settings::DrainConfig;
use crate::http::{DrainState, HttpService};
use crate::listener::SocketOwner;
use crate::scoreboard::cell::{DrainOrder, WorkerCell};
use crate::sys::{parent_exit, tcp_socket};
use crate::tasks::TaskQueue;
use crate::worker::acceptor::{Acceptor, spawn_acceptors};
use crate::worker::connection::ConnectionCommand;
use crate::worker::connection::serve::ConnectionServer;
use crate::worker::handler::RequestHandler;

/// How long a listener must have had nothing to give before it is closed: handshakes under way need a round trip.
const QUEUE_QUIET: Duration = Duration::from_millis(50);

/// The same for a slot that ends while the fleet goes on. Nothing waits for it, so even a client on another continent,
/// or one whose last packet was lost and is sent again, ends its handshake.
const QUEUE_QUIET_RETIRING: Duration = Duration::from_secs(1);

/// Time within which another order to leave is the same order: a service manager that signals every process of its
/// unit signals a worker beside its supervisor, which signals it too.
const SAME_ORDER_WINDOW: Duration = Duration::from_secs(1);

/// Why a worker drains, and with it what becomes of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DrainKind {
    /// The fleet ends, and with it the slot: its queue must run dry and its listeners close.
    Stop,
    /// The slot ends and the fleet goes on: new connections meet other slots already; the queue must run dry and the
    /// listeners close, and the supervisor reads `closed` from the status pipe when they have.
    RetireSlot,
    /// A successor has the slot, or will at once: listeners and queue are the successor's, and must not be touched.
    HandOver,
    /// The same, because background work of the application panicked: the supervisor takes it for a crash.
    Failed,
    /// The supervisor is gone, and with it the fleet.
    Orphaned,
}

impl DrainKind {
    /// What the supervisor reads from the status pipe.
    pub(super) fn status_line(self) -> &'static str {
        match self {
            Self::Failed => "failing",
            Self::Stop | Self::RetireSlot | Self::HandOver | Self::Orphaned => "leaving",
        }
    }

    /// Whether listeners of this owner end with this worker.
    fn ends(self, owner: SocketOwner) -> bool {
        match owner {
            SocketOwner::Slot => self.closes_listeners(),
            // Other slots accept from it as long as the fleet goes on.
            SocketOwner::Fleet => matches!(self, Self::Stop | Self::Orphaned),
            SocketOwner::Systemd => false,
        }
    }

    /// Whether the slot ends with this worker.
    fn closes_listeners(self) -> bool {
        matches!(self, Self::Stop | Self::RetireSlot | Self::Orphaned)
    }
}

/// Deadlines of one leaving.
#[derive(Debug, Clone, Copy)]
pub(super) struct DrainPlan {
    /// Why.
    pub(super) kind: DrainKind,
    grace: Duration,
    quiet: Duration,
    idle_grace: Duration,
    /// When whatever still runs is cut.
    pub(super) abort_at: Instant,
}

impl DrainPlan {
    /// As configured.
    pub(super) fn new(kind: DrainKind, drain: &DrainConfig, now: Instant) -> Self {
        let abort_at = now + drain.timeout;
        let gentle =
            Self { kind, grace: Duration::ZERO, quiet: QUEUE_QUIET, idle_grace: drain.idle_grace, abort_at };
        match kind {
            DrainKind::Stop => Self { grace: drain.grace, ..gentle },
            DrainKind::RetireSlot => Self { quiet: QUEUE_QUIET_RETIRING, ..gentle },
            DrainKind::HandOver | DrainKind::Failed => gentle,
            DrainKind::Orphaned => gentle.for_orphan(),
        }
    }

    /// For a worker whose supervisor is gone: the next fleet needs its port at once, and its clients nothing less than
    /// they would have got.
    fn for_orphan(self) -> Self {
        Self { kind: DrainKind::Orphaned, grace: Duration::ZERO, quiet: QUEUE_QUIET, ..self }
    }
}

/// Waits for a second drain order, and not for the first one sent twice; `abort_now`: whether the supervisor's order is to
/// abort.
///
/// The kernel keeps one signal of a kind: a worker that had no time for the first order finds both as one.
pub(super) async fn second_order(terminate: &mut Signal, abort_now: impl Fn() -> bool) {
    if abort_now() {
        return;
    }
    let first = Instant::now();
    while terminate.recv().await.is_some() {
        if abort_now() || first.elapsed() > SAME_ORDER_WINDOW {
            return;
        }
    }
    std::future::pending().await
}

/// Lets the queues run dry and closes the listeners, without resetting a connection that was made.
///
/// New connections are ignored by the kernel from the end of the grace on; what it had already taken is accepted. A
/// slot that is handed over is left as it is, and so is a queue that others accept from.
async fn close_listeners<A: RequestHandler>(acceptors: &[Acceptor<A>], plan: &DrainPlan) {
    // Others take what is there; but there may be none that does, and nothing is left to chance.
    acceptors.iter().for_each(|acceptor| _ = acceptor.accept_transferred_backlog());
    if !plan.kind.closes_listeners() {
        return;
    }
    let accepting = spawn_acceptors(acceptors);
    sleep(plan.grace).await;
    let fleet_ends = plan.kind != DrainKind::RetireSlot;
    let shared = acceptors.iter().filter(|_| fleet_ends).find(|acceptor| acceptor.balancer.is_some());
    let owned_acceptors: Vec<_> =
        acceptors.iter().filter(|acceptor| plan.kind.ends(acceptor.owner)).collect();
    for acceptor in &owned_acceptors {
        let Some(listener) = acceptor.listener.get() else { continue };
        if let Err(error) = listener.refuse_new_connections() {
            tracing::warn!(%error, "cannot keep new connections off a closing listener");
        }
    }
    drop(accepting);
    let quiet_by = plan.abort_at.min(Instant::now() + 4 * plan.quiet);
    let mut quiet_since = Instant::now();
    while (!owned_acceptors.is_empty() || shared.is_some())
        && quiet_since.elapsed() < plan.quiet
        && Instant::now() < quiet_by
    {
        let mut any = shared.is_some_and(Acceptor::accept_transferred_backlog);
        for acceptor in &owned_acceptors {
            any |= acceptor.accept_backlog();
        }
        if any {
            quiet_since = Instant::now();
        }
        sleep(QUEUE_QUIET / 10).await;
    }
    for acceptor in &owned_acceptors {
        // Since the last look there was time for another to come.
        acceptor.accept_backlog();
        let Some(listener) = acceptor.listener.get() else { continue };
        if let Err(error) = tcp_socket::shut_down_listener(&*listener) {
            tracing::debug!(%error, "listener was closed already");
        }
    }
}

/// Ends at once: the listeners of a fleet that ends, and every connection; returns how many there were.
///
/// A slot that ends while the fleet goes on keeps its listeners: its queue is left to a successor.
async fn abort<A: RequestHandler>(
    server: &ConnectionServer,
    acceptors: &[Acceptor<A>],
    plan: &DrainPlan,
) -> usize {
    if plan.kind == DrainKind::Stop {
        for acceptor in acceptors.iter().filter(|acceptor| plan.kind.ends(acceptor.owner)) {
            let _ = acceptor.listener.get().map(|listener| tcp_socket::shut_down_listener(&*listener));
        }
    }
    abort_connections(server).await
}

async fn abort_connections(server: &ConnectionServer) -> usize {
    let aborted = server.connections.abort_all();
    sleep(QUEUE_QUIET).await;
    aborted
}

/// Ends streams once new connections go elsewhere.
async fn end_streams(phase: &DrainState, plan: &DrainPlan) {
    sleep(plan.grace).await;
    phase.close_streams();
}

/// Waits for the tasks that run; what has not ended by the deadline is for another worker.
async fn wait_for_tasks(tasks: &TaskQueue, plan: &DrainPlan) {
    if timeout_at(plan.abort_at, tasks.drain()).await.is_err() {
        tracing::info!("releasing running tasks");
    }
}

/// Waits for the work that the application has started beside its requests, until this time.
pub(super) async fn wait_for_spawned(phase: &DrainState, until: Instant) {
    if timeout_at(until, phase.work().all_ended()).await.is_err() {
        let count = phase.work().running();
        tracing::warn!(count, "work of the application abandoned at drain timeout: {count}");
    }
}

/// Waits for the open connections; returns how many had to be cut.
///
/// Idle ones stay open for a while, so that a request its client has already sent is answered, not reset.
async fn wait_for_connections(server: &ConnectionServer, plan: &DrainPlan) -> usize {
    let idle_until = plan.abort_at.min(Instant::now() + plan.idle_grace);
    if timeout_at(idle_until, server.connections.wait_until_empty()).await.is_ok() {
        return 0;
    }
    server.connections.send_all(ConnectionCommand::CloseWhenIdle);
    if timeout_at(plan.abort_at, server.connections.wait_until_empty()).await.is_ok() {
        return 0;
    }
    abort_connections(server).await
}

/// Time from the drain's deadline to the end of an orphan that does not end by itself.
pub(super) const ORPHAN_MARGIN: Duration = Duration::from_secs(2);

/// Makes this worker's draining, and the fleet's end, visible to probes and handlers.
pub(super) fn announce(phase: &DrainState, fleet_ends: bool) {
    if fleet_ends { phase.start_stop() } else { phase.start_drain() }
}

/// Bounds the time that this worker may outlive its supervisor.
pub(super) fn set_orphan_timeout(grace: Duration) {
    if let Err(error) = parent_exit::exit_after_parent(grace) {
        tracing::debug!(%error, "the end of the supervisor would be the end of what is served");
    }
}

/// Waits for the drain order behind a SIGTERM.
///
/// A service manager may signal every process of the fleet at once: the supervisor's order follows within
/// [`ORDER_TIMEOUT`], and connections are still taken meanwhile.
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

/// Time in which a supervisor that was signalled beside its workers has written its order.
const ORDER_TIMEOUT: Duration = Duration::from_millis(200);

/// Drains. When the supervisor dies meanwhile the slot ends, and a second drain order cuts what is left.
pub(super) async fn drain_and_exit(
    server: &ConnectionServer,
    acceptors: &[Acceptor<HttpService>],
    plan: &DrainPlan,
    mut status_pipe: File,
    lifeline: &Receiver,
    second_order: impl Future<Output = ()>,
    (phase, tasks, app): (&DrainState, &TaskQueue, &RunningApp),
) {
    let connections = async {
        tokio::join!(close_listeners(acceptors, plan), end_streams(phase, plan));
        if plan.kind == DrainKind::RetireSlot {
            let _ = writeln!(status_pipe, "closed");
        }
        wait_for_connections(server, plan).await
    };
    // The worker claims no task from here on, also if its drain is cut short below.
    tasks.stop_claiming();
    let ended = async |plan: &DrainPlan| {
        tokio::join!(wait_for_tasks(tasks, plan), app.drain(plan.abort_at));
    };
    // Work is waited for when nothing is left that could begin more of it: a request that ends during the drain may.
    let drained = async {
        let aborted = tokio::join!(connections, ended(plan)).0;
        wait_for_spawned(phase, plan.abort_at).await;
        aborted
    };
    let (aborted, when) = tokio::select! {
        // The next fleet's supervisor signals what is left of the one before: for an orphan this is no second order.
        biased;
        () = wait_until_orphaned(lifeline) => {
            phase.close_streams();
            let plan = plan.for_orphan();
            close_listeners(acceptors, &plan).await;
            let connections = wait_for_connections(server, &plan);
            let aborted = tokio::join!(connections, ended(&plan)).0;
            wait_for_spawned(phase, plan.abort_at).await;
            (aborted, "at drain timeout")
        }
        () = second_order => {
            (abort(server, acceptors, plan).await, "by a second drain order")
        }
        aborted = drained => (aborted, "at drain timeout"),
    };
    tasks.release_running().await;
    if aborted > 0 {
        tracing::warn!(count = aborted, "connections aborted {when}");
    }
}

pub(super) async fn wait_until_orphaned(lifeline: &Receiver) {
    if lifeline.readable().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::signal::unix::{SignalKind, signal};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn an_order_to_abort_needs_no_signal_of_its_own() {
        let mut terminate = signal(SignalKind::window_change()).unwrap();
        let waited = async |terminate: &mut Signal, abort: bool| {
            timeout(Duration::from_millis(50), second_order(terminate, || abort)).await.is_ok()
        };
        assert!(waited(&mut terminate, true).await, "both came as one");
        assert!(!waited(&mut terminate, false).await);
    }
}
