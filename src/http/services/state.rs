//! What a request's state is made of.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::counters::batched::BatchedCounters;
use crate::http::services::app_services::AppServices;
use crate::http::services::worker::WorkerContext;
use crate::limiter::{PolicyTable, RequestLimiter};
use crate::redis::begin::CounterIncrement;
use crate::redis::{RedisClient, keys};
use crate::sessions::services::SessionServices;

/// Name of the counter of all views; `@` keeps it out of the applications' names.
pub(crate) const TOTAL_VIEWS: &str = "@views";

/// What the requests of one worker need for their state in Redis.
pub(crate) struct StateServices {
    /// The worker whose cell counts what became of requests.
    pub(crate) worker: Arc<WorkerContext>,
    pub(crate) redis: RedisClient,
    /// First part of every key.
    pub(crate) prefix: Arc<str>,
    pub(crate) limiter: Arc<RequestLimiter>,
    /// Names of all configured policies, those that are switched off included.
    pub(crate) policy_names: Vec<String>,
    pub(crate) sessions: SessionServices,
    pub(crate) batched_counters: Arc<BatchedCounters>,
    /// What a view adds to the total, made once.
    pub(crate) view_increment: [CounterIncrement; 1],
    /// How long responses to requests with an `Idempotency-Key` are stored; zero: the header means nothing.
    pub(crate) idempotency_ttl: Duration,
    /// Leading bits of an IPv6 address that stand for one client.
    pub(crate) ipv6_prefix: u8,
}

impl StateServices {
    pub(crate) fn new(parts: &AppServices, worker: &Arc<WorkerContext>) -> Self {
        let config = &parts.config;
        let prefix: Arc<str> = Arc::from(config.redis.prefix.as_str());
        let policies = PolicyTable::new(&config.limits, &config.redis.prefix);
        Self {
            worker: Arc::clone(worker),
            redis: parts.redis.clone(),
            limiter: RequestLimiter::new(
                policies,
                parts.redis.clone(),
                config.redis.silence_timeout,
                Instant::now,
            ),
            policy_names: config.limits.keys().cloned().collect(),
            sessions: SessionServices::new(
                &config.session,
                &prefix,
                &parts.redis,
                config.heartbeat_interval.is_some(),
            ),
            batched_counters: Arc::clone(&parts.batched_counters),
            view_increment: [CounterIncrement { key: keys::counter(&prefix, TOTAL_VIEWS), by: 1 }],
            prefix,
            idempotency_ttl: config.idempotency.ttl,
            ipv6_prefix: config.ipv6_prefix,
        }
    }
}

impl fmt::Debug for StateServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateServices").field("worker", &self.worker).finish_non_exhaustive()
    }
}
