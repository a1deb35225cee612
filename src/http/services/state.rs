//! What a request's state is made of.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::counters::batched::BatchedCounters;
use crate::counters::commands::CounterIncrement;
use crate::counters::keys;
use crate::http::services::app_services::AppServices;
use crate::http::services::build_mistakes::BuildMistakes;
use crate::http::services::worker::WorkerContext;
use crate::limiter::policy::LimitPolicy;
use crate::limiter::{PolicyTable, RequestLimiter};
use crate::request_state::StateClient;
use crate::sessions::cookie::CookieAttributes;
use crate::sessions::services::SessionServices;

/// Name of the counter of all views; `@` keeps it out of the applications' names.
pub(crate) const TOTAL_VIEWS: &str = "@views";

/// What the requests of one worker need for their state in Redis.
pub(crate) struct StateServices {
    /// The worker whose cell counts what became of requests.
    pub(crate) worker: Arc<WorkerContext>,
    pub(crate) redis: StateClient,
    /// First part of every key.
    pub(crate) prefix: Arc<str>,
    pub(crate) limiter: Arc<RequestLimiter>,
    /// Names of all configured policies, those that are switched off included.
    pub(crate) policy_names: Vec<String>,
    /// What keeps the worker from starting although its application was built.
    pub(crate) build_mistakes: Arc<BuildMistakes>,
    pub(crate) sessions: SessionServices,
    /// Whether requests have sessions: outside a fleet only below a `SessionLayer`.
    pub(crate) has_sessions: bool,
    /// None outside a fleet: each addition is sent at once.
    pub(crate) batched_counters: Option<Arc<BatchedCounters>>,
    /// What a view adds to the total, made once.
    pub(crate) view_increment: [CounterIncrement; 1],
    /// How long responses to requests with an `Idempotency-Key` are stored; zero: the header means nothing.
    pub(crate) idempotency_ttl: Duration,
    /// Leading bits of an IPv6 address that stand for one client.
    pub(crate) ipv6_prefix: u8,
}

/// What the configuration says of a limit that the program makes.
#[derive(Debug)]
pub(crate) enum ConfiguredLimit<'a> {
    /// It has no policy of this name.
    Absent,
    /// Its policy of this name is switched off, and so is the limit.
    Disabled,
    /// Its policy and the policy's number.
    Policy(usize, &'a LimitPolicy),
}

impl StateServices {
    /// What the configuration says of a limit by this name.
    pub(crate) fn configured_limit(&self, name: &str) -> ConfiguredLimit<'_> {
        match self.limiter.policies().find(name) {
            Some((number, policy)) => ConfiguredLimit::Policy(number, policy),
            None if self.policy_names.iter().any(|known| known == name) => ConfiguredLimit::Disabled,
            None => ConfiguredLimit::Absent,
        }
    }

    pub(crate) fn new(parts: &AppServices, worker: &Arc<WorkerContext>) -> Self {
        let config = &parts.config;
        let prefix: Arc<str> = Arc::from(config.redis.prefix.as_str());
        let policies = PolicyTable::new(&config.limits, &config.redis.prefix);
        Self {
            worker: Arc::clone(worker),
            redis: parts.redis.clone(),
            limiter: RequestLimiter::new(
                policies,
                parts.redis.redis().clone(),
                config.redis.silence_timeout,
                Instant::now,
            ),
            policy_names: config.limits.keys().cloned().collect(),
            build_mistakes: Arc::default(),
            sessions: SessionServices::new(
                &config.session,
                CookieAttributes::default(),
                &prefix,
                &parts.redis,
                config.heartbeat_interval.is_some(),
            ),
            has_sessions: true,
            batched_counters: parts.batched_counters.clone(),
            view_increment: [CounterIncrement { key: keys::counter(&prefix, TOTAL_VIEWS), by: 1 }],
            prefix,
            idempotency_ttl: config.idempotency.ttl,
            ipv6_prefix: config.ipv6_prefix,
        }
    }

    /// The same with these sessions.
    pub(crate) fn with_sessions(&self, sessions: SessionServices) -> Self {
        Self {
            worker: Arc::clone(&self.worker),
            redis: self.redis.clone(),
            prefix: Arc::clone(&self.prefix),
            limiter: Arc::clone(&self.limiter),
            policy_names: self.policy_names.clone(),
            build_mistakes: Arc::clone(&self.build_mistakes),
            sessions,
            has_sessions: true,
            batched_counters: self.batched_counters.clone(),
            view_increment: self.view_increment.clone(),
            idempotency_ttl: self.idempotency_ttl,
            ipv6_prefix: self.ipv6_prefix,
        }
    }
}

impl fmt::Debug for StateServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateServices").field("worker", &self.worker).finish_non_exhaustive()
    }
}
