//! What the operators' routes are made of.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::ProxyConfig;
use crate::http::drain_state::DrainState;
use crate::http::instance::{FleetCache, InstanceIdentity};
use crate::http::services::app_services::AppServices;
use crate::redis::RedisClient;
use crate::scoreboard::Scoreboard;
use crate::session::activity::SessionActivity;
use crate::tasks::TaskQueue;

/// What probes, metrics, the status document and the dashboard need.
pub(in crate::http) struct AdminServices {
    pub(in crate::http) redis: RedisClient,
    /// First part of every key.
    pub(in crate::http) prefix: Arc<str>,
    pub(in crate::http) scoreboard: Arc<Scoreboard>,
    pub(in crate::http) instance: Arc<InstanceIdentity>,
    /// The fleet's instances as Redis last listed them.
    pub(in crate::http) fleet_cache: FleetCache,
    pub(in crate::http) tasks: TaskQueue,
    pub(in crate::http) session_activity: SessionActivity,
    pub(in crate::http) drain: DrainState,
    pub(in crate::http) settings: AdminSettings,
}

/// The settings that operators' routes read.
#[derive(Debug)]
pub(in crate::http) struct AdminSettings {
    /// Names beside the instance's own under which the operators' addresses may be requested.
    pub(in crate::http) hosts: Vec<String>,
    pub(in crate::http) proxy: ProxyConfig,
    /// Where the supervisor's control socket is.
    pub(in crate::http) run_dir: PathBuf,
    /// None: the instance has no record in Redis, and the fleet is this instance alone.
    pub(in crate::http) heartbeat_interval: Option<Duration>,
    /// How often an idle stream of events gets a comment.
    pub(in crate::http) keep_alive_interval: Duration,
    /// Leading bits of an IPv6 address that limits take for one client.
    pub(in crate::http) ipv6_prefix: u8,
}

impl AdminServices {
    pub(in crate::http) fn new(parts: &AppServices) -> Self {
        let config = &parts.config;
        Self {
            redis: parts.redis.clone(),
            prefix: Arc::from(config.redis.prefix.as_str()),
            scoreboard: Arc::clone(&parts.scoreboard),
            instance: Arc::clone(&parts.instance),
            fleet_cache: FleetCache::default(),
            tasks: parts.tasks.clone(),
            session_activity: SessionActivity::new(&parts.redis, config.heartbeat_interval.is_some()),
            drain: parts.drain.clone(),
            settings: AdminSettings {
                hosts: config.admin.hosts.clone(),
                proxy: config.proxy.clone(),
                run_dir: config.run_dir.clone(),
                heartbeat_interval: config.heartbeat_interval,
                keep_alive_interval: config.broadcast.keep_alive_interval,
                ipv6_prefix: config.ipv6_prefix,
            },
        }
    }
}

impl fmt::Debug for AdminServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminServices").field("instance", &self.instance).finish_non_exhaustive()
    }
}
