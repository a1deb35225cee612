//! Builds what a worker consists of: what its connections share, what answers requests, what runs beside them.

use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::application::{AppError, AppFactory, AppParts, Lifecycle};
use crate::broadcasts::BroadcastHub;
use crate::config::settings::Config;
use crate::counters::batched::BatchedCounters;
use crate::http;
use crate::http::checks::AppChecks;
use crate::http::{AppServices, Dashboard, DrainState, FleetHandle, HttpService, InstanceIdentity};
use crate::listener::{Listener, ListeningSocket, SlotListeners};
use crate::panics::panic_message;
use crate::redis::{RedisClient, RedisError};
use crate::request_state::StateClient;
use crate::sys::{fd, process, tcp_socket};
use crate::tasks::{TaskKindError, TaskQueue};
use crate::worker::accepting_socket::{AcceptingSocket, SharedSocket};
use crate::worker::acceptor::Acceptor;
use crate::worker::admission::AdmissionGate;
use crate::worker::balancer::ConnectionBalancer;
use crate::worker::connection::serve::{ConnectionServer, ConnectionStart, connection_builder};
use crate::worker::connection::{ConnectionLimits, ConnectionTable, DiscardLimit, RefusalResponses, TICK};
use crate::worker::options::WorkerOptions;

/// Connections that operators may have open at once.
const ADMIN_CONNECTIONS: usize = 64;

/// Bytes that the kernel keeps for a client beyond what is on its way; enough that a fast one never waits for us.
const SEND_QUEUE_MAX: u32 = 128 << 10;

/// How long at least a client may be out of reach, or take nothing, before its connection is given up.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(30);

/// Refused connections that are waited for at once until they are closed.
const REJECTION_PERMITS: usize = 64;

/// Descriptors a worker needs besides its connections.
const RESERVED_FDS: usize = 64;

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum BootError {
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("cannot take the listeners: {0}")]
    Listeners(io::Error),
    #[error("cannot take signals: {0}")]
    Signals(io::Error),
    #[error("cannot watch the supervisor: {0}")]
    Lifeline(io::Error),
    #[error("cannot set up Redis: {0}")]
    Redis(#[from] RedisError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error("the application cannot be served: {0}")]
    Routes(String),
    #[error("the application cannot be served: {0}")]
    Tasks(#[from] TaskKindError),
}

/// The worker's listeners: the public ones, whose requests wait at the gate, and the operators'.
pub(super) fn build_acceptors(
    listeners: SlotListeners,
    server: &ConnectionServer,
    [public, admin]: [HttpService; 2],
    balancer: Option<&Arc<ConnectionBalancer>>,
    config: &Config,
) -> io::Result<Vec<Acceptor<HttpService>>> {
    let unreachable_after = config.http.keep_alive_timeout.max(UNREACHABLE_AFTER);
    let build = |listener: Listener, handler: &HttpService, permits: &Arc<Semaphore>, gated| {
        let begins_with_header = gated && config.proxy_protocol.listeners.includes(&listener.address()?);
        let start = if begins_with_header { ConnectionStart::ProxyHeader } else { ConnectionStart::Http };
        let Listener { socket, owner } = listener;
        let is_unix = matches!(socket, ListeningSocket::Unix(_));
        // A Unix socket's clients are on this host, and its queues are small.
        if let ListeningSocket::Tcp(socket) = &socket
            && let Err(error) = tcp_socket::limit_send_queue(socket, SEND_QUEUE_MAX, unreachable_after)
        {
            tracing::warn!(%error, "clients that read nothing may take much of the kernel's memory");
        }
        let listener = SharedSocket::new(AcceptingSocket::from_socket(socket)?);
        let (handler, permits, server) = (handler.clone(), Arc::clone(permits), server.clone());
        // Another worker could not know that a connection begins with a header, and one of a release before drops a
        // connection whose peer has no address.
        let balancer = balancer.filter(|_| gated && !begins_with_header && !is_unix).cloned();
        Ok(Acceptor { listener, owner, handler, permits, balancer, start, gated, server })
    };
    let public_permits = Arc::new(Semaphore::new(max_connections(config)));
    let admin_permits = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    let [public_listeners, admin_listeners] = listeners.into_audiences();
    let public_acceptors =
        public_listeners.into_iter().map(|listener| build(listener, &public, &public_permits, true));
    let admin_acceptors =
        admin_listeners.into_iter().map(|listener| build(listener, &admin, &admin_permits, false));
    public_acceptors.chain(admin_acceptors).collect()
}

/// Connections of visitors that may be open at once.
fn max_connections(config: &Config) -> usize {
    // What the process may open at all, less what it needs for itself: Redis, its listeners, its operators.
    let limit = fd::nofile_limit().map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let openable = limit.saturating_sub(ADMIN_CONNECTIONS + REJECTION_PERMITS + RESERVED_FDS).max(1);
    config.http.max_connections.min(openable).min(Semaphore::MAX_PERMITS)
}

/// What every connection shares, and the tasks that end turns and ticks.
pub(super) fn build_connection_server(options: &WorkerOptions, tasks: &mut JoinSet<()>) -> ConnectionServer {
    let config = &options.config;
    let scoreboard = Arc::clone(&options.scoreboard);
    let limits = ConnectionLimits {
        header: config.http.header_timeout,
        idle: config.http.keep_alive_timeout,
        header_memory: config.http.max_header_memory,
        per_client: config.http.max_connections_per_client.resolve(max_connections(config)),
    };
    let gate = Arc::new(AdmissionGate::new(Arc::clone(&scoreboard), options.slot, options.cell));
    let connections = Arc::new(ConnectionTable::new(limits, scoreboard, options.slot, options.cell));
    let turns = Arc::clone(&gate);
    tasks.spawn(async move { poll_fn(|context| turns.poll_turns(context)).await });
    tasks.spawn(run_sweeps(Arc::clone(&connections), Arc::clone(&gate)));
    ConnectionServer {
        builder: Arc::new(connection_builder(config.http.max_header_size)),
        connections,
        gate,
        proxy: Arc::new(config.proxy.clone()),
        ipv6_prefix: config.ipv6_prefix,
        rejection_permits: Arc::new(Semaphore::new(REJECTION_PERMITS)),
        discarded_max: DiscardLimit::new(config.http.max_body_size),
        refusals: Arc::new(RefusalResponses::new(process::pid().as_raw().unsigned_abs())),
    }
}

/// Ends a tick again and again, while a connection is open or requests wait at the gate.
async fn run_sweeps(connections: Arc<ConnectionTable>, gate: Arc<AdmissionGate>) {
    let mut interval = tokio::time::interval(TICK);
    // Ticks missed in a pause of the whole process are not made up for, or clients would be closed as idle for it.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        connections.sweep();
        gate.sample_starvation();
        if connections.len() == 0 && gate.is_idle() {
            connections.wait_until_any().await;
            interval.reset();
        }
    }
}

/// What goes on in a worker beside its requests.
pub(super) struct BackgroundServices {
    pub(super) broadcasts: BroadcastHub,
    pub(super) tasks: TaskQueue,
}

impl BackgroundServices {
    pub(super) fn new(config: &Config, redis: &RedisClient) -> Self {
        let Config { broadcast, tasks, .. } = config;
        let worker = format!("{}:{}", process::hostname(), process::pid());
        Self {
            broadcasts: BroadcastHub::new(redis.clone(), broadcast),
            tasks: TaskQueue::with_client(redis.clone(), tasks, &worker),
        }
    }

    /// Begins; what the application registered is known by now.
    pub(super) fn start(&self) {
        _ = self.broadcasts.start();
        self.tasks.start();
    }

    /// Returns when this worker can do no more tasks, because its jobs do not stop: a successor must take its slot.
    pub(super) async fn all_task_permits_hung(&self) {
        self.tasks.all_permits_hung().await;
        tracing::error!("all task permits held by hung jobs; handing over to a successor");
    }
}

/// The parts of this worker that its services are made of.
pub(super) fn service_parts(
    start: &WorkerOptions,
    state: &StateClient,
    phase: &DrainState,
    (instance_info, batches): (&Arc<InstanceIdentity>, &Arc<BatchedCounters>),
    services: &BackgroundServices,
) -> AppServices {
    AppServices {
        config: Arc::clone(&start.config),
        redis: state.clone(),
        scoreboard: Arc::clone(&start.scoreboard),
        worker: start.identity(),
        cell: start.cell,
        drain: phase.clone(),
        instance: Arc::clone(instance_info),
        batched_counters: Some(Arc::clone(batches)),
        broadcast_hub: services.broadcasts.clone(),
        tasks: services.tasks.clone(),
    }
}

/// What an application is once it is built.
pub(super) struct BuiltServices {
    /// The handle that it was given.
    pub(super) fleet: FleetHandle,
    /// What answers visitors.
    pub(super) public: HttpService,
    /// What answers operators.
    pub(super) operators: HttpService,
    /// What goes on beside the requests.
    pub(super) lifecycle: Lifecycle,
    /// The application's own checks.
    pub(super) checks: Arc<AppChecks>,
}

/// Builds the application.
///
/// # Cancel safety
/// Dropping the future drops what the application has made so far.
pub(super) async fn build_services(
    parts: &AppServices,
    app: &AppFactory,
) -> Result<BuiltServices, BootError> {
    let fleet = http::fleet_handle(parts);
    let app = app.build(&parts.config.app, fleet.clone()).await?;
    let AppParts { router, layers, operator_routes, checks, lifecycle } = app.into_parts(&parts.tasks)?;
    let dashboard = Dashboard::new(&parts.config.dashboard);
    let checks = Arc::new(checks);
    // axum panics where two routers have one route.
    let built = catch_unwind(AssertUnwindSafe(|| {
        (
            http::public_service(parts, &fleet, (router, layers), &dashboard),
            http::admin_service(parts, &dashboard, operator_routes, Arc::clone(&checks)),
        )
    }));
    let (public, operators) =
        built.map_err(|panic| BootError::Routes(panic_message(panic.as_ref()).to_owned()))?;
    Ok(BuiltServices { fleet, public, operators, lifecycle, checks })
}
