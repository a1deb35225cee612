//! The limits of a worker's requests: decided here where that is exact, else by Redis.
//!
//! Guarantees that nothing is allowed here that was not charged (prefetched, or this worker's share of a limit while
//! Redis is unavailable), that nothing is denied here that Redis would allow but for a moment after it denied the same
//! subject ([`crate::limiter::denial_cache`]), and that a request which one limit denies is charged by none. The caller
//! sends the checks to Redis, because the session travels in the same call.

use std::fmt;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use smallvec::smallvec;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::config::limits::PrefetchMode;
use crate::limiter::denial_cache::{CacheLookup, DenialCache, LookupContext, TrackedCheck};
use crate::limiter::gcra::Quota;
use crate::limiter::hot_limit::HotLimitStep;
use crate::limiter::pending::{
    LimitCharges, LimitDecisions, PendingDecision, PendingParts, PrefetchedCharge,
};
use crate::limiter::permit::ConcurrencyPermit;
use crate::limiter::policy::{AppliedLimits, LimitPolicy, LimitSubject, PolicyMeasure, PolicyTable};
use crate::limiter::prefetch::{ConsumeOutcome, QuotaPrefetch};
use crate::limiter::state::{ClockFn, LimiterState, lock};
use crate::limiter::{background, message_charge};
use crate::redis::begin::{RateLimitCheck, RateLimitDecision};
use crate::redis::{RedisClient, RedisError};

/// How long a denial is believed while notifications of refunds do not arrive, µs.
const UNNOTIFIED_TRUST_US: u64 = 100_000;

/// A worker's limits.
pub struct RequestLimiter {
    policies: PolicyTable,
    state: Arc<LimiterState>,
}

/// What happens to a request under its limits.
#[derive(Debug)]
pub enum LimitAdmission {
    /// One of them is known to deny it; the decisions, as far as they are known.
    Denied(LimitDecisions),
    /// Redis has to decide, or no limit is left to decide.
    Pending(PendingDecision),
}

/// What the caches know of a request's limits.
enum CacheResult {
    Denied(LimitDecisions),
    Wait(Arc<Notify>),
    /// Quota of this hot limit has to be prefetched first.
    Prefetch {
        key: String,
        quota: Quota,
        requests: u64,
        answered: Arc<Notify>,
    },
    /// No limit is known to deny. The checks of scarce limits, and when Redis may be called.
    Check {
        tracked: Vec<TrackedCheck>,
        at_us: u64,
    },
}

impl fmt::Debug for RequestLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestLimiter").field("policies", &self.policies).finish_non_exhaustive()
    }
}

fn denied_decision(retry_us: u64, reset_us: u64) -> RateLimitDecision {
    RateLimitDecision { allowed: false, remaining: 0, retry_after_us: Some(retry_us), reset_us }
}

impl RequestLimiter {
    /// Prepares the limits of one worker; `redis_timeout` is the longest wait for a reply of Redis.
    pub fn new(
        policies: PolicyTable,
        redis: RedisClient,
        redis_timeout: Duration,
        clock: ClockFn,
    ) -> Arc<Self> {
        Arc::new(Self { policies, state: LimiterState::new(redis, redis_timeout, clock) })
    }

    /// The configured policies.
    pub fn policies(&self) -> &PolicyTable {
        &self.policies
    }

    /// Makes a limit unused, here at once and in other workers when they are notified; whether it was in use.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn reset(&self, key: &str) -> Result<bool, RedisError> {
        let was_used = self.state.redis.reset_limit(key).await?;
        self.state.on_replenished(key);
        Ok(was_used)
    }

    /// Checks a request's limits from the index `from` on against what this worker knows.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn check(
        &self,
        set: &AppliedLimits,
        from: usize,
        subject: &LimitSubject<'_>,
    ) -> LimitAdmission {
        let state = &self.state;
        let checks = set.checks(from, subject);
        let mut waited = false;
        loop {
            let now_us = state.now_us();
            match self.check_cache(set, from, &checks, now_us, waited) {
                CacheResult::Denied(decisions) => return LimitAdmission::Denied(decisions),
                CacheResult::Wait(answered) => {
                    waited = true;
                    // With or without a reply, the caches decide the next step.
                    let _ = timeout(state.redis_timeout, answered.notified()).await.is_ok();
                }
                CacheResult::Prefetch { key, quota, requests, answered } => {
                    waited = true;
                    // In a task of its own: other requests wait for it, even if this one is dropped.
                    tokio::spawn(background::prefetch_hot(Arc::clone(state), key, quota, requests));
                    let _ = timeout(state.redis_timeout, answered.notified()).await.is_ok();
                }
                CacheResult::Check { tracked, at_us } => {
                    // Prepared before the wait: others may wait for this check, and its drop releases them.
                    let mut pending = self.prepare(set, from, checks, tracked, now_us);
                    if at_us > now_us {
                        sleep(Duration::from_micros(at_us - now_us).min(state.redis_timeout)).await;
                        pending.set_sent_at(state.now_us());
                    }
                    return LimitAdmission::Pending(pending);
                }
            }
        }
    }

    /// What the caches know of the limits; if none denies, this request becomes the one that checks those that did.
    fn check_cache(
        &self,
        set: &AppliedLimits,
        from: usize,
        checks: &[RateLimitCheck],
        now_us: u64,
        waited: bool,
    ) -> CacheResult {
        let state = &self.state;
        let mut denials = lock(&state.denials);
        let prefetch = lock(&state.prefetch);
        denials.expire_resets(now_us, state.in_flight_max_us());
        if denials.is_empty() && !prefetch.may_be_hot(now_us) {
            return CacheResult::Check { tracked: Vec::new(), at_us: now_us };
        }
        let complete_us = state.redis.notifications_complete_since().map(|since| state.to_us(since));
        let oldest_us = complete_us.unwrap_or(u64::MAX).min(now_us.saturating_sub(UNNOTIFIED_TRUST_US));
        let at = LookupContext { now_us, oldest_us, timeout_us: state.redis_timeout_us(), waited };
        look_up((set, from), checks, at, denials, prefetch)
    }

    /// Takes the checks that prefetched quota pays for out of those for Redis.
    fn prepare(
        &self,
        set: &AppliedLimits,
        from: usize,
        mut checks: Vec<RateLimitCheck>,
        tracked: Vec<TrackedCheck>,
        now_us: u64,
    ) -> PendingDecision {
        let mut parts = PendingParts { tracked, ..PendingParts::default() };
        for (index, check) in checks.iter().enumerate() {
            if let PolicyMeasure::Concurrency { .. } = set.policy(from + index).measure() {
                if parts.permit_name.is_empty() {
                    parts.permit_name = self.state.unique_name();
                }
                let permit = ConcurrencyPermit::requested(&self.state.redis, &check.key, &parts.permit_name);
                parts.permits.push(permit);
            }
        }
        // In place: most requests keep all of their checks, and the list is not copied.
        let (mut at, count) = (0, checks.len());
        for index in 0..count {
            match self.consume_prefetched(set.policy(from + index), &checks[at], now_us) {
                Some(reply) => {
                    let charge = PrefetchedCharge { index, check: checks.remove(at), reply };
                    parts.prefetched.push(charge);
                }
                None => at += 1,
            }
        }
        parts.checks = checks;
        PendingDecision::new(Arc::clone(&self.state), from, parts, now_us)
    }

    /// Pays a request's cost under a policy from prefetched quota and prefetches more if little is left; `None`: Redis
    /// has to decide.
    fn consume_prefetched(
        &self,
        policy: &LimitPolicy,
        check: &RateLimitCheck,
        now_us: u64,
    ) -> Option<RateLimitDecision> {
        let PolicyMeasure::Rate { quota, lease: mode } = policy.measure() else { return None };
        // Without server functions nothing can be prefetched.
        if check.shadow || check.cost == 0 || mode == PrefetchMode::Never || self.state.redis.is_plain() {
            return None;
        }
        let (outcome, amount) = {
            let mut prefetch = lock(&self.state.prefetch);
            let outcome = prefetch.consume(&check.key, (&quota, mode), check.cost, now_us);
            let in_flight_max_us = self.state.in_flight_max_us();
            (outcome, prefetch.amount_to_prefetch(&check.key, (mode, check.cost), now_us, in_flight_max_us))
        };
        if let Some(requests) = amount {
            let state = Arc::clone(&self.state);
            tokio::spawn(background::prefetch(state, check.key.clone(), quota, mode, requests));
        }
        match outcome {
            ConsumeOutcome::Consumed(decision) => Some(decision),
            ConsumeOutcome::Insufficient => None,
        }
    }

    /// Refunds what a request was charged; denied clients may try again at once.
    ///
    /// # Errors
    /// The first error of Redis; some of the charges may have been refunded.
    pub async fn refund(&self, charges: LimitCharges) -> Result<(), RedisError> {
        background::refund(&self.state, charges.redis, charges.prefetched).await
    }

    /// Charges a policy for what a subject sends over a connection; `Err`: for how long it is denied.
    ///
    /// A policy that is disabled, in shadow mode or on concurrency, or that cannot be checked (Redis is unavailable or
    /// allows no functions), denies nothing: what the message asks for then fails or succeeds by itself.
    ///
    /// # Cancel safety
    /// Prefetched quota that is not used goes back.
    pub async fn charge(&self, policy: &str, subject: &LimitSubject<'_>, cost: u64) -> Result<(), Duration> {
        let Some((_, policy)) = self.policies.find(policy) else { return Ok(()) };
        message_charge::charge(&self.state, policy, subject, cost).await
    }
}

/// Looks up each limit in the denial cache and among hot limits.
fn look_up(
    (set, from): (&AppliedLimits, usize),
    checks: &[RateLimitCheck],
    at: LookupContext,
    mut denials: MutexGuard<'_, DenialCache>,
    mut prefetch: MutexGuard<'_, QuotaPrefetch>,
) -> CacheResult {
    let LookupContext { now_us, timeout_us, waited, .. } = at;
    let (mut denied, mut wait, mut tracked, mut at_us) = (None, None, Vec::new(), now_us);
    let track =
        |check: &RateLimitCheck, probe| TrackedCheck { key: check.key.clone(), cost: check.cost, probe };
    for (index, check) in checks.iter().enumerate() {
        let PolicyMeasure::Rate { quota, lease: mode } = set.policy(from + index).measure() else { continue };
        let is_hot = prefetch.is_hot(&check.key, now_us);
        // Without the second condition, quota prefetched just before Redis ran out would stay unused, and its subject
        // denied, until the quota goes back.
        if check.shadow
            || (mode != PrefetchMode::Never && prefetch.holds_enough(&check.key, check.cost, now_us))
        {
            continue;
        }
        let step = match is_hot && check.cost > 0 {
            true => prefetch.hot_limit_step(&check.key, check.cost, (now_us, timeout_us), waited),
            false => None,
        };
        let lookup = match step {
            // The other limits are looked up again after the prefetch.
            Some(HotLimitStep::Prefetch(requests, answered)) => {
                return CacheResult::Prefetch { key: check.key.clone(), quota, requests, answered };
            }
            Some(HotLimitStep::Wait(answered)) => CacheLookup::InFlight(answered),
            Some(HotLimitStep::Denied { retry_us, reset_us }) => {
                CacheLookup::Denied(denied_decision(retry_us, reset_us))
            }
            None => denials.lookup(&check.key, &quota, check.cost, at),
        };
        match lookup {
            CacheLookup::Denied(reply) => {
                let decisions: &mut LimitDecisions =
                    denied.get_or_insert_with(|| smallvec![None; checks.len()]);
                decisions[index] = Some(reply);
            }
            CacheLookup::InFlight(answered) => wait = Some(answered),
            CacheLookup::Scarce => tracked.push(track(check, false)),
            CacheLookup::Expired { check_at_us } => {
                tracked.push(track(check, true));
                at_us = at_us.max(check_at_us);
            }
            CacheLookup::Unknown => {}
        }
    }
    match (denied, wait) {
        (Some(decisions), _) => CacheResult::Denied(decisions),
        (None, Some(answered)) => CacheResult::Wait(answered),
        (None, None) => {
            tracked.iter().for_each(|check| denials.track(check, now_us));
            CacheResult::Check { tracked, at_us }
        }
    }
}
