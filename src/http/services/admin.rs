//! What the operators' routes are made of.

use std::fmt;
use std::sync::Arc;

use crate::config::settings::ProxyConfig;
use crate::http::checks::AppChecks;
use crate::http::drain_state::DrainState;
use crate::http::instance::{FleetCache, InstanceIdentity};
use crate::http::services::app_services::AppServices;
use crate::redis::RedisClient;
use crate::scoreboard::Scoreboard;
use crate::tasks::TaskQueue;

/// What probes, metrics, the status document and the dashboard need.
pub(in crate::http) struct AdminServices {
    pub(in crate::http) redis: RedisClient,
    pub(in crate::http) scoreboard: Arc<Scoreboard>,
    pub(in crate::http) instance: Arc<InstanceIdentity>,
    /// The fleet's instances as Redis last listed them.
    pub(in crate::http) fleet_cache: FleetCache,
    pub(in crate::http) tasks: TaskQueue,
    pub(in crate::http) drain: DrainState,
    /// Names beside the instance's own under which the admin listener may be requested.
    pub(in crate::http) hosts: Vec<String>,
    /// The trusted proxies.
    pub(in crate::http) proxy: ProxyConfig,
    /// The application's own checks.
    pub(in crate::http) checks: AppChecks,
}

impl AdminServices {
    pub(in crate::http) fn new(parts: &AppServices, checks: AppChecks) -> Self {
        let config = &parts.config;
        Self {
            redis: parts.redis.clone(),
            scoreboard: Arc::clone(&parts.scoreboard),
            instance: Arc::clone(&parts.instance),
            fleet_cache: FleetCache::default(),
            tasks: parts.tasks.clone(),
            drain: parts.drain.clone(),
            hosts: config.admin.allowed_hosts.clone(),
            proxy: config.proxy.clone(),
            checks,
        }
    }
}

impl fmt::Debug for AdminServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminServices").field("instance", &self.instance).finish_non_exhaustive()
    }
}
