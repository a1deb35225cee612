//! The worker: one forked process, one thread, one runtime, one Redis client.
//!
//! It takes the listeners of its slot, serves the application on them, and leaves when it is told to or when its
//! supervisor is gone.

mod accept;
mod beacon;
mod connection;
mod drain;
mod flusher;
mod heartbeat;
mod inspector;
mod live;
mod log;
mod stream;
mod ticks;

use std::fs::File;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::SignalKind;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::sleep;

use accept::Answer;
use accept::Door;
use accept::Hall;
use beacon::Beacon;
use connection::Connections;
use connection::Patience;
use connection::TICK;
use drain::Leave;
use drain::Schedule;
use live::Live;

use crate::config::schema::Config;
use crate::config::schema::RedisUrl;
use crate::counter::batched::Batches;
use crate::http::App;
use crate::http::Dashboard;
use crate::http::Face;
use crate::http::Parts;
use crate::http::Phase;
use crate::http::Site;
use crate::http::Worker;
use crate::listener::Listener;
use crate::listener::SlotListeners;
use crate::redis::Health;
use crate::redis::Redis;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Cell;
use crate::scoreboard::cell::Order;
use crate::sys::abort;
use crate::sys::fd;
use crate::sys::proc;
use crate::sys::signal;
use crate::sys::signal::Signal;
use crate::sys::socket;
use crate::task::Tasks;
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
    if let Err(error) = abort::tell_on_abort(last_words) {
        tracing::debug!(%error, "a hang would be without a backtrace");
    }
    let report = start.report.try_clone();
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

/// Told to end because it hangs: where it stands is all that can still be said.
fn last_words(frames: &str) {
    tracing::error!(backtrace = format!("\n{frames}"), "aborted; this is where it stood");
}

/// Most threads for blocking work: look-ups of host names beside the application's bounded pool.
const BLOCKING: usize = 16;

async fn live(start: Start) -> Result<(), Error> {
    let mut leave = tokio::signal::unix::signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let rotated = tokio::signal::unix::signal(SignalKind::user_defined1()).map_err(Error::Signals)?;
    // Signals of the terminal and of operators are the supervisor's; only now can ours find their handlers.
    signal::block_only(OTHERS).map_err(Error::Signals)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(log::follow(rotated));
    let hall = hall(&start);
    let redis = Redis::new(&start.config.redis, &start.redis_url, &format!("regatta-{}", start.slot))?;
    redis.start();
    let phase = Phase::default();
    let site = Arc::new(beacon::site(&start));
    let batches = flusher::batches(&start, &redis);
    let live = Live::new(&start, &redis);
    let (public, admin) = faces(&start, &redis, &phase, (&site, &batches), &live)?;
    live.start();
    let lifeline = Receiver::from_owned_fd(start.lifeline).map_err(Error::Lifeline)?;
    let doors = doors(start.listeners, &hall, [public, admin], &start.config).map_err(Error::Listeners)?;
    tokio::select! {
        health = redis.first_attempt() => if let Health::Down { reason } = health {
            tracing::warn!(%reason, "serving without Redis for now: {reason}");
        },
        // Nothing was accepted yet, so there is nothing to drain.
        _ = leave.recv() => return Ok(()),
        _ = lifeline.readable() => return Ok(()),
    }
    heartbeat::note_redis(&start.scoreboard, start.slot, start.cell, &redis);
    if start.slot == inspector::SLOT {
        tasks.spawn(inspector::inspect(Arc::clone(&start.scoreboard), redis.clone()));
    }
    let (board, hub) = (Arc::clone(&start.scoreboard), live.broadcasts.clone());
    tasks.spawn(heartbeat::beat(board, start.slot, start.cell, redis.clone(), hub));
    let beacon = Beacon::new(&start.config, &site, &start.scoreboard, redis);
    let speaking = tasks.spawn(beacon.clone().speak());
    tasks.spawn(sweep(Arc::clone(&hall.connections)));
    let flusher = tokio::spawn(flusher::flush(Arc::clone(&batches)));
    let mut accepting: JoinSet<()> = doors.iter().map(|door| door.clone().accept()).collect();
    let mut report = File::from(start.report);
    let _ = writeln!(report, "ready");
    let why = tokio::select! {
        _ = leave.recv() => ordered(start.scoreboard.cell(start.slot, start.cell)).await,
        _ = lifeline.readable() => Leave::Orphaned,
        () = live.stuck() => Leave::Pass,
    };
    match why {
        Leave::Stop | Leave::Orphaned => phase.begin_stop(),
        Leave::Close | Leave::Pass => phase.begin_drain(),
    }
    accepting.abort_all();
    // News if somebody else has signalled: the supervisor sends a successor at once.
    let _ = writeln!(report, "leaving");
    let schedule = Schedule::new(why, &start.config.drain, Instant::now());
    let cut_now = || start.scoreboard.cell(start.slot, start.cell).order() == Order::Cut;
    let told_again = drain::told_again(&mut leave, cut_now);
    let departed = depart(&hall, &doors, &schedule, report, &lifeline, told_again, (&phase, &live.tasks));
    let fleet_ends = matches!(why, Leave::Stop | Leave::Orphaned);
    beacon.see_off(&speaking, fleet_ends, orphaned(&lifeline), departed).await;
    live.broadcasts.leave().await;
    flusher.abort();
    flusher::finish(&batches).await;
    Ok(())
}

/// Why it is told to leave.
///
/// A service manager may tell every process of the fleet at once: what the supervisor makes of it is waited for, and
/// connections are still taken meanwhile.
async fn ordered(cell: Cell<'_>) -> Leave {
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

/// Drains; a supervisor that dies meanwhile shortens it, and a second order to leave ends it.
async fn depart(
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
    // Whoever is cut short below, too, takes none from the first moment on.
    tasks.stop_taking();
    let drained = async { tokio::join!(connections, drain::work(tasks, schedule)).0 };
    let (cut, when) = tokio::select! {
        // The kernel says TERM for a supervisor that died, too: what it means is looked at first.
        biased;
        () = orphaned(lifeline) => {
            phase.end_streams();
            let schedule = Schedule::orphaned(Instant::now());
            drain::close(doors, &schedule).await;
            (drain::finish(hall, &schedule).await, "at the drain's deadline")
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

async fn orphaned(lifeline: &Receiver) {
    if lifeline.readable().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Signals that a worker leaves to its supervisor.
const OTHERS: &[Signal] =
    &[Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGTTIN, Signal::SIGTTOU];

/// Connections that operators may have open at once.
const OPERATORS: usize = 64;

/// Bytes that the kernel keeps for a client beyond what is on its way; enough that a fast one never waits for us.
const UNSENT: u32 = 128 << 10;

/// How long at least a client may be out of reach, or take nothing, before its connection is given up.
const UNTAKEN: Duration = Duration::from_secs(30);

/// Descriptors a worker needs besides its connections.
const RESERVED: usize = 64;

fn doors(
    listeners: SlotListeners,
    hall: &Hall,
    [public, admin]: [Face; 2],
    config: &Config,
) -> io::Result<Vec<Door<Face>>> {
    let untaken = config.http.keep_alive.max(UNTAKEN);
    let door = |Listener { socket, owner }, answer: &Face, permits: &Arc<Semaphore>| {
        if let Err(error) = socket::bound_unsent(&socket, UNSENT, untaken) {
            tracing::warn!(%error, "clients that read nothing may take much of the kernel's memory");
        }
        let listener = Arc::new(TcpListener::from_std(socket)?);
        Ok(Door { listener, owner, answer: answer.clone(), permits: Arc::clone(permits), hall: hall.clone() })
    };
    // What the process may open at all, less what it needs for itself: Redis, its listeners, its operators.
    let openable =
        usize::try_from(fd::limit()?).unwrap_or(usize::MAX).saturating_sub(OPERATORS + RESERVED).max(1);
    let visitors =
        Arc::new(Semaphore::new(config.http.connections.min(openable).min(Semaphore::MAX_PERMITS)));
    let operators = Arc::new(Semaphore::new(OPERATORS));
    let public_doors = listeners.public.into_iter().map(|listener| door(listener, &public, &visitors));
    public_doors.chain([door(listeners.admin, &admin, &operators)]).collect()
}

fn hall(start: &Start) -> Hall {
    let config = &start.config;
    let scoreboard = Arc::clone(&start.scoreboard);
    let patience = Patience { header: config.http.header_timeout, idle: config.http.keep_alive };
    Hall {
        builder: Arc::new(accept::builder(config.http.header_limit)),
        connections: Arc::new(Connections::new(patience, scoreboard, start.slot, start.cell)),
    }
}

async fn sweep(connections: Arc<Connections>) {
    let mut interval = tokio::time::interval(TICK);
    // After a pause of the whole process the missed ticks are not made up for: nobody was idle then.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        connections.sweep();
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

impl Answer for Face {
    type Body = crate::http::Body;

    fn answer(
        &self,
        request: http::Request<Incoming>,
        peer: SocketAddr,
    ) -> impl Future<Output = http::Response<Self::Body>> + Send + use<> {
        self.call(request, peer)
    }
}
