//! What the dashboard's handlers share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::config::settings::DashboardConfig;
use crate::http::dashboard::auth::DashboardAuth;
use crate::http::dashboard::feed::DashboardFeed;
use crate::http::dashboard::sources::DashboardSources;

/// Commands whose results are awaited at once: each takes a thread for as long.
const PENDING_COMMANDS_MAX: usize = 4;

/// One a worker, whichever listener a request came by.
#[derive(Debug)]
pub(super) struct DashboardServices {
    pub(super) auth: DashboardAuth,
    pub(super) feed: DashboardFeed,
    pub(super) command_permits: Arc<Semaphore>,
}

impl DashboardServices {
    pub(super) fn new(settings: &DashboardConfig) -> Self {
        Self {
            auth: DashboardAuth::new(settings),
            feed: DashboardFeed::new(),
            command_permits: Arc::new(Semaphore::new(PENDING_COMMANDS_MAX)),
        }
    }
}

/// The state of the dashboard's routes at one listener.
#[derive(Debug, Clone)]
pub(super) struct DashboardState {
    pub(super) services: Arc<DashboardServices>,
    pub(super) sources: Arc<DashboardSources>,
}
