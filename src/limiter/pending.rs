//! A request that asks Redis about its limits, from the question to what the answer means.
//!
//! Guarantees that whatever becomes of it (granted, denied, no answer, dropped half-way) nobody waits for an answer
//! that does not come, and that what it took in advance goes back unless it was allowed.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::config::limits::OnRedisDown;
use crate::limiter::applied_limits::AppliedLimits;
use crate::limiter::denial_cache::TrackedCheck;
use crate::limiter::local_fallback::LocalCheck;
use crate::limiter::permit::ConcurrencyPermit;
use crate::limiter::policy::PolicyMeasure;
use crate::limiter::quota::WorkerShare;
use crate::limiter::request_limiter::{RequestLimiter, lock};
use crate::redis::RedisError;
use crate::redis::begin::{LimitParameters, RateLimitCheck, RateLimitDecision};

/// A request and its limits.
#[derive(Debug)]
pub struct PendingDecision {
    limiter: Arc<RequestLimiter>,
    /// Number of the first limit in the request's set.
    first_index: usize,
    /// Limits that Redis decides.
    checks: Vec<RateLimitCheck>,
    /// Limits that were drawn in advance.
    prefetched: Vec<PrefetchedCharge>,
    /// What is asked about limits that are short; for some of it others wait.
    tracked: Vec<TrackedCheck>,
    permit_name: String,
    permits: Vec<ConcurrencyPermit>,
    sent_us: u64,
    /// When it took what was drawn in advance.
    consumed_us: u64,
    /// Until when it may wait for what other workers return; none: Redis has not denied it.
    pub(super) reclaim_deadline_us: Option<u64>,
}

/// A limit that was drawn in advance.
#[derive(Debug)]
pub(super) struct PrefetchedCharge {
    /// Where it stands among the request's limits, from the first one here.
    pub(super) index: usize,
    pub(super) check: RateLimitCheck,
    /// How it stands, with this request charged.
    pub(super) reply: RateLimitDecision,
}

/// What the desk found out before anything was asked.
#[derive(Debug, Default)]
pub(super) struct PendingParts {
    pub(super) checks: Vec<RateLimitCheck>,
    pub(super) prefetched: Vec<PrefetchedCharge>,
    pub(super) tracked: Vec<TrackedCheck>,
    pub(super) permit_name: String,
    pub(super) permits: Vec<ConcurrencyPermit>,
}

/// How a request's limits stand; most requests have one, for which no list is allocated.
pub type LimitDecisions = SmallVec<[Option<RateLimitDecision>; 1]>;

/// A request that is allowed.
#[derive(Debug, Default)]
pub struct LimitGrant {
    /// How its limits stand, in their order; `None`: not known, because Redis is away.
    pub decisions: LimitDecisions,
    /// Its places in concurrency limits, to be kept until it ends.
    pub permits: Vec<ConcurrencyPermit>,
    /// What it was charged, to be given back if it should not have counted.
    pub charges: LimitCharges,
    /// Limits in shadow that would have denied it, by number.
    pub shadow_denied: Vec<usize>,
}

/// What a request was charged.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LimitCharges {
    /// In Redis.
    pub redis: Vec<RateLimitCheck>,
    /// From what was drawn in advance.
    pub prefetched: Vec<RateLimitCheck>,
}

impl LimitCharges {
    /// And these too.
    pub fn add(&mut self, more: Self) {
        append(&mut self.redis, more.redis);
        append(&mut self.prefetched, more.prefetched);
    }
}

/// Adds to a list which nearly always is empty: then it is moved, and nothing is allocated.
pub fn append<T>(list: &mut Vec<T>, more: Vec<T>) {
    match list.is_empty() {
        true => *list = more,
        false => list.extend(more),
    }
}

/// What becomes of a request when Redis did not answer.
#[derive(Debug)]
pub enum FallbackOutcome {
    /// Every limit allows it, as far as they say.
    Allowed(LimitGrant),
    /// This worker's share of a limit is used up.
    Denied(LimitDecisions),
    /// A limit is closed while Redis is away, or this worker's part of it is too small for such a request.
    FailClosed,
}

/// What this worker's part of the limits says.
enum LocalDecision {
    Allowed(Vec<ConcurrencyPermit>),
    Denied,
    /// Such a request is more than its part of a limit at any time.
    TooSmall,
}

impl PendingDecision {
    pub(super) fn new(
        limiter: Arc<RequestLimiter>,
        from: usize,
        question: PendingParts,
        sent_us: u64,
    ) -> Self {
        let PendingParts { checks, prefetched: paid, tracked, permit_name: name, permits: places } = question;
        Self {
            limiter,
            first_index: from,
            checks,
            prefetched: paid,
            tracked,
            permit_name: name,
            permits: places,
            sent_us,
            consumed_us: sent_us,
            reclaim_deadline_us: None,
        }
    }

    pub(super) fn limiter(&self) -> &Arc<RequestLimiter> {
        &self.limiter
    }

    /// When the question was sent.
    pub(super) fn sent_us(&self) -> u64 {
        self.sent_us
    }

    /// Which of the limits that count denied, by number and key, and how many requests Redis has left there.
    pub(super) fn denied_checks(
        &self,
        set: &AppliedLimits,
        replies: &[RateLimitDecision],
    ) -> Vec<(usize, String, u64)> {
        let checks = self.checked_indices().zip(&self.checks).zip(replies);
        let denying =
            checks.filter(|((number, _), reply)| !reply.allowed && !set.policy(*number).is_shadow());
        denying.map(|((number, arg), reply)| (number, arg.key.clone(), reply.remaining)).collect()
    }

    /// It is asked at this time, later than it was meant to be.
    pub(super) fn set_sent_at(&mut self, now_us: u64) {
        self.sent_us = now_us;
    }

    /// What to ask Redis; empty: nothing.
    pub fn checks(&self) -> &[RateLimitCheck] {
        &self.checks
    }

    /// What this request is called in limits on concurrency.
    pub fn permit_name(&self) -> &str {
        &self.permit_name
    }

    /// Redis, or nobody, decided that it is allowed; `replies` are to what was asked.
    pub fn grant(mut self, set: &AppliedLimits, replies: &[RateLimitDecision]) -> LimitGrant {
        let decisions = self.decisions(set, replies, 0);
        let mut places = std::mem::take(&mut self.permits).into_iter();
        let (mut granted, mut answers) = (LimitGrant::default(), replies.iter());
        for number in self.checked_indices() {
            let Some(reply) = answers.next() else { break };
            if !reply.allowed {
                granted.shadow_denied.push(number);
            }
            if let PolicyMeasure::Concurrency { lease, .. } = set.policy(number).measure()
                && let Some(mut place) = places.next()
            {
                if reply.allowed {
                    place.start_renewal(lease);
                    granted.permits.push(place);
                } else {
                    place.discard();
                }
            }
        }
        // Moved, not copied: this is done for every request, and the answer is rarely no.
        granted.charges.redis = std::mem::take(&mut self.checks);
        if !granted.shadow_denied.is_empty() {
            let mut answers = replies.iter();
            granted.charges.redis.retain(|_| answers.next().is_none_or(|reply| reply.allowed));
        }
        let paid = std::mem::take(&mut self.prefetched).into_iter();
        granted.charges.prefetched = paid.map(|paid| paid.check).collect();
        granted.decisions = decisions;
        granted
    }

    /// Redis denied it; how its limits stand.
    pub fn deny(mut self, set: &AppliedLimits, replies: &[RateLimitDecision]) -> LimitDecisions {
        std::mem::take(&mut self.permits).into_iter().for_each(ConcurrencyPermit::discard);
        self.decisions(set, replies, 1)
    }

    /// Redis did not do it; `part` is this worker's of the limits.
    pub fn fall_back(
        mut self,
        set: &AppliedLimits,
        error: &RedisError,
        part: &WorkerShare,
    ) -> FallbackOutcome {
        if !matches!(error, RedisError::Timeout) {
            std::mem::take(&mut self.permits).into_iter().for_each(ConcurrencyPermit::discard);
        }
        let enforced = |number: &usize| !set.policy(*number).is_shadow();
        let down = |number: usize| set.policy(number).on_redis_down();
        let numbers: Vec<usize> = self.checked_indices().collect();
        if numbers.iter().filter(|number| enforced(number)).any(|number| down(*number) == OnRedisDown::Closed)
        {
            return FallbackOutcome::FailClosed;
        }
        let insured =
            |(number, _): &(usize, &RateLimitCheck)| enforced(number) && down(*number) == OnRedisDown::Local;
        let insured: Vec<_> = numbers.into_iter().zip(&self.checks).filter(insured).collect();
        let mut replies: LimitDecisions = smallvec![None; self.checks.len() + self.prefetched.len()];
        match self.decide_locally(set, &insured, part, &mut replies) {
            LocalDecision::TooSmall => FallbackOutcome::FailClosed,
            LocalDecision::Denied => FallbackOutcome::Denied(replies),
            LocalDecision::Allowed(places) => {
                let mut granted = LimitGrant { decisions: replies, permits: places, ..LimitGrant::default() };
                for PrefetchedCharge { index, check: arg, reply } in std::mem::take(&mut self.prefetched) {
                    granted.decisions[index] = Some(reply);
                    granted.charges.prefetched.push(arg);
                }
                FallbackOutcome::Allowed(granted)
            }
        }
    }

    /// What this worker's part of each limit says.
    fn decide_locally(
        &self,
        set: &AppliedLimits,
        insured: &[(usize, &RateLimitCheck)],
        part: &WorkerShare,
        replies: &mut [Option<RateLimitDecision>],
    ) -> LocalDecision {
        let (mut places, mut claims, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        for (number, arg) in insured {
            match set.policy(*number).measure() {
                PolicyMeasure::Rate { quota, .. } => {
                    claims.push(LocalCheck { key: &arg.key, quota, cost: arg.cost });
                    indices.push(*number - self.first_index);
                }
                PolicyMeasure::Concurrency { max: most, lease } => {
                    let share = part.portion(most, &arg.key);
                    if share == 0 {
                        return LocalDecision::TooSmall;
                    }
                    let Some(place) = ConcurrencyPermit::local(&self.limiter.local_permits, &arg.key, share)
                    else {
                        let reset_us = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
                        let retry_after_us = Some(reset_us.min(1_000_000));
                        let reply =
                            RateLimitDecision { allowed: false, remaining: 0, retry_after_us, reset_us };
                        replies[*number - self.first_index] = Some(reply);
                        return LocalDecision::Denied;
                    };
                    places.push(place);
                }
            }
        }
        let Some(decided) = lock(&self.limiter.local_limiter).decide(&claims, part, self.limiter.now_us())
        else {
            return LocalDecision::TooSmall;
        };
        let allowed = decided.iter().all(|reply| reply.allowed);
        for (index, reply) in indices.into_iter().zip(decided) {
            replies[index] = Some(reply);
        }
        if allowed && !claims.is_empty() {
            self.limiter.schedule_deferred();
        }
        if allowed { LocalDecision::Allowed(places) } else { LocalDecision::Denied }
    }

    /// Numbers, in the request's set, of the limits that Redis was asked about.
    fn checked_indices(&self) -> impl Iterator<Item = usize> {
        let all = 0..self.checks.len() + self.prefetched.len();
        let checks = all.filter(move |index| !self.prefetched.iter().any(|paid| paid.index == *index));
        checks.map(move |index| self.first_index + index)
    }

    /// How all limits stand; takes note of what Redis said. What was paid comes back `times` times.
    fn decisions(
        &mut self,
        set: &AppliedLimits,
        replies: &[RateLimitDecision],
        times: u64,
    ) -> LimitDecisions {
        let mut tracked = std::mem::take(&mut self.tracked);
        if !tracked.is_empty() {
            // What was paid after all is a question that was never sent.
            let unsent =
                tracked.extract_if(.., |question| !self.checks.iter().any(|arg| arg.key == question.key));
            self.limiter.abandon_probes(&unsent.collect::<Vec<_>>());
        }
        let mut decisions: LimitDecisions = smallvec![None; self.checks.len() + self.prefetched.len()];
        for ((number, arg), reply) in self.checked_indices().zip(&self.checks).zip(replies) {
            if let PolicyMeasure::Rate { quota, lease } = set.policy(number).measure() {
                let tracked = tracked.iter().find(|question| question.key == arg.key);
                self.limiter.record_decision(arg, (&quota, lease), reply, self.sent_us, tracked);
            }
            decisions[number - self.first_index] = Some(*reply);
        }
        for PrefetchedCharge { index, check: arg, reply } in &self.prefetched {
            decisions[*index] = Some(after_refund(reply, arg, times));
        }
        decisions
    }
}

impl Drop for PendingDecision {
    fn drop(&mut self) {
        // Those that were answered are not in it any more.
        self.limiter.abandon_probes(&self.tracked);
        for PrefetchedCharge { check: arg, .. } in self.prefetched.drain(..) {
            self.limiter.return_unused(arg, self.consumed_us);
        }
    }
}

/// How a limit stands when so many times what this request was charged is given back.
fn after_refund(reply: &RateLimitDecision, arg: &RateLimitCheck, times: u64) -> RateLimitDecision {
    let LimitParameters::Rate { interval_us, .. } = arg.parameters else { return *reply };
    let requests = times.saturating_mul(arg.cost);
    let remaining = reply.remaining.saturating_add(requests);
    let reset_us = reply.reset_us.saturating_sub(requests.saturating_mul(interval_us));
    RateLimitDecision { remaining, reset_us, ..*reply }
}
