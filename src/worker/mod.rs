//! The worker: one forked process, one thread, one runtime, one Redis client.
//!
//! It takes the listeners of its slot, serves the application on them, and leaves when it is told to or when its
//! supervisor is gone.

mod accept;
mod balance;
mod beacon;
mod connection;
mod doors;
mod drain;
mod flusher;
mod frames;
mod gate;
mod half_closed;
mod heartbeat;
mod inspector;
mod leave;
mod linger;
mod live;
mod log;
mod passed;
mod receiving;
mod refusals;
mod respond;
mod stream;
mod surplus;
mod ticks;
mod under_way;

use std::fs::File;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::SignalKind;
use tokio::task::JoinSet;
use tokio::time::Instant;

use accept::Answer;
use balance::Balance;
use beacon::Beacon;
use drain::Leave;
use drain::Schedule;
use heartbeat::Heartbeat;
use live::Live;
use receiving::Receiving;

use crate::config::schema::Config;
use crate::config::schema::RedisUrl;
use crate::counter::batched::Batches;
use crate::http::Answering;
use crate::http::App;
use crate::http::Dashboard;
use crate::http::Face;
use crate::http::Parts;
use crate::http::Phase;
use crate::http::Site;
use crate::http::Worker;
use crate::listener::SlotListeners;
use crate::listener::shared::SharedQueue;
use crate::redis::Health;
use crate::redis::Redis;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Order;
use crate::sys::backtrace;
use crate::sys::proc;
use crate::sys::signal;
use crate::sys::signal::Signal;
use crate::sys::time;
use crate::telemetry;

/// Exit code of a worker that could not start.
pub const BOOT_FAILED: u8 = 70;

/// Everything a worker needs; it inherits nothing else.
pub struct Start {
    /// Index of its slot.
    pub slot: usize,
    /// Its cell in the slot's row.
    pub cell: usize,
    /// Generation it belongs to.
    pub generation: u64,
    /// The slot's listeners.
    pub listeners: SlotListeners,
    /// The fleet's shared queue.
    pub shared: Option<SharedQueue>,
    /// Where READY, or the reason why not, is written.
    pub report: OwnedFd,
    /// Readable as soon as the supervisor is gone.
    pub lifeline: OwnedFd,
    /// The fleet's configuration.
    pub config: Arc<Config>,
    /// The shared state's address, be it configured or private.
    pub redis_url: RedisUrl,
    /// The shared table.
    pub scoreboard: Arc<Scoreboard>,
    /// The application.
    pub app: App,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start")
            .field("slot", &self.slot)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("cannot take the listeners: {0}")]
    Listeners(io::Error),
    #[error("cannot take signals: {0}")]
    Signals(io::Error),
    #[error("cannot watch the supervisor: {0}")]
    Lifeline(io::Error),
    #[error("cannot set up Redis: {0}")]
    Redis(#[from] crate::redis::Error),
    #[error("the application panicked while it was built: {0}")]
    App(String),
}

/// A worker's life; returns its exit code.
pub fn run(start: Start) -> u8 {
    telemetry::become_worker(start.slot);
    if let Err(error) = start.report.try_clone().and_then(backtrace::tell_on_request) {
        tracing::debug!(%error, "a hang would be without a backtrace");
    }
    // The worker serves no client yet, so that there is nothing to finish.
    leave::limit_orphan(Duration::ZERO);
    let report = start.report.try_clone();
    time::begin_ticks();
    // One thread serves; the pool behind it is for blocking work that the application hands off.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build();
    let lived = runtime.map_err(Error::Runtime).and_then(|runtime| {
        let lived = runtime.block_on(live(start));
        runtime.shutdown_background();
        lived
    });
    let code = match lived {
        Ok(()) => 0,
        Err(error) => {
            let reason = error.to_string().replace('\n', " ");
            tracing::error!(%reason, "worker cannot start: {reason}");
            if let Ok(report) = report {
                let _ = writeln!(File::from(report), "failed {reason}");
            }
            BOOT_FAILED
        }
    };
    telemetry::finish();
    code
}

/// Most threads for blocking work: look-ups of host names beside the application's bounded pool.
const BLOCKING: usize = 16;

async fn live(mut start: Start) -> Result<(), Error> {
    let mut told = tokio::signal::unix::signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let rotated = tokio::signal::unix::signal(SignalKind::user_defined1()).map_err(Error::Signals)?;
    // Signals of the terminal and of operators are the supervisor's; only now can ours find their handlers.
    signal::do_nothing_at_any_of(OTHERS).map_err(Error::Signals)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(log::follow(rotated));
    let hall = doors::hall(&start, &mut tasks);
    let redis = Redis::new(&start.config.redis, &start.redis_url, &format!("regatta-{}", start.slot))?;
    redis.start();
    let phase = Phase::default();
    let site = Arc::new(beacon::site(&start));
    let batches = flusher::batches(&start, &redis);
    let live = Live::new(&start, &redis);
    let heartbeat = Heartbeat::new(&start, &redis, &live.broadcasts);
    let (public, admin) = faces(&start, &redis, &phase, (&site, &batches), &live)?;
    live.start();
    let balance = Balance::from_start(&mut start).map_err(Error::Listeners)?;
    let lifeline = Receiver::from_owned_fd(start.lifeline).map_err(Error::Lifeline)?;
    let doors = doors::doors(start.listeners, &hall, [public, admin], balance.as_ref(), &start.config)
        .map_err(Error::Listeners)?;
    if !first_attempt(&redis, &mut told, &lifeline).await {
        return Ok(());
    }
    heartbeat::note_redis(&start.scoreboard, start.slot, start.cell, &redis);
    if start.slot == inspector::SLOT {
        tasks.spawn(inspector::inspect(Arc::clone(&start.scoreboard), redis.clone()));
        tasks.spawn(inspector::watch_memory(Arc::clone(&start.scoreboard), redis.clone()));
    }
    let beacon = Beacon::new(&start.config, &site, &start.scoreboard, redis);
    let speaking = tasks.spawn(beacon.clone().speak());
    let drain = start.config.drain.clone();
    leave::limit_orphan(drain.timeout + leave::ORPHAN_MARGIN);
    let served = async {
        let flusher = tokio::spawn(flusher::flush(Arc::clone(&batches)));
        let mut accepting = passed::accept_at(&doors);
        let mut report = File::from(start.report);
        let _ = writeln!(report, "ready");
        let why = tokio::select! {
            _ = told.recv() => leave::ordered(start.scoreboard.cell(start.slot, start.cell)).await,
            _ = lifeline.readable() => Leave::Orphaned,
            () = live.stuck() => Leave::Pass,
        };
        let fleet_ends = matches!(why, Leave::Stop | Leave::Orphaned);
        leave::begin(&phase, fleet_ends);
        accepting.abort_all();
        balance.iter().for_each(|balance| balance.leave());
        // If another process sent the signal, the supervisor learns it here and spawns a successor at once.
        let _ = writeln!(report, "leaving");
        let schedule = Schedule::new(why, &drain, Instant::now());
        let cut_now = || start.scoreboard.cell(start.slot, start.cell).order() == Order::Cut;
        let told_again = drain::told_again(&mut told, cut_now);
        let departed =
            leave::depart(&hall, &doors, &schedule, report, &lifeline, told_again, (&phase, &live.tasks));
        beacon.see_off(&speaking, fleet_ends, leave::orphaned(&lifeline), departed).await;
        live.broadcasts.leave().await;
        flusher.abort();
        flusher::finish(&batches).await;
    };
    heartbeat.beside(served).await;
    Ok(())
}

/// Tries Redis once; false when the worker is to leave before it has served.
async fn first_attempt(redis: &Redis, told: &mut tokio::signal::unix::Signal, lifeline: &Receiver) -> bool {
    tokio::select! {
        health = redis.first_attempt() => {
            if let Health::Down { reason } = health {
                tracing::warn!(%reason, "serving without Redis for now: {reason}");
            }
            true
        }
        // Nothing was accepted yet, so there is nothing to drain.
        _ = told.recv() => false,
        _ = lifeline.readable() => false,
    }
}

/// What answers visitors and operators; a panic of the application is a boot failure.
fn faces(
    start: &Start,
    redis: &Redis,
    phase: &Phase,
    (site, batches): (&Arc<Site>, &Arc<Batches>),
    live: &Live,
) -> Result<(Face, Face), Error> {
    let pid = proc::pid().as_raw().unsigned_abs();
    let parts = Parts {
        config: Arc::clone(&start.config),
        redis: redis.clone(),
        scoreboard: Arc::clone(&start.scoreboard),
        worker: Worker::new(pid, start.slot, start.generation, proc::hostname()),
        cell: start.cell,
        phase: phase.clone(),
        site: Arc::clone(site),
        batches: Arc::clone(batches),
        broadcasts: live.broadcasts.clone(),
        tasks: live.tasks.clone(),
        dashboard: Dashboard::new(&start.config.dashboard),
    };
    let built = std::panic::catch_unwind(AssertUnwindSafe(|| {
        (crate::http::public(&parts, &start.app), crate::http::admin(&parts))
    }));
    built.map_err(|panic| Error::App(message(panic.as_ref())))
}

/// Signals that a worker leaves to its supervisor.
const OTHERS: &[Signal] =
    &[Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGTTIN, Signal::SIGTTOU];

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

impl Answer for Face {
    type Body = crate::http::Body;
    type Answering = Answering;

    fn answer(&self, head: http::request::Parts, body: Receiving, peer: SocketAddr) -> Answering {
        self.answer(head, body, peer)
    }
}
