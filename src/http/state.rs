//! What a worker's requests share, and the part of it that an application may reach.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::time::Instant;

use http::HeaderValue;
use tokio::sync::Semaphore;

use crate::broadcast::Hub;
use crate::config::schema::Config;
use crate::config::schema::Secret;
use crate::counter::batched::Batches;
use crate::http::dashboard::Dashboard;
use crate::http::error::Error;
use crate::http::error::Refusal;
use crate::http::exchange;
use crate::http::layer::LimitLayer;
use crate::http::offload;
use crate::http::offload::Offload;
use crate::http::phase::Phase;
use crate::http::request_ids::RequestIds;
use crate::http::seen::Seen;
use crate::http::site::Remembered;
use crate::http::site::Site;
use crate::http::unheard::Unheard;
use crate::limiter::Desk;
use crate::limiter::Policies;
use crate::redis::Health;
use crate::redis::LaneStates;
use crate::redis::Redis;
use crate::redis::begin::CounterArg;
use crate::redis::keys;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Cell;
use crate::scoreboard::snapshot::Snapshot;
use crate::session::Lifetimes;
use crate::session::Setup;
use crate::session::cipher::Cipher;
use crate::session::cookie;
use crate::session::cookie::Keyring;
use crate::session::last_known::LastKnown;
use crate::session::user::UserTag;
use crate::task::Tasks;

/// Stands for configured keys, which never change.
const CONFIGURED: u64 = u64::MAX;

/// Redis is nearly full beyond this part of its memory, thousandths: what is left is for logins, visitors with something
/// to lose, and the server's own buffers.
const REDIS_FULL: u64 = 800;

/// Builds the application's routes in each worker.
pub type App = Arc<dyn Fn(State) -> axum::Router + Send + Sync>;

/// What this room is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The fleet's configuration.
    pub config: Arc<Config>,
    /// The worker's connection to the shared state.
    pub redis: Redis,
    /// The table all processes share.
    pub scoreboard: Arc<Scoreboard>,
    /// Which worker this is.
    pub worker: Worker,
    /// Its cell in its slot's row.
    pub cell: usize,
    /// Whether it serves or leaves; the worker's loop changes it.
    pub phase: Phase,
    /// Its machine, as operators see it beside others.
    pub site: Arc<Site>,
    /// Its batched counters; the worker's loop sends them on.
    pub batches: Arc<Batches>,
    /// Its broadcasts.
    pub broadcasts: Hub,
    /// Its part in the fleet's tasks.
    pub tasks: Tasks,
    /// The operators' page.
    pub dashboard: Dashboard,
}

/// Which worker answers; also an extractor.
#[derive(Debug, Clone)]
pub struct Worker {
    pid: u32,
    slot: usize,
    generation: u64,
    host: Arc<str>,
}

impl Worker {
    /// Names a worker.
    pub fn new(pid: u32, slot: usize, generation: u64, host: impl Into<Arc<str>>) -> Self {
        Self { pid, slot, generation, host: host.into() }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Index of the slot it sits in, from 0.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Number of the configuration and binary it runs, from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Name of its machine or container.
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// What a handler may reach of its worker and fleet; also an extractor.
#[derive(Debug, Clone)]
pub struct State(pub(super) Arc<Core>);

impl State {
    /// Which worker this is.
    pub fn worker(&self) -> &Worker {
        &self.0.worker
    }

    /// Whether Redis can be used at this moment.
    pub fn redis(&self) -> Health {
        self.0.redis.health()
    }

    /// Where the breakers of Redis's reads and writes stand in this worker.
    pub fn redis_lanes(&self) -> LaneStates {
        self.0.redis.lanes()
    }

    /// How long this worker has been serving.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Memory of this worker that no file backs as of its last heartbeat, bytes; 0 before the first.
    pub fn memory_bytes(&self) -> u64 {
        self.0.cell().memory_bytes()
    }

    /// Every slot of this machine's fleet and its totals.
    pub fn fleet(&self) -> Snapshot {
        self.0.scoreboard.snapshot()
    }

    /// Views of all visitors, without counting one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn views(&self) -> Result<i64, Error> {
        let total = self.0.redis.count(&keys::counter(&self.0.prefix, exchange::TOTAL), 0).await;
        total.map_err(|error| Refusal::from(&error).error())
    }

    /// A layer that puts routes under the policy with this name, decided in the request's one call with all others.
    ///
    /// ```no_run
    /// use axum::Router;
    /// use axum::routing::post;
    ///
    /// # async fn login() {}
    /// regatta::Fleet::new(|fleet: regatta::State| {
    ///     // [limits.login]: rate = "20/min", routes = "layer"
    ///     Router::new().route("/login", post(login).layer(fleet.limit("login").cost(5))).with_state(fleet)
    /// });
    /// ```
    ///
    /// A policy that is switched off (`enabled = false`) gives a layer that does nothing.
    ///
    /// # Panics
    /// When no policy has this name: the worker then says so and the fleet does not start.
    pub fn limit(&self, policy: &str) -> LimitLayer {
        LimitLayer::new(&self.0, policy)
    }

    /// The fleet's tasks: kinds are registered while the routes are built.
    pub fn tasks(&self) -> Tasks {
        self.0.tasks.clone()
    }

    /// Runs CPU work off the event loop, in a bounded number of places.
    ///
    /// # Errors
    /// [`offload::Error::Full`] at once if all places are taken, [`offload::Error::Panicked`] if the job panicked.
    ///
    /// # Cancel safety
    /// A waiting job is forgotten; one that has begun runs to its end and its result is dropped.
    pub async fn offload<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, offload::Error> {
        self.0.offload.run(job).await
    }
}

/// Everything the requests of one worker share, prepared once.
pub(super) struct Core {
    pub(super) config: Arc<Config>,
    pub(super) redis: Redis,
    pub(super) scoreboard: Arc<Scoreboard>,
    pub(super) worker: Worker,
    /// Its cell in its slot's row.
    cell: usize,
    pub(super) phase: Phase,
    pub(super) site: Arc<Site>,
    /// The fleet's machines, for operators.
    pub(super) machines: Remembered,
    pub(super) batches: Arc<Batches>,
    pub(super) broadcasts: Hub,
    pub(super) tasks: Tasks,
    pub(super) dashboard: Dashboard,
    /// Sessions that were seen lately.
    pub(super) seen: Seen,
    pub(super) limits: Arc<Desk>,
    /// First part of every key.
    pub(super) prefix: Arc<str>,
    pub(super) lifetimes: Lifetimes,
    /// New sessions of one client: time one costs and time that may be spent at once, µs.
    pub(super) new_sessions: Option<(u64, u64)>,
    /// Sessions as last read, for when Redis is away.
    pub(super) last_known: Arc<Mutex<LastKnown>>,
    /// Peers that seem to be proxies and are not trusted.
    pub(super) unheard: Unheard,
    /// Whether this worker hears of sessions that end.
    pub(super) hears_of_ends: AtomicBool,
    /// What the session room needs to know.
    pub(super) setup: Arc<Setup>,
    pub(super) offload: Offload,
    /// Places for streams of events that are no broadcasts, which have their own.
    pub(super) seats: Arc<Semaphore>,
    pub(super) cookies: CookieNames,
    /// What a view adds to the total, made once.
    pub(super) view: [CounterArg; 1],
    /// `X-Worker-Id`, made once: it goes with every response.
    pub(super) worker_id: HeaderValue,
    started: Instant,
    /// The keys in use, and of which version of the generated ones they are made.
    keyring: RwLock<Option<(u64, Arc<Keyring>)>>,
    requests: RequestIds,
}

/// The session cookie's name in both forms.
#[derive(Debug)]
pub(super) struct CookieNames {
    pub(super) plain: String,
    pub(super) secure: String,
}

impl Core {
    pub(super) fn new(parts: &Parts) -> Self {
        let config = &parts.config;
        let prefix: Arc<str> = Arc::from(config.redis.prefix.as_str());
        let lifetimes = Lifetimes { idle: config.session.idle, absolute: config.session.absolute };
        let setup = Setup {
            prefix: Arc::clone(&prefix),
            lifetimes,
            cipher: Cipher::new(config.session.encryption_keys.iter().map(Secret::expose)),
            strict: config.session.strict.clone(),
            max_per_user: config.session.max_per_user,
        };
        let policies = Policies::new(&config.limits, &config.redis.prefix);
        Self {
            config: Arc::clone(config),
            redis: parts.redis.clone(),
            scoreboard: Arc::clone(&parts.scoreboard),
            worker: parts.worker.clone(),
            cell: parts.cell,
            phase: parts.phase.clone(),
            site: Arc::clone(&parts.site),
            machines: Remembered::default(),
            batches: Arc::clone(&parts.batches),
            broadcasts: parts.broadcasts.clone(),
            tasks: parts.tasks.clone(),
            dashboard: parts.dashboard.clone(),
            seen: Seen::new(&parts.redis, config.heartbeat.is_some()),
            prefix,
            limits: Desk::new(policies, parts.redis.clone(), config.redis.command_timeout, Instant::now),
            lifetimes,
            new_sessions: config.session.create_rate.map(|rate| {
                let period_us = u64::try_from(rate.period.as_micros()).unwrap_or(u64::MAX);
                let interval_us = (period_us / rate.count.max(1)).max(1);
                // Redis counts exactly below 2^53.
                (interval_us, interval_us.saturating_mul(config.session.create_burst).min(1 << 52))
            }),
            last_known: Arc::new(Mutex::new(LastKnown::new(config.session.stale))),
            unheard: Unheard::default(),
            hears_of_ends: AtomicBool::new(false),
            setup: Arc::new(setup),
            offload: Offload::default(),
            seats: Arc::new(Semaphore::new(config.broadcast.subscribers)),
            cookies: CookieNames {
                plain: cookie::name(&config.session.cookie, false),
                secure: cookie::name(&config.session.cookie, true),
            },
            view: [CounterArg { key: keys::counter(&config.redis.prefix, exchange::TOTAL), by: 1 }],
            worker_id: HeaderValue::from(parts.worker.pid),
            started: Instant::now(),
            keyring: RwLock::new(None),
            requests: RequestIds::new(parts.worker.pid),
        }
    }

    /// The cookies' keys; `None` until Redis, which keeps the generated one, was reached for the first time.
    pub(super) fn keyring(&self) -> Option<Arc<Keyring>> {
        let version =
            if self.config.session.secrets.is_empty() { self.redis.secrets_version() } else { CONFIGURED };
        let known = self.keyring.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, keyring)) = known.filter(|(of, _)| *of == version) {
            return Some(keyring);
        }
        let keyring = match version {
            CONFIGURED => Keyring::new(self.config.session.secrets.iter().map(Secret::expose)),
            _ => Keyring::new(self.redis.generated_secrets().iter().map(Vec::as_slice)),
        };
        let keyring = Arc::new(keyring?);
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = Some((version, Arc::clone(&keyring)));
        Some(keyring)
    }

    /// How long this worker has been serving.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether so little of Redis's memory is left that strangers may not add to it.
    pub(super) fn is_redis_full(&self) -> bool {
        self.scoreboard.redis_permille() > REDIS_FULL
    }

    /// A user's tag; `None` until Redis, which keeps its key, was reached for the first time.
    ///
    /// Its key is the generated one even where signing keys are configured: those are replaced from time to time, and
    /// a user's tag must stay the same, or his sessions could not be found under it.
    pub(super) fn user_tag(&self, name: &str) -> Option<UserTag> {
        self.redis.generated_secrets().first().map(|key| UserTag::of(key, name))
    }

    /// This worker's cell of the table.
    pub(super) fn cell(&self) -> Cell<'_> {
        self.scoreboard.cell(self.worker.slot, self.cell)
    }

    /// A new request's id.
    pub(super) fn request_id(&self) -> HeaderValue {
        self.requests.next()
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("worker", &self.worker)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
