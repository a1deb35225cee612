//! What a worker's requests share, and the part of it that an application may reach.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::Semaphore;

use crate::broadcast::BroadcastHub;
use crate::config::settings::{Config, Secret};
use crate::counter::batched::BatchedCounters;
use crate::http::drain_state::DrainState;
use crate::http::error::{RequestError, StateError};
use crate::http::instance::{FleetCache, InstanceIdentity};
use crate::http::layers::rate_limit::RateLimitLayer;
use crate::http::request_id::RequestIdGenerator;
use crate::http::request_state;
use crate::http::service::offload;
use crate::http::service::offload::Offload;
use crate::http::untrusted_proxy::UntrustedProxyDetector;
use crate::limiter::{PolicyTable, RequestLimiter};
use crate::redis::begin::CounterIncrement;
use crate::redis::{BreakerStates, RedisClient, RedisStatus, keys};
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::WorkerCell;
use crate::scoreboard::snapshot::ScoreboardSnapshot;
use crate::session::activity::SessionActivity;
use crate::session::cookie::CookieKeyring;
use crate::session::encryption::FieldCipher;
use crate::session::stale_cache::StaleSessionCache;
use crate::session::user::UserTag;
use crate::session::{SessionLifetimes, SessionSettings, cookie};
use crate::tasks::TaskQueue;

/// Stands for configured keys, which never change.
const CONFIGURED: u64 = u64::MAX;

/// Redis is nearly full beyond this part of its memory, thousandths: what is left is for logins, visitors with something
/// to lose, and the server's own buffers.
const REDIS_FULL: u64 = 800;

/// Builds the application's routes in each worker.
pub type AppFactory = Arc<dyn Fn(FleetHandle) -> axum::Router + Send + Sync>;

/// What this room is made of.
#[derive(Debug, Clone)]
pub struct AppServices {
    /// The fleet's configuration.
    pub config: Arc<Config>,
    /// The worker's connection to the shared state.
    pub redis: RedisClient,
    /// The table all processes share.
    pub scoreboard: Arc<Scoreboard>,
    /// Which worker this is.
    pub worker: Worker,
    /// Its cell in its slot's row.
    pub cell: usize,
    /// Whether it serves or leaves; the worker's loop changes it.
    pub drain: DrainState,
    /// Its machine, as operators see it beside others.
    pub instance: Arc<InstanceIdentity>,
    /// Its batched counters; the worker's loop sends them on.
    pub batched_counters: Arc<BatchedCounters>,
    /// Its broadcasts.
    pub broadcast_hub: BroadcastHub,
    /// Its part in the fleet's tasks.
    pub tasks: TaskQueue,
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
pub struct FleetHandle(pub(in crate::http) Arc<WorkerContext>);

impl FleetHandle {
    /// Which worker this is.
    pub fn worker(&self) -> &Worker {
        &self.0.worker
    }

    /// Whether Redis can be used at this moment.
    pub fn redis_status(&self) -> RedisStatus {
        self.0.redis.status()
    }

    /// Where the breakers of Redis's reads and writes stand in this worker.
    pub fn breaker_states(&self) -> BreakerStates {
        self.0.redis.breaker_states()
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
    pub fn snapshot(&self) -> ScoreboardSnapshot {
        self.0.scoreboard.snapshot()
    }

    /// Views of all visitors, without counting one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn page_views(&self) -> Result<i64, RequestError> {
        let total =
            self.0.redis.increment(&keys::counter(&self.0.prefix, request_state::TOTAL_VIEWS), 0).await;
        total.map_err(|error| StateError::from(&error).to_request_error())
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
    pub fn rate_limit(&self, policy: &str) -> RateLimitLayer {
        RateLimitLayer::new(&self.0, policy)
    }

    /// The fleet's tasks: kinds are registered while the routes are built.
    pub fn tasks(&self) -> TaskQueue {
        self.0.tasks.clone()
    }

    /// Runs CPU work off the event loop, in a bounded number of places.
    ///
    /// # Errors
    /// [`offload::Error::Full`] at once if all places are taken, [`offload::Error::Panicked`] if the job panicked.
    ///
    /// # Cancel safety
    /// A waiting job is forgotten; one that has begun runs to its end and its result is dropped.
    pub async fn spawn_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, offload::OffloadError> {
        self.0.offload.run(job).await
    }
}

/// Everything the requests of one worker share, prepared once.
pub(in crate::http) struct WorkerContext {
    pub(in crate::http) config: Arc<Config>,
    pub(in crate::http) redis: RedisClient,
    pub(in crate::http) scoreboard: Arc<Scoreboard>,
    pub(in crate::http) worker: Worker,
    /// Its cell in its slot's row.
    cell: usize,
    pub(in crate::http) drain: DrainState,
    pub(in crate::http) instance: Arc<InstanceIdentity>,
    /// The fleet's machines, for operators.
    pub(in crate::http) fleet_cache: FleetCache,
    pub(in crate::http) batched_counters: Arc<BatchedCounters>,
    pub(in crate::http) broadcast_hub: BroadcastHub,
    pub(in crate::http) tasks: TaskQueue,
    /// Sessions that were seen lately.
    pub(in crate::http) session_activity: SessionActivity,
    pub(in crate::http) limiter: Arc<RequestLimiter>,
    /// First part of every key.
    pub(in crate::http) prefix: Arc<str>,
    pub(in crate::http) lifetimes: SessionLifetimes,
    /// New sessions of one client: time one costs and time that may be spent at once, µs.
    pub(in crate::http) new_session_rate: Option<(u64, u64)>,
    /// Sessions as last read, for when Redis is away.
    pub(in crate::http) stale_cache: Arc<Mutex<StaleSessionCache>>,
    /// Peers that seem to be proxies and are not trusted.
    pub(in crate::http) untrusted_proxies: UntrustedProxyDetector,
    /// Whether this worker hears of sessions that end.
    pub(in crate::http) follows_session_ends: AtomicBool,
    /// What the session room needs to know.
    pub(in crate::http) session_settings: Arc<SessionSettings>,
    pub(in crate::http) offload: Offload,
    /// Places for streams of events that are no broadcasts, which have their own.
    pub(in crate::http) stream_permits: Arc<Semaphore>,
    pub(in crate::http) cookie_names: SessionCookieNames,
    /// What a view adds to the total, made once.
    pub(in crate::http) view_increment: [CounterIncrement; 1],
    /// `X-Worker-Id`, made once: it goes with every response.
    pub(in crate::http) worker_id: HeaderValue,
    started: Instant,
    /// The keys in use, and of which version of the generated ones they are made.
    keyring: RwLock<Option<(u64, Arc<CookieKeyring>)>>,
    request_ids: RequestIdGenerator,
}

/// The session cookie's name in both forms.
#[derive(Debug)]
pub(in crate::http) struct SessionCookieNames {
    pub(in crate::http) plain: String,
    pub(in crate::http) secure: String,
}

impl WorkerContext {
    pub(in crate::http) fn new(parts: &AppServices) -> Self {
        let config = &parts.config;
        let prefix: Arc<str> = Arc::from(config.redis.prefix.as_str());
        let lifetimes = SessionLifetimes { idle: config.session.idle, absolute: config.session.absolute };
        let session_settings = SessionSettings {
            prefix: Arc::clone(&prefix),
            lifetimes,
            cipher: FieldCipher::new(config.session.encryption_keys.iter().map(Secret::expose)),
            strict: config.session.strict_fields.clone(),
            max_per_user: config.session.max_per_user,
        };
        let policies = PolicyTable::new(&config.limits, &config.redis.prefix);
        Self {
            config: Arc::clone(config),
            redis: parts.redis.clone(),
            scoreboard: Arc::clone(&parts.scoreboard),
            worker: parts.worker.clone(),
            cell: parts.cell,
            drain: parts.drain.clone(),
            instance: Arc::clone(&parts.instance),
            fleet_cache: FleetCache::default(),
            batched_counters: Arc::clone(&parts.batched_counters),
            broadcast_hub: parts.broadcast_hub.clone(),
            tasks: parts.tasks.clone(),
            session_activity: SessionActivity::new(&parts.redis, config.heartbeat_interval.is_some()),
            prefix,
            limiter: RequestLimiter::new(
                policies,
                parts.redis.clone(),
                config.redis.command_timeout,
                Instant::now,
            ),
            lifetimes,
            new_session_rate: config.session.create_rate.map(|rate| {
                let period_us = u64::try_from(rate.period.as_micros()).unwrap_or(u64::MAX);
                let interval_us = (period_us / rate.count.max(1)).max(1);
                // Redis counts exactly below 2^53.
                (interval_us, interval_us.saturating_mul(config.session.create_burst).min(1 << 52))
            }),
            stale_cache: Arc::new(Mutex::new(StaleSessionCache::new(config.session.stale_if_error))),
            untrusted_proxies: UntrustedProxyDetector::default(),
            follows_session_ends: AtomicBool::new(false),
            session_settings: Arc::new(session_settings),
            offload: Offload::default(),
            stream_permits: Arc::new(Semaphore::new(config.broadcast.max_subscribers)),
            cookie_names: SessionCookieNames {
                plain: cookie::cookie_name(&config.session.cookie, false),
                secure: cookie::cookie_name(&config.session.cookie, true),
            },
            view_increment: [CounterIncrement {
                key: keys::counter(&config.redis.prefix, request_state::TOTAL_VIEWS),
                by: 1,
            }],
            worker_id: HeaderValue::from(parts.worker.pid),
            started: Instant::now(),
            keyring: RwLock::new(None),
            request_ids: RequestIdGenerator::new(parts.worker.pid),
        }
    }

    /// The cookies' keys; `None` until Redis, which keeps the generated one, was reached for the first time.
    pub(in crate::http) fn keyring(&self) -> Option<Arc<CookieKeyring>> {
        let version = if self.config.session.secrets.is_empty() {
            self.redis.signing_keys_version()
        } else {
            CONFIGURED
        };
        let known = self.keyring.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, keyring)) = known.filter(|(of, _)| *of == version) {
            return Some(keyring);
        }
        let keyring = match version {
            CONFIGURED => CookieKeyring::new(self.config.session.secrets.iter().map(Secret::expose)),
            _ => CookieKeyring::new(self.redis.generated_signing_keys().iter().map(Vec::as_slice)),
        };
        let keyring = Arc::new(keyring?);
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = Some((version, Arc::clone(&keyring)));
        Some(keyring)
    }

    /// How long this worker has been serving.
    pub(in crate::http) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether so little of Redis's memory is left that strangers may not add to it.
    pub(in crate::http) fn is_redis_full(&self) -> bool {
        self.scoreboard.redis_memory_permille() > REDIS_FULL
    }

    /// A user's tag; `None` until Redis, which keeps its key, was reached for the first time.
    ///
    /// Its key is the generated one even where signing keys are configured: those are replaced from time to time, and
    /// a user's tag must stay the same, or his sessions could not be found under it.
    pub(in crate::http) fn user_tag(&self, name: &str) -> Option<UserTag> {
        self.redis.generated_signing_keys().first().map(|key| UserTag::from_name(key, name))
    }

    /// This worker's cell of the table.
    pub(in crate::http) fn cell(&self) -> WorkerCell<'_> {
        self.scoreboard.cell(self.worker.slot, self.cell)
    }

    /// A new request's id.
    pub(in crate::http) fn request_id(&self) -> HeaderValue {
        self.request_ids.next()
    }
}

impl fmt::Debug for WorkerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("worker", &self.worker)
            .field("phase", &self.drain)
            .finish_non_exhaustive()
    }
}
