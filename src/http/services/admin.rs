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
pub(crate) struct AdminServices {
    pub(crate) redis: RedisClient,
    pub(crate) scoreboard: Arc<Scoreboard>,
    pub(crate) instance: Arc<InstanceIdentity>,
    /// The fleet's instances as Redis last listed them.
    pub(crate) fleet_cache: FleetCache,
    pub(crate) tasks: TaskQueue,
    pub(crate) drain: DrainState,
    /// Names beside the instance's own under which the admin listener may be requested.
    pub(crate) hosts: Vec<String>,
    /// The trusted proxies.
    pub(crate) proxy: ProxyConfig,
    /// The application's own checks.
    pub(crate) checks: Arc<AppChecks>,
}

impl AdminServices {
    pub(crate) fn new(parts: &AppServices, checks: Arc<AppChecks>) -> Self {
        let config = &parts.config;
        Self {
            redis: parts.redis.redis().clone(),
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
