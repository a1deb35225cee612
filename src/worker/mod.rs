//! The worker: one forked process, one thread, one runtime, one Redis client.
//!
//! It takes the listeners of its slot, serves the application on them, and leaves when its supervisor orders it or is
//! gone. What was accepted is answered whatever order comes, up to the drain's deadline; what cannot be begun in time is
//! refused. The room knows no routes and no keys of Redis: `http` answers, the domains store.

mod accepting_socket;
mod acceptor;
mod admission;
mod background;
mod balancer;
mod boot;
mod connection;
mod drain;
mod handler;
pub mod in_process;
mod interval;
mod options;

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

pub use options::WorkerOptions;
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::SignalKind;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::application::{AppFactory, RunningApp};
use crate::counters::batched::BatchedCounters;
use crate::http::checks::AppChecks;
use crate::http::{AppServices, DrainState};
use crate::logging;
use crate::redis::{RedisClient, RedisStatus};
use crate::request_state::StateClient;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::{DrainOrder, WorkerCell};
use crate::status::check_result::CheckResult;
use crate::sys::signal::Signal;
use crate::sys::{backtrace, clock, signal};
use crate::worker::background::check_reporter::CheckReporter;
use crate::worker::background::heartbeat::HeartbeatWriter;
use crate::worker::background::registrar::InstanceRegistrar;
use crate::worker::balancer::ConnectionBalancer;
use crate::worker::boot::{BackgroundServices, BootError, BuiltServices};
use crate::worker::drain::{DrainKind, DrainPlan};

/// Exit code of a worker that could not start.
pub const EXIT_BOOT_FAILED: u8 = 70;

/// A worker's life; returns its exit code.
pub fn run(start: WorkerOptions) -> u8 {
    logging::set_worker_slot(start.slot);
    if let Err(error) = start.status_pipe.try_clone().and_then(backtrace::report_on_request) {
        tracing::debug!(%error, "a hang would be without a backtrace");
    }
    // The worker serves no client yet, so that there is nothing to finish.
    drain::set_orphan_timeout(Duration::ZERO);
    let status_pipe = start.status_pipe.try_clone();
    clock::start_ticks();
    let hooks = start.app.run_after_fork(&start.identity()).map_err(BootError::App);
    let result = hooks.and_then(|()| {
        // One thread serves; the pool behind it is for blocking work that the application hands off.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_BLOCKING_THREADS)
            .build()
            .map_err(BootError::Runtime)?;
        let result = runtime.block_on(serve(start));
        runtime.shutdown_background();
        result
    });
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            let reason = error.to_string().replace('\n', " ");
            tracing::error!(%reason, "worker cannot start: {reason}");
            if let Ok(report) = status_pipe {
                let _ = writeln!(File::from(report), "failed {reason}");
            }
            EXIT_BOOT_FAILED
        }
    };
    logging::finish();
    code
}

/// Most threads for blocking work: look-ups of host names beside the application's bounded pool.
const MAX_BLOCKING_THREADS: usize = 16;

async fn serve(mut start: WorkerOptions) -> Result<(), BootError> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate()).map_err(BootError::Signals)?;
    let rotated = tokio::signal::unix::signal(SignalKind::user_defined1()).map_err(BootError::Signals)?;
    // Signals of the terminal and of operators are the supervisor's; only now can ours find their handlers.
    signal::install_noop_handlers(SUPERVISOR_SIGNALS).map_err(BootError::Signals)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(background::log_writer::run(rotated));
    let server = boot::build_connection_server(&start, &mut tasks);
    let redis = RedisClient::new(&start.config.redis, &start.redis_url, &format!("regatta-{}", start.slot))?;
    let state = StateClient::new(redis.clone());
    _ = state.start();
    let phase = DrainState::default();
    let instance_info = Arc::new(background::registrar::instance_info(&start));
    let batches = background::counter_flusher::build(&start, &redis);
    let services = BackgroundServices::new(&start.config, &redis);
    let heartbeat = HeartbeatWriter::new(&start, &redis, &services.broadcasts);
    let parts = boot::service_parts(&start, &state, &phase, (&instance_info, &batches), &services);
    let balance = ConnectionBalancer::from_options(&mut start).map_err(BootError::Listeners)?;
    let lifeline = Receiver::from_owned_fd(start.lifeline).map_err(BootError::Lifeline)?;
    let built = build_unless_ordered_to_leave(&parts, &start.app, &mut terminate, &lifeline).await;
    let Some(built) = built else { return Ok(()) };
    let BuiltServices { public, operators, lifecycle, checks, .. } = built?;
    services.start();
    let acceptors =
        boot::build_acceptors(start.listeners, &server, [public, operators], balance.as_ref(), &start.config)
            .map_err(BootError::Listeners)?;
    background::heartbeat::record_redis(&start.scoreboard, start.slot, start.cell, &redis);
    spawn_inspectors(&mut tasks, (&start.scoreboard, start.slot), &redis);
    let registrar = InstanceRegistrar::new(&start.config, &instance_info, &start.scoreboard, redis);
    let registration = tasks.spawn(registrar.clone().run());
    let limits = start.config.drain.clone();
    drain::set_orphan_timeout(limits.timeout + limits.exit + drain::ORPHAN_MARGIN);
    let served = async {
        let flusher = tokio::spawn(background::counter_flusher::run(Arc::clone(&batches)));
        let mut accepting = acceptor::spawn_acceptors(&acceptors);
        let mut status_pipe = File::from(start.status_pipe);
        report_checks(&mut tasks, &status_pipe, checks, (&start.scoreboard, start.slot, start.cell));
        let _ = writeln!(status_pipe, "ready");
        let app = RunningApp::start(lifecycle, &phase.shutdown());
        let cell = start.scoreboard.cell(start.slot, start.cell);
        let drain_kind = until_leaving((&mut terminate, cell), &lifeline, (&services, &app)).await;
        let fleet_ends = matches!(drain_kind, DrainKind::Stop | DrainKind::Orphaned);
        let plan = DrainPlan::new(drain_kind, &limits, Instant::now());
        phase.set_deadline(plan.abort_at.into_std());
        drain::announce(&phase, fleet_ends);
        accepting.abort_all();
        balance.iter().for_each(|balance| balance.stop());
        // If another process sent the signal, the supervisor learns it here and spawns a successor at once.
        let _ = writeln!(status_pipe, "{}", drain_kind.status_line());
        let cut_now = || cell.drain_order() == DrainOrder::Abort;
        let second_order = drain::second_order(&mut terminate, cut_now);
        let state = (&phase, &services.tasks, &app);
        let drained =
            drain::drain_and_exit(&server, &acceptors, &plan, status_pipe, &lifeline, second_order, state);
        let orphaned = drain::wait_until_orphaned(&lifeline);
        registrar.deregister_after(&registration, fleet_ends, orphaned, drained).await;
        app.exit(limits.exit).await;
        end_services(&services, flusher, &batches).await;
    };
    heartbeat.run_beside(served).await;
    Ok(())
}

/// Serves until this worker has to leave; how.
async fn until_leaving(
    (terminate, cell): (&mut tokio::signal::unix::Signal, WorkerCell<'_>),
    lifeline: &Receiver,
    (services, app): (&BackgroundServices, &RunningApp),
) -> DrainKind {
    tokio::select! {
        _ = terminate.recv() => drain::await_drain_order(cell).await,
        _ = lifeline.readable() => DrainKind::Orphaned,
        () = services.all_task_permits_hung() => DrainKind::HandOver,
        () = app.background_panicked() => DrainKind::Failed,
    }
}

/// Ends what the application's last hooks could still use.
async fn end_services(services: &BackgroundServices, flusher: JoinHandle<()>, batches: &BatchedCounters) {
    services.broadcasts.shut_down().await;
    flusher.abort();
    background::counter_flusher::flush_remaining(batches).await;
}

/// Says that the application has checks, if it has any, and reports them whenever the supervisor wants it.
fn report_checks(
    tasks: &mut JoinSet<()>,
    mut status_pipe: &File,
    checks: Arc<AppChecks>,
    (scoreboard, slot, cell): (&Arc<Scoreboard>, usize, usize),
) {
    if checks.is_empty() {
        return;
    }
    let _ = writeln!(status_pipe, "{}", CheckResult::ANNOUNCEMENT);
    match status_pipe.try_clone() {
        Ok(status_pipe) => {
            let scoreboard = Arc::clone(scoreboard);
            tasks.spawn(CheckReporter { checks, status_pipe, scoreboard, slot, cell }.run());
        }
        Err(error) => tracing::warn!(%error, "the application's checks cannot be reported to the supervisor"),
    }
}

/// One worker of the instance inspects the Redis server.
fn spawn_inspectors(
    tasks: &mut JoinSet<()>,
    (scoreboard, slot): (&Arc<Scoreboard>, usize),
    redis: &RedisClient,
) {
    if slot == background::redis_inspector::SLOT {
        tasks.spawn(background::redis_inspector::run(Arc::clone(scoreboard), redis.clone()));
        tasks.spawn(background::redis_inspector::watch_memory(Arc::clone(scoreboard), redis.clone()));
    }
}

/// Tries Redis once.
async fn first_attempt(redis: &RedisClient) {
    if let RedisStatus::Down { reason } = redis.wait_for_first_attempt().await {
        tracing::warn!(%reason, "serving while Redis is unavailable: {reason}");
    }
}

/// Tries Redis once and builds the application, which may ask Redis for something meanwhile.
///
/// `None`: the worker is to leave; it has served no client, so there is nothing to drain.
async fn build_unless_ordered_to_leave(
    parts: &AppServices,
    app: &AppFactory,
    terminate: &mut tokio::signal::unix::Signal,
    lifeline: &Receiver,
) -> Option<Result<BuiltServices, BootError>> {
    let booting = async {
        first_attempt(&parts.redis).await;
        boot::build_services(parts, app).await
    };
    tokio::select! {
        built = booting => Some(built),
        _ = terminate.recv() => None,
        _ = lifeline.readable() => None,
    }
}

/// Signals that a worker leaves to its supervisor.
const SUPERVISOR_SIGNALS: &[Signal] =
    &[Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGTTIN, Signal::SIGTTOU];
