//! A request whose limits Redis decides, from the check to what the reply means.
//!
//! Guarantees that in every case (granted, denied, no reply, dropped half-way) no request waits for a reply that does not
//! come, and that prefetched quota it consumed goes back unless it was allowed.

use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use tokio::time::timeout;

use crate::config::limits::{OnRedisDown, PrefetchMode};
use crate::limiter::commands::{LimitParameters, RateLimitCheck, RateLimitDecision};
use crate::limiter::denial_cache::TrackedCheck;
use crate::limiter::gcra::{Quota, WorkerShare};
use crate::limiter::local_fallback::LocalCheck;
use crate::limiter::permit::ConcurrencyPermit;
use crate::limiter::policy::{AppliedLimits, PolicyMeasure};
use crate::limiter::prefetch::terms::PrefetchTerms;
use crate::limiter::reclaim::{RECLAIM_WAIT_US, ReclaimStep};
use crate::limiter::state::{LimiterState, lock};
use crate::limiter::{background, hot_limit};
use crate::redis::RedisError;

/// A request and its limits.
#[derive(Debug)]
pub struct PendingDecision {
    limiter: Arc<LimiterState>,
    /// Index of its first limit among the request's limits.
    first_index: usize,
    /// Limits that Redis decides.
    checks: Vec<RateLimitCheck>,
    /// Limits that prefetched quota pays for.
    prefetched: Vec<PrefetchedCharge>,
    /// The checks of scarce limits; other requests wait for the reply to some of them.
    tracked: Vec<TrackedCheck>,
    permit_name: String,
    permits: Vec<ConcurrencyPermit>,
    sent_us: u64,
    /// When it consumed prefetched quota.
    consumed_us: u64,
    /// Until when it may wait for quota that other workers return; `None`: Redis has not denied it.
    reclaim_deadline_us: Option<u64>,
}

/// A limit that prefetched quota pays for.
#[derive(Debug)]
pub(super) struct PrefetchedCharge {
    /// Its index among the limits of this decision.
    pub(super) index: usize,
    pub(super) check: RateLimitCheck,
    /// The limit's state with this request charged.
    pub(super) reply: RateLimitDecision,
}

/// What the limiter prepared before Redis is called.
#[derive(Debug, Default)]
pub(super) struct PendingParts {
    pub(super) checks: Vec<RateLimitCheck>,
    pub(super) prefetched: Vec<PrefetchedCharge>,
    pub(super) tracked: Vec<TrackedCheck>,
    pub(super) permit_name: String,
    pub(super) permits: Vec<ConcurrencyPermit>,
}

/// Decisions on a request's limits, in their order; for one limit, as most requests have, nothing is allocated.
pub type LimitDecisions = SmallVec<[Option<RateLimitDecision>; 1]>;

/// A request that is allowed.
#[derive(Debug, Default)]
pub struct LimitGrant {
    /// The decisions on its limits; `None`: not known, because Redis is unavailable.
    pub decisions: LimitDecisions,
    /// Its concurrency permits, to be held until it ends.
    pub permits: Vec<ConcurrencyPermit>,
    /// What it was charged, for a refund if it should not have counted.
    pub charges: LimitCharges,
    /// Indexes of limits in shadow mode that would have denied it.
    pub shadow_denied: Vec<usize>,
}

/// What a request was charged.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LimitCharges {
    /// In Redis.
    pub redis: Vec<RateLimitCheck>,
    /// From prefetched quota.
    pub prefetched: Vec<RateLimitCheck>,
}

impl LimitCharges {
    /// Adds more charges.
    pub fn add(&mut self, more: Self) {
        append(&mut self.redis, more.redis);
        append(&mut self.prefetched, more.prefetched);
    }
}

/// Appends to a list that is nearly always empty: then `more` is moved, and nothing is allocated.
pub fn append<T>(list: &mut Vec<T>, more: Vec<T>) {
    match list.is_empty() {
        true => *list = more,
        false => list.extend(more),
    }
}

/// What happens to a request when Redis did not reply.
#[derive(Debug)]
pub enum FallbackOutcome {
    /// Every limit allows it, or is not known.
    Allowed(LimitGrant),
    /// It exceeds this worker's share of a limit.
    Denied(LimitDecisions),
    /// A limit is closed while Redis is unavailable, or this worker's share is too small for such a request.
    FailClosed,
}

/// The decision of this worker's shares.
enum LocalDecision {
    Allowed(Vec<ConcurrencyPermit>),
    Denied,
    /// The request costs more than a share ever allows.
    TooSmall,
}

impl PendingDecision {
    pub(super) fn new(
        limiter: Arc<LimiterState>,
        first_index: usize,
        parts: PendingParts,
        sent_us: u64,
    ) -> Self {
        let PendingParts { checks, prefetched, tracked, permit_name, permits } = parts;
        Self {
            limiter,
            first_index,
            checks,
            prefetched,
            tracked,
            permit_name,
            permits,
            sent_us,
            consumed_us: sent_us,
            reclaim_deadline_us: None,
        }
    }

    /// The enforced limits that denied: index, key, and how many requests Redis has left.
    fn denied_checks(&self, set: &AppliedLimits, replies: &[RateLimitDecision]) -> Vec<(usize, String, u64)> {
        let checks = self.checked_indices().zip(&self.checks).zip(replies);
        let denying = checks.filter(|((index, _), reply)| !reply.allowed && !set.policy(*index).is_shadow());
        denying.map(|((index, check), reply)| (index, check.key.clone(), reply.remaining)).collect()
    }

    /// The call to Redis starts now, not when the decision was prepared.
    pub(super) fn set_sent_at(&mut self, now_us: u64) {
        self.sent_us = now_us;
    }

    /// The checks for Redis; empty: none is needed.
    pub fn checks(&self) -> &[RateLimitCheck] {
        &self.checks
    }

    /// The name of this request in concurrency limits.
    pub fn permit_name(&self) -> &str {
        &self.permit_name
    }

    /// The request is allowed; `replies` are to [`Self::checks`], and empty if there were none.
    pub fn grant(mut self, set: &AppliedLimits, replies: &[RateLimitDecision]) -> LimitGrant {
        let decisions = self.decisions(set, replies, 0);
        let mut permits = std::mem::take(&mut self.permits).into_iter();
        let (mut grant, mut left) = (LimitGrant::default(), replies.iter());
        for index in self.checked_indices() {
            let Some(reply) = left.next() else { break };
            if !reply.allowed {
                grant.shadow_denied.push(index);
            }
            if let PolicyMeasure::Concurrency { lease, .. } = set.policy(index).measure()
                && let Some(mut permit) = permits.next()
            {
                if reply.allowed {
                    permit.start_renewal(lease);
                    grant.permits.push(permit);
                } else {
                    permit.discard();
                }
            }
        }
        // Moved, not copied: every allowed request comes through here.
        grant.charges.redis = std::mem::take(&mut self.checks);
        if !grant.shadow_denied.is_empty() {
            let mut left = replies.iter();
            grant.charges.redis.retain(|_| left.next().is_none_or(|reply| reply.allowed));
        }
        let prefetched = std::mem::take(&mut self.prefetched).into_iter();
        grant.charges.prefetched = prefetched.map(|charge| charge.check).collect();
        grant.decisions = decisions;
        grant
    }

    /// Redis denied the request; returns the decisions on its limits.
    pub fn deny(mut self, set: &AppliedLimits, replies: &[RateLimitDecision]) -> LimitDecisions {
        std::mem::take(&mut self.permits).into_iter().for_each(ConcurrencyPermit::discard);
        self.decisions(set, replies, 1)
    }

    /// Redis did not decide: each limit follows its `on_redis_down`; `share` is this worker's part of the limits.
    pub fn fall_back(
        mut self,
        set: &AppliedLimits,
        error: &RedisError,
        share: &WorkerShare,
    ) -> FallbackOutcome {
        if !matches!(error, RedisError::Timeout) {
            std::mem::take(&mut self.permits).into_iter().for_each(ConcurrencyPermit::discard);
        }
        let indices: Vec<usize> = self.checked_indices().collect();
        let follows = |index: usize, rule: OnRedisDown| {
            let policy = set.policy(index);
            !policy.is_shadow() && policy.on_redis_down() == rule
        };
        if indices.iter().any(|index| follows(*index, OnRedisDown::Closed)) {
            return FallbackOutcome::FailClosed;
        }
        let checks = indices.into_iter().zip(&self.checks);
        let local: Vec<_> = checks.filter(|(index, _)| follows(*index, OnRedisDown::Local)).collect();
        let mut decisions: LimitDecisions = smallvec![None; self.checks.len() + self.prefetched.len()];
        match self.decide_locally(set, &local, share, &mut decisions) {
            LocalDecision::TooSmall => FallbackOutcome::FailClosed,
            LocalDecision::Denied => FallbackOutcome::Denied(decisions),
            LocalDecision::Allowed(permits) => {
                let mut grant = LimitGrant { decisions, permits, ..LimitGrant::default() };
                for PrefetchedCharge { index, check, reply } in std::mem::take(&mut self.prefetched) {
                    grant.decisions[index] = Some(reply);
                    grant.charges.prefetched.push(check);
                }
                FallbackOutcome::Allowed(grant)
            }
        }
    }

    /// Decides by this worker's share of each limit.
    fn decide_locally(
        &self,
        set: &AppliedLimits,
        local: &[(usize, &RateLimitCheck)],
        share: &WorkerShare,
        decisions: &mut [Option<RateLimitDecision>],
    ) -> LocalDecision {
        let (mut permits, mut checks, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        for (index, check) in local {
            let own_index = *index - self.first_index;
            match set.policy(*index).measure() {
                PolicyMeasure::Rate { quota, .. } => {
                    checks.push(LocalCheck { key: &check.key, quota, cost: check.cost });
                    indices.push(own_index);
                }
                PolicyMeasure::Concurrency { max, lease } => {
                    let portion = share.portion(max, &check.key);
                    if portion == 0 {
                        return LocalDecision::TooSmall;
                    }
                    let permit = ConcurrencyPermit::local(&self.limiter.local_permits, &check.key, portion);
                    let Some(permit) = permit else {
                        let reset_us = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
                        let retry_after_us = Some(reset_us.min(1_000_000));
                        let denied =
                            RateLimitDecision { allowed: false, remaining: 0, retry_after_us, reset_us };
                        decisions[own_index] = Some(denied);
                        return LocalDecision::Denied;
                    };
                    permits.push(permit);
                }
            }
        }
        let now_us = self.limiter.now_us();
        let Some(decided) = lock(&self.limiter.local_limiter).decide(&checks, share, now_us) else {
            return LocalDecision::TooSmall;
        };
        let allowed = decided.iter().all(|decision| decision.allowed);
        for (index, decision) in indices.into_iter().zip(decided) {
            decisions[index] = Some(decision);
        }
        if allowed && !checks.is_empty() {
            background::schedule_deferred(&self.limiter);
        }
        if allowed { LocalDecision::Allowed(permits) } else { LocalDecision::Denied }
    }

    /// Indexes, among the request's limits, of those that Redis decides.
    fn checked_indices(&self) -> impl Iterator<Item = usize> {
        let all = 0..self.checks.len() + self.prefetched.len();
        let checked = all.filter(move |index| !self.prefetched.iter().any(|charge| charge.index == *index));
        checked.map(move |index| self.first_index + index)
    }

    /// Records Redis's replies and returns the decisions on all limits. Prefetched charges count as returned `times`
    /// times: once for a denied request.
    fn decisions(
        &mut self,
        set: &AppliedLimits,
        replies: &[RateLimitDecision],
        times: u64,
    ) -> LimitDecisions {
        let mut tracked = std::mem::take(&mut self.tracked);
        if !tracked.is_empty() {
            // A check that prefetched quota paid for was never sent.
            let unsent =
                tracked.extract_if(.., |tracked| !self.checks.iter().any(|check| check.key == tracked.key));
            self.limiter.abandon_probes(&unsent.collect::<Vec<_>>());
        }
        let mut decisions: LimitDecisions = smallvec![None; self.checks.len() + self.prefetched.len()];
        for ((index, check), reply) in self.checked_indices().zip(&self.checks).zip(replies) {
            if let PolicyMeasure::Rate { quota, lease } = set.policy(index).measure() {
                let tracked = tracked.iter().find(|tracked| tracked.key == check.key);
                self.record_decision(check, (&quota, lease), reply, tracked);
            }
            decisions[index - self.first_index] = Some(*reply);
        }
        for PrefetchedCharge { index, check, reply } in &self.prefetched {
            decisions[*index] = Some(after_refund(reply, check, times));
        }
        decisions
    }

    /// Records one reply of Redis in the worker's caches.
    fn record_decision(
        &self,
        check: &RateLimitCheck,
        (quota, mode): (&Quota, PrefetchMode),
        reply: &RateLimitDecision,
        tracked: Option<&TrackedCheck>,
    ) {
        // A limit in shadow mode denies no request, and a concurrency permit may be free at any moment.
        if check.shadow || !matches!(check.parameters, LimitParameters::Rate { .. }) {
            return;
        }
        let (limiter, sent_us) = (&self.limiter, self.sent_us);
        lock(&limiter.prefetch).record_redis_state(&check.key, reply.reset_us, (sent_us, limiter.now_us()));
        let is_hot = !reply.allowed
            && reply.retry_after_us.is_some_and(|retry_us| retry_us < hot_limit::HOT_PREFETCH_INTERVAL_US);
        if is_hot && mode != PrefetchMode::Never && !limiter.redis.is_plain() {
            lock(&limiter.prefetch).mark_hot(&check.key, quota, reply.reset_us, limiter.now_us());
        }
        let is_last = reply.allowed && reply.remaining < check.cost && tracked.is_none();
        if is_last && may_be_held_after_last_grant(limiter, &check.key, (quota, mode), sent_us) {
            return;
        }
        let has_denials = {
            let now_us = limiter.now_us();
            let mut denials = lock(&limiter.denials);
            denials.record((&check.key, quota, check.cost), reply, (sent_us, now_us), tracked);
            !denials.is_empty()
        };
        if has_denials {
            background::subscribe(limiter);
        }
    }

    /// Redis denied the request: waits for quota that other workers hold and returns whether to ask Redis again. False
    /// once the request has waited for as long as it may.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn reclaim_held_quota(&mut self, set: &AppliedLimits, replies: &[RateLimitDecision]) -> bool {
        let limiter = Arc::clone(&self.limiter);
        for (index, key, remaining) in self.denied_checks(set, replies) {
            let PolicyMeasure::Rate { quota, lease } = set.policy(index).measure() else { continue };
            let deadline_us = self.reclaim_deadline();
            if limiter.now_us() >= deadline_us || !receives_returns(&limiter, lease, &quota).await {
                continue;
            }
            let now_us = limiter.now_us();
            let quiet_us = reclaim_cooldown_us(&limiter, &key, (&quota, lease), remaining, now_us);
            let Some(quiet_us) = quiet_us else { continue };
            let step = lock(&limiter.reclaims).next_step(&key, quiet_us, self.sent_us, now_us);
            let (starts_round, until_us, returned) = match step {
                ReclaimStep::Denied => continue,
                ReclaimStep::Retry => {
                    self.set_sent_at(now_us);
                    return true;
                }
                ReclaimStep::Wait { starts_round, until_us, returned } => (starts_round, until_us, returned),
            };
            // Created before anything is sent: a return that comes first would be missed.
            let notified = returned.notified();
            if starts_round {
                // This worker may hold some itself, if it is less than such a request costs.
                background::return_held(&limiter, &key);
                limiter.redis.request_quota_return(&key);
            }
            let wait = Duration::from_micros(until_us.min(deadline_us).saturating_sub(now_us));
            if timeout(wait, notified).await.is_ok() {
                self.set_sent_at(limiter.now_us());
                return true;
            }
        }
        false
    }

    /// Until when this request may wait, counted from its first denial: one deadline for all its limits and all rounds.
    fn reclaim_deadline(&mut self) -> u64 {
        let limiter = &self.limiter;
        *self.reclaim_deadline_us.get_or_insert_with(|| {
            let connects = limiter.redis.notifications_complete_since().is_none();
            limiter.now_us().saturating_add(if connects { 2 * RECLAIM_WAIT_US } else { RECLAIM_WAIT_US })
        })
    }
}

impl Drop for PendingDecision {
    fn drop(&mut self) {
        // Checks with a reply have been taken out of both lists.
        self.limiter.abandon_probes(&self.tracked);
        for PrefetchedCharge { check, .. } in self.prefetched.drain(..) {
            background::return_unused(&self.limiter, check, self.consumed_us);
        }
    }
}

/// A limit's state when `times` times the request's cost is returned.
fn after_refund(reply: &RateLimitDecision, check: &RateLimitCheck, times: u64) -> RateLimitDecision {
    let LimitParameters::Rate { interval_us, .. } = check.parameters else { return *reply };
    let requests = times.saturating_mul(check.cost);
    let remaining = reply.remaining.saturating_add(requests);
    let reset_us = reply.reset_us.saturating_sub(requests.saturating_mul(interval_us));
    RateLimitDecision { remaining, reset_us, ..*reply }
}

/// How long after a round no worker can hold quota of a limit of which Redis has so many requests left; `None`: quota of
/// this limit is not called back.
fn reclaim_cooldown_us(
    limiter: &LimiterState,
    key: &str,
    (quota, mode): (&Quota, PrefetchMode),
    remaining: u64,
    now_us: u64,
) -> Option<u64> {
    let terms = PrefetchTerms::for_mode(mode, quota).filter(|terms| terms.busy_only)?;
    // The connection may deliver other notifications and returned quota not yet.
    let is_subscribed = limiter.subscribed_since_us().is_some();
    let is_hot = lock(&limiter.prefetch).is_hot(key, now_us);
    // With the reserve or more left others prefetch at any moment, and only the cost was too high.
    let until_prefetched = terms.reserve.saturating_sub(remaining);
    (is_subscribed && !is_hot).then(|| until_prefetched.saturating_mul(quota.interval_us()))
}

/// Whether returned quota arrives here. A worker that is denied before it ever prefetched subscribes first and waits a
/// moment for the connection: without it its client is denied what other workers hold.
async fn receives_returns(limiter: &Arc<LimiterState>, mode: PrefetchMode, quota: &Quota) -> bool {
    let is_reclaimed = PrefetchTerms::for_mode(mode, quota).is_some_and(|terms| terms.busy_only);
    if limiter.redis.is_plain() || !is_reclaimed {
        return false;
    }
    background::subscribe(limiter);
    let since_us = limiter.subscribed_us.get().copied().unwrap_or_default();
    let left = since_us.saturating_add(RECLAIM_WAIT_US).saturating_sub(limiter.now_us());
    let mut changes = limiter.redis.notification_completeness_changes();
    let connected = changes.wait_for(Option::is_some);
    limiter.redis.notifications_complete_since().is_some()
        || left > 0 && timeout(Duration::from_micros(left), connected).await.is_ok()
}

/// Redis granted the last it had: whether another worker may still hold quota. Then the next request must ask Redis, and
/// calls that quota back if it is denied; the denial cache must not deny it.
fn may_be_held_after_last_grant(
    limiter: &LimiterState,
    key: &str,
    (quota, mode): (&Quota, PrefetchMode),
    sent_us: u64,
) -> bool {
    let now_us = limiter.now_us();
    let quiet_us = reclaim_cooldown_us(limiter, key, (quota, mode), 0, now_us);
    quiet_us
        .is_some_and(|quiet_us| lock(&limiter.reclaims).may_be_held_elsewhere(key, quiet_us, sent_us, now_us))
}
