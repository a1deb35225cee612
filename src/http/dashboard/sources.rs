//! Where the dashboard gets its facts from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::counters::keys;
use crate::http::services::admin::AdminServices;
use crate::http::services::app_services::AppServices;
use crate::http::services::cell_handle::CellHandle;
use crate::http::services::state::TOTAL_VIEWS;
use crate::http::streams::worker_streams::WorkerStreams;
use crate::sessions::activity::SessionActivity;

/// What the page is made of: what all operators' routes share, and what this page alone reads.
#[derive(Debug)]
pub(super) struct DashboardSources {
    pub(super) admin: Arc<AdminServices>,
    pub(super) session_activity: SessionActivity,
    /// Key of the counter of all views.
    pub(super) total_views_key: String,
    /// Where the supervisor's control socket is.
    pub(super) run_dir: PathBuf,
    /// None: the instance has no record in Redis, and the page shows this instance alone.
    pub(super) heartbeat_interval: Option<Duration>,
    /// The page's own streams, apart from the application's.
    pub(super) streams: WorkerStreams,
    /// Leading bits of an IPv6 address that stand for one client.
    pub(super) ipv6_prefix: u8,
}

impl DashboardSources {
    pub(super) fn new(admin: &Arc<AdminServices>, parts: &AppServices) -> Self {
        let config = &parts.config;
        let cell = CellHandle::new(&parts.scoreboard, parts.worker.slot(), parts.cell);
        Self {
            admin: Arc::clone(admin),
            session_activity: SessionActivity::new(&parts.redis, config.heartbeat_interval.is_some()),
            total_views_key: keys::counter(&config.redis.prefix, TOTAL_VIEWS),
            run_dir: config.run_dir.clone(),
            heartbeat_interval: config.heartbeat_interval,
            streams: WorkerStreams::of_worker(parts, cell),
            ipv6_prefix: config.ipv6_prefix,
        }
    }
}
