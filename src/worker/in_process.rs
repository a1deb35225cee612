//! A worker without a process of its own: what a test serves with, inside the test's runtime.
//!
//! Requests take the same way as in a worker; only connections, listeners and the supervisor are missing.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::application::{AppFactory, RunningApp};
use crate::config::settings::{Config, RedisUrl};
use crate::counters::batched::BatchedCounters;
use crate::http;
use crate::http::{AppServices, Body, DrainState, FleetHandle, HttpService, Worker};
use crate::redis::{RedisClient, RedisStatus};
use crate::request_state::StateClient;
use crate::scoreboard::Scoreboard;
use crate::sys::{clock, process};
use crate::worker::boot::{self, BackgroundServices};
use crate::worker::{self, background};

/// How often the state of tasks is looked at while they are waited for.
const TASKS_POLL: Duration = Duration::from_millis(10);

/// A worker that serves requests of the process it lives in.
pub struct InProcessWorker {
    parts: AppServices,
    fleet: FleetHandle,
    public: HttpService,
    app: RunningApp,
    background: BackgroundServices,
    flusher: JoinHandle<()>,
    batches: Arc<BatchedCounters>,
}

impl InProcessWorker {
    /// Boots a worker with this configuration and Redis.
    ///
    /// # Errors
    /// What keeps a worker from booting, in a sentence.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn boot(config: Config, url: &RedisUrl, app: &AppFactory) -> Result<Self, String> {
        let pid = process::pid().as_raw().unsigned_abs();
        let started_ms = u64::try_from(clock::wall_clock().as_millis()).unwrap_or(0);
        let scoreboard =
            Scoreboard::create(NonZeroUsize::MIN, pid, started_ms).map_err(|error| error.to_string())?;
        scoreboard.cell(0, 0).reset(1, 0);
        let (config, scoreboard) = (Arc::new(config), Arc::new(scoreboard));
        let redis =
            RedisClient::new(&config.redis, url, "regatta-test").map_err(|error| error.to_string())?;
        let state = StateClient::new(redis.clone());
        _ = state.start();
        let background = BackgroundServices::new(&config, &redis);
        let prefix = config.redis.prefix.as_str();
        let batches = Arc::new(BatchedCounters::new(Arc::clone(&scoreboard), redis.clone(), prefix, 0, 0));
        let parts = AppServices {
            worker: Worker::new(pid, 0, 1, process::hostname()),
            cell: 0,
            drain: DrainState::default(),
            instance: Arc::default(),
            batched_counters: Some(Arc::clone(&batches)),
            broadcast_hub: background.broadcasts.clone(),
            tasks: background.tasks.clone(),
            config,
            redis: state,
            scoreboard,
        };
        let boot_timeout = parts.config.workers.boot_timeout;
        let booting = async {
            parts.redis.wait_for_first_attempt().await;
            boot::build_services(&parts, app).await
        };
        let built = timeout(boot_timeout, booting).await;
        let built = built.map_err(|_| format!("not ready within workers.boot_timeout ({boot_timeout:?})"))?;
        let built = built.map_err(|error| error.to_string())?;
        let boot::BuiltServices { fleet, public, lifecycle, .. } = built;
        background.start();
        let flusher = tokio::spawn(background::counter_flusher::run(Arc::clone(&batches)));
        let app = RunningApp::start(lifecycle, &parts.drain.shutdown());
        Ok(Self { parts, fleet, public, app, background, flusher, batches })
    }

    /// What answers visitors.
    pub fn public(&self) -> &HttpService {
        &self.public
    }

    /// What the application may reach.
    pub fn fleet(&self) -> &FleetHandle {
        &self.fleet
    }

    /// Other routes with the same sessions, counters and limits.
    pub fn service_for(&self, router: http::Router) -> HttpService {
        HttpService::with_routes(&self.fleet, router)
    }

    /// Whether Redis can be used; why not, otherwise.
    pub fn redis_failure(&self) -> Option<String> {
        match self.parts.redis.status() {
            RedisStatus::Up => None,
            RedisStatus::Connecting => Some("it does not answer".to_owned()),
            RedisStatus::Down { reason } => Some(reason),
        }
    }

    /// Returns when no task waits or runs; with the number of all that have ended since the worker booted.
    ///
    /// # Errors
    /// When Redis does not say it.
    pub async fn wait_for_tasks(&self) -> Result<u64, String> {
        loop {
            let stats = self.background.tasks.stats().await.map_err(|error| error.to_string())?;
            if stats.waiting == 0 && stats.running.is_empty() {
                return Ok(stats.totals.ended());
            }
            sleep(TASKS_POLL).await;
        }
    }

    /// Leaves as a worker does: hooks of the drain, streams, tasks and background work, hooks of the end.
    pub async fn drain(self) {
        let limits = self.parts.config.drain.clone();
        let deadline = Instant::now() + limits.timeout;
        self.parts.drain.set_deadline(deadline.into_std());
        self.parts.drain.start_drain();
        let tasks = &self.background.tasks;
        let _ = tokio::join!(self.app.drain(deadline), timeout_at(deadline, tasks.drain()));
        worker::drain::wait_for_spawned(&self.parts.drain, deadline).await;
        tasks.release_running().await;
        self.app.exit(limits.exit).await;
        worker::end_services(&self.background, self.flusher, &self.batches).await;
    }
}

impl std::fmt::Debug for InProcessWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcessWorker").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

/// Sends a request of the client at `peer`.
pub async fn call(
    service: &HttpService,
    request: ::http::Request<Body>,
    peer: SocketAddr,
) -> ::http::Response<Body> {
    let (parts, body) = request.into_parts();
    service.call(parts, body, peer).await
}
