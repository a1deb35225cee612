//! Where a worker's requests come with their limits: decided here if that is exact, else asked of Redis.
//!
//! Guarantees that nothing is allowed here that was not charged (drawn in advance, or this worker's share of a limit
//! while Redis is away), that nothing is denied here that Redis would allow but for a moment after it denied the same
//! subject (`denials`), and that a request that is denied by one limit is charged by none. It decides; asking Redis is its caller's, because the session travels along.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rand::TryRngCore;
use rand::rngs::OsRng;
use smallvec::smallvec;

use crate::config::limits::PrefetchMode;
use crate::limiter::applied_limits::AppliedLimits;
use crate::limiter::denial_cache::{CacheLookup, DenialCache, LookupContext, TrackedCheck};
use crate::limiter::hot_limit;
use crate::limiter::hot_limit::HotLimitStep;
use crate::limiter::local_fallback::LocalLimiter;
use crate::limiter::message_meter::MessageMeters;
use crate::limiter::pending::{LimitDecisions, PendingDecision, PendingParts, PrefetchedCharge};
use crate::limiter::permit::{ConcurrencyPermit, LocalPermits};
use crate::limiter::policy::{LimitPolicy, LimitSubject, PolicyMeasure, PolicyTable};
use crate::limiter::prefetch::{ConsumeOutcome, QuotaPrefetch};
use crate::limiter::quota::Quota;
use crate::limiter::reclaim::ReclaimTracker;
use crate::redis::RedisClient;
use crate::redis::begin::{LimitParameters, RateLimitCheck, RateLimitDecision};
use crate::redis::limiter_commands::QUOTA_RETURN_REQUESTED;

/// How long a denial is believed while news of refunds is not heard, µs.
const UNNOTIFIED_TRUST_US: u64 = 100_000;

/// The kind of news that says that a limit has quota again.
const LIMIT_REPLENISHED: char = 'l';

/// A worker's limits.
pub struct RequestLimiter {
    policies: PolicyTable,
    pub(super) redis: RedisClient,
    /// When this worker's clock began; `now` is counted from here.
    clock_start: Instant,
    clock: ClockFn,
    /// Longest wait for an answer of Redis.
    pub(super) redis_timeout: Duration,
    denials: Mutex<DenialCache>,
    pub(super) local_limiter: Mutex<LocalLimiter>,
    pub(super) prefetch: Mutex<QuotaPrefetch>,
    pub(super) reclaims: Mutex<ReclaimTracker>,
    pub(super) local_permits: LocalPermits,
    pub(super) meters: Mutex<MessageMeters>,
    /// Since when it listens to news of limits, µs of its clock.
    pub(super) subscribed_us: OnceLock<u64>,
    pub(super) deferred_scheduled: AtomicBool,
    /// Names of this worker's places and batches: a random start, then counting.
    name_seed: u64,
    names_issued: AtomicU64,
}

/// Says what time it is.
pub type ClockFn = fn() -> Instant;

/// What becomes of a request under its limits.
#[derive(Debug)]
pub enum LimitAdmission {
    /// One of them is known to deny; how they stand, as far as that is known.
    Denied(LimitDecisions),
    /// Redis has to be asked, or nothing is left to ask.
    Pending(PendingDecision),
}

impl fmt::Debug for RequestLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("policies", &self.policies).finish_non_exhaustive()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn denied_decision(retry_us: u64, reset_us: u64) -> RateLimitDecision {
    RateLimitDecision { allowed: false, remaining: 0, retry_after_us: Some(retry_us), reset_us }
}

/// What the look at all limits of a request found.
enum CacheResult {
    Denied(LimitDecisions),
    Wait(Arc<tokio::sync::Notify>),
    /// So much is to be drawn for this limit first, which is hot.
    Prefetch {
        key: String,
        quota: Quota,
        requests: u64,
        answered: Arc<tokio::sync::Notify>,
    },
    /// Nothing denies. What is asked about limits that are short, and when.
    Check {
        tracked: Vec<TrackedCheck>,
        at_us: u64,
    },
}

impl RequestLimiter {
    /// Prepares the limits of one worker; `patience` is the longest wait for Redis.
    pub fn new(
        policies: PolicyTable,
        redis: RedisClient,
        redis_timeout: Duration,
        clock: ClockFn,
    ) -> Arc<Self> {
        // Without random bytes places of two workers may have one name: one of them then ends early.
        let random = || OsRng.try_next_u64().unwrap_or(0);
        let name = random();
        Arc::new(Self {
            policies,
            redis,
            clock_start: clock(),
            clock,
            redis_timeout,
            denials: Mutex::default(),
            local_limiter: Mutex::default(),
            prefetch: Mutex::new(QuotaPrefetch::new([random(), random()])),
            reclaims: Mutex::default(),
            local_permits: LocalPermits::default(),
            meters: Mutex::default(),
            subscribed_us: OnceLock::new(),
            deferred_scheduled: AtomicBool::new(false),
            name_seed: name,
            names_issued: AtomicU64::new(0),
        })
    }

    /// The configured policies.
    pub fn policies(&self) -> &PolicyTable {
        &self.policies
    }

    /// µs of this worker's clock.
    pub(super) fn now_us(&self) -> u64 {
        self.to_us((self.clock)())
    }

    pub(super) fn to_us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.clock_start).as_micros()).unwrap_or(u64::MAX)
    }

    fn redis_timeout_us(&self) -> u64 {
        u64::try_from(self.redis_timeout.as_micros()).unwrap_or(u64::MAX)
    }

    /// After so long no question of before is under way any more, µs.
    fn in_flight_max_us(&self) -> u64 {
        self.redis_timeout_us().saturating_mul(4)
    }

    /// A name that no other worker has given.
    pub(super) fn unique_name(&self) -> String {
        format!("{:016x}-{:x}", self.name_seed, self.names_issued.fetch_add(1, Relaxed))
    }

    /// Looks at the limits of a request from number `from` on.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn check(
        self: &Arc<Self>,
        set: &AppliedLimits,
        from: usize,
        subject: &LimitSubject<'_>,
    ) -> LimitAdmission {
        let args = set.checks(from, subject);
        let mut waited = false;
        loop {
            let now_us = self.now_us();
            match self.check_cache(set, from, &args, now_us, waited) {
                CacheResult::Denied(replies) => return LimitAdmission::Denied(replies),
                CacheResult::Wait(answered) => {
                    waited = true;
                    // Answered or not, the next look says how things are.
                    let _ = tokio::time::timeout(self.redis_timeout, answered.notified()).await.is_ok();
                }
                CacheResult::Prefetch { key, quota, requests, answered } => {
                    waited = true;
                    // It goes on whatever becomes of this request: others wait for it.
                    tokio::spawn(Arc::clone(self).prefetch_hot(key, quota, requests));
                    let _ = tokio::time::timeout(self.redis_timeout, answered.notified()).await.is_ok();
                }
                CacheResult::Check { tracked, at_us } => {
                    // From here on the question is one that others may wait for, whatever becomes of this request.
                    let mut pending = self.prepare(set, from, args, tracked, now_us);
                    if at_us > now_us {
                        let wait = Duration::from_micros(at_us - now_us).min(self.redis_timeout);
                        tokio::time::sleep(wait).await;
                        pending.set_sent_at(self.now_us());
                    }
                    return LimitAdmission::Pending(pending);
                }
            }
        }
    }

    /// What is known of the limits; if none denies, this request becomes the one that asks about those that did.
    fn check_cache(
        &self,
        set: &AppliedLimits,
        from: usize,
        args: &[RateLimitCheck],
        now_us: u64,
        waited: bool,
    ) -> CacheResult {
        let mut denials = lock(&self.denials);
        let mut advance = lock(&self.prefetch);
        denials.expire_resets(now_us, self.in_flight_max_us());
        if denials.is_empty() && !advance.may_be_hot(now_us) {
            return CacheResult::Check { tracked: Vec::new(), at_us: now_us };
        }
        let subscribed_since = self.redis.notifications_complete_since().map(|since| self.to_us(since));
        let oldest_us = subscribed_since.unwrap_or(u64::MAX).min(now_us.saturating_sub(UNNOTIFIED_TRUST_US));
        let timeout_us = self.redis_timeout_us();
        let at = LookupContext { now_us, oldest_us, timeout_us, waited };
        let (mut denied, mut wait, mut tracked, mut at_us) = (None, None, Vec::new(), now_us);
        let track =
            |arg: &RateLimitCheck, probe| TrackedCheck { key: arg.key.clone(), cost: arg.cost, probe };
        for (index, arg) in args.iter().enumerate() {
            let PolicyMeasure::Rate { quota, lease } = set.policy(from + index).measure() else { continue };
            let is_hot = advance.is_hot(&arg.key, now_us);
            // Without the second half, quota that was drawn a moment before Redis ran out would lie unused, and its
            // subject be denied, until it goes back.
            if arg.shadow
                || (lease != PrefetchMode::Never && advance.holds_enough(&arg.key, arg.cost, now_us))
            {
                continue;
            }
            let turn = match is_hot && arg.cost > 0 {
                true => advance.hot_limit_step(&arg.key, arg.cost, (now_us, timeout_us), waited),
                false => None,
            };
            let lookup = match turn {
                // Whatever else was found is found again after it.
                Some(HotLimitStep::Prefetch(requests, answered)) => {
                    return CacheResult::Prefetch { key: arg.key.clone(), quota, requests, answered };
                }
                Some(HotLimitStep::Wait(answered)) => CacheLookup::InFlight(answered),
                Some(HotLimitStep::Denied { retry_us, reset_us }) => {
                    CacheLookup::Denied(denied_decision(retry_us, reset_us))
                }
                None => denials.lookup(&arg.key, &quota, arg.cost, at),
            };
            match lookup {
                CacheLookup::Denied(reply) => {
                    let replies: &mut LimitDecisions =
                        denied.get_or_insert_with(|| smallvec![None; args.len()]);
                    replies[index] = Some(reply);
                }
                CacheLookup::InFlight(answered) => wait = Some(answered),
                CacheLookup::Scarce => tracked.push(track(arg, false)),
                CacheLookup::Expired { check_at_us: ask_at_us } => {
                    tracked.push(track(arg, true));
                    at_us = at_us.max(ask_at_us);
                }
                CacheLookup::Unknown => {}
            }
        }
        match (denied, wait) {
            (Some(replies), _) => CacheResult::Denied(replies),
            (None, Some(answered)) => CacheResult::Wait(answered),
            (None, None) => {
                tracked.iter().for_each(|question| denials.track(question, now_us));
                CacheResult::Check { tracked, at_us }
            }
        }
    }

    /// Takes what was drawn in advance; the rest is for Redis.
    fn prepare(
        self: &Arc<Self>,
        set: &AppliedLimits,
        from: usize,
        mut args: Vec<RateLimitCheck>,
        tracked: Vec<TrackedCheck>,
        now_us: u64,
    ) -> PendingDecision {
        let mut question = PendingParts { tracked, ..PendingParts::default() };
        for (index, arg) in args.iter().enumerate() {
            if let PolicyMeasure::Concurrency { .. } = set.policy(from + index).measure() {
                if question.permit_name.is_empty() {
                    question.permit_name = self.unique_name();
                }
                question.permits.push(ConcurrencyPermit::requested(
                    &self.redis,
                    &arg.key,
                    &question.permit_name,
                ));
            }
        }
        // The list stays where it is and loses what was drawn in advance.
        let (mut at, count) = (0, args.len());
        for index in 0..count {
            match self.consume_prefetched(set.policy(from + index), &args[at], now_us) {
                Some(reply) => {
                    question.prefetched.push(PrefetchedCharge { index, check: args.remove(at), reply })
                }
                None => at += 1,
            }
        }
        question.checks = args;
        PendingDecision::new(Arc::clone(self), from, question, now_us)
    }

    /// Pays for a request under a policy from what was drawn in advance, if that is a thing of this policy.
    fn consume_prefetched(
        self: &Arc<Self>,
        policy: &LimitPolicy,
        arg: &RateLimitCheck,
        now_us: u64,
    ) -> Option<RateLimitDecision> {
        let PolicyMeasure::Rate { quota, lease } = policy.measure() else { return None };
        if arg.shadow || arg.cost == 0 { None } else { self.consume_or_prefetch(arg, quota, lease, now_us) }
    }

    /// Pays from what was drawn in advance; how the limit stands then, or nothing if there is not enough.
    fn consume_or_prefetch(
        self: &Arc<Self>,
        arg: &RateLimitCheck,
        quota: Quota,
        lease: PrefetchMode,
        now_us: u64,
    ) -> Option<RateLimitDecision> {
        // Without server-side code nothing can be drawn.
        if lease == PrefetchMode::Never || self.redis.is_plain() {
            return None;
        }
        let (spent, to_prefetch) = {
            let mut advance = lock(&self.prefetch);
            let spent = advance.consume(&arg.key, (&quota, lease), arg.cost, now_us);
            let asks = (lease, arg.cost);
            (spent, advance.amount_to_prefetch(&arg.key, asks, now_us, self.in_flight_max_us()))
        };
        if let Some(requests) = to_prefetch {
            tokio::spawn(Arc::clone(self).prefetch(arg.key.clone(), quota, lease, requests));
        }
        match spent {
            ConsumeOutcome::Consumed(reply) => Some(reply),
            ConsumeOutcome::Insufficient => None,
        }
    }

    /// Takes note of what Redis answered to a question that was sent at `asked_us`.
    pub(super) fn record_decision(
        self: &Arc<Self>,
        arg: &RateLimitCheck,
        (quota, lease): (&Quota, PrefetchMode),
        reply: &RateLimitDecision,
        sent_us: u64,
        tracked: Option<&TrackedCheck>,
    ) {
        // A limit that denies nobody is never asked about, and one on concurrency may be free at any moment.
        if arg.shadow || !matches!(arg.parameters, LimitParameters::Rate { .. }) {
            return;
        }
        lock(&self.prefetch).record_redis_state(&arg.key, reply.reset_us, (sent_us, self.now_us()));
        let is_hot = !reply.allowed
            && reply.retry_after_us.is_some_and(|retry_us| retry_us < hot_limit::HOT_PREFETCH_INTERVAL_US);
        if is_hot && lease != PrefetchMode::Never && !self.redis.is_plain() {
            lock(&self.prefetch).mark_hot(&arg.key, quota, reply.reset_us, self.now_us());
        }
        let is_last = reply.allowed && reply.remaining < arg.cost && tracked.is_none();
        if is_last && self.may_be_held_after_last_grant(&arg.key, (quota, lease), sent_us) {
            return;
        }
        let known = {
            let now_us = self.now_us();
            let mut denials = lock(&self.denials);
            denials.record((&arg.key, quota, arg.cost), reply, (sent_us, now_us), tracked);
            !denials.is_empty()
        };
        if known {
            self.subscribe();
        }
    }

    /// Hears from now on which limits have quota again, and of which this worker should return what it holds.
    pub(super) fn subscribe(self: &Arc<Self>) {
        if self.subscribed_us.set(self.now_us()).is_err() {
            return;
        }
        let to = |act: fn(&Arc<Self>, &str)| {
            let limiter: Weak<Self> = Arc::downgrade(self);
            Arc::new(move |key: &str| {
                if let Some(limiter) = limiter.upgrade() {
                    act(&limiter, key);
                }
            })
        };
        self.redis.on_notification(LIMIT_REPLENISHED, to(|limiter, key| limiter.on_replenished(key)));
        self.redis.on_notification(QUOTA_RETURN_REQUESTED, to(|limiter, key| limiter.return_held(key)));
    }

    /// A limit has quota again.
    pub(super) fn on_replenished(&self, key: &str) {
        let now_us = self.now_us();
        lock(&self.denials).invalidate(key, now_us);
        lock(&self.prefetch).on_quota_returned(key, now_us);
        lock(&self.reclaims).record_return(key, now_us);
        lock(&self.meters).clear_denial(key);
    }

    /// Questions that nobody answered.
    pub(super) fn abandon_probes(&self, tracked: &[TrackedCheck]) {
        if tracked.is_empty() {
            return;
        }
        let mut denials = lock(&self.denials);
        tracked.iter().for_each(|question| denials.abandon_probe(question));
    }
}
