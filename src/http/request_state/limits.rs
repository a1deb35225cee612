//! The request's limits: what they ask of Redis, what holds without it, and what is told about them.

use crate::http::error::{RequestError, StateError};
use crate::http::request_state::{BeginFailure, RequestState, RequestStateInner};
use crate::limiter::gcra::WorkerShare;
use crate::limiter::headers::RateLimitHeaders;
use crate::limiter::pending::{
    FallbackOutcome, LimitCharges, LimitDecisions, LimitGrant, PendingDecision, append,
};
use crate::limiter::permit::ConcurrencyPermit;
use crate::limiter::request_limiter::LimitAdmission;
use crate::limiter::{AppliedLimits, LimitSubject};
use crate::redis;
use crate::redis::begin::RateLimitDecision;
use crate::scoreboard::row::SlotState;

/// A request's limits and how they were decided.
#[derive(Debug)]
pub(in crate::http) struct RequestLimits {
    set: AppliedLimits,
    /// Decisions in the set's order, as far as limits were decided; `None`: allowed, and no more is known.
    decided: LimitDecisions,
    /// How they stood when one of them denied the request.
    denied: Option<LimitDecisions>,
    charges: LimitCharges,
    permits: Vec<ConcurrencyPermit>,
}

impl RequestLimits {
    /// Redis denied it: whether it has to be asked again ([`Asked::recalled`]).
    pub(super) async fn needs_retry(
        &self,
        pending: &mut PendingDecision,
        replies: &[RateLimitDecision],
    ) -> bool {
        pending.reclaim_held_quota(&self.set, replies).await
    }

    pub(super) fn new(set: AppliedLimits) -> Self {
        Self {
            set,
            decided: LimitDecisions::new(),
            denied: None,
            charges: LimitCharges::default(),
            permits: Vec::new(),
        }
    }

    /// Whether a limit was not decided yet.
    pub(super) fn are_undecided(&self) -> bool {
        self.decided.len() < self.set.len()
    }

    /// How the request's limits stand, those that are known.
    pub(in crate::http) fn decisions(&self) -> Vec<RateLimitDecision> {
        self.decided.iter().flatten().copied().collect()
    }

    /// Its places in concurrency limits, to be kept until its response has been sent.
    pub(in crate::http) fn take_permits(&mut self) -> Vec<ConcurrencyPermit> {
        std::mem::take(&mut self.permits)
    }

    fn record_grant(&mut self, granted: LimitGrant) {
        match self.decided.is_empty() {
            true => self.decided = granted.decisions,
            false => self.decided.extend(granted.decisions),
        }
        append(&mut self.permits, granted.permits);
        self.charges.add(granted.charges);
    }

    fn record_denial(&mut self, replies: LimitDecisions) {
        self.denied = Some(self.decided.iter().copied().chain(replies).collect());
    }
}

impl RequestState {
    /// What the response says about the limits; `None`: they were not asked.
    pub(in crate::http) fn rate_limit_headers(&self, limits: &RequestLimits) -> Option<RateLimitHeaders> {
        let replies = limits.denied.as_ref().unwrap_or(&limits.decided);
        let style = self.core.config.http.rate_limit_headers;
        (!replies.is_empty()).then(|| RateLimitHeaders::for_decisions(&limits.set, replies, style))
    }

    /// Puts the request under a policy by its number, or has it cost more there, and decides it.
    pub(in crate::http) async fn apply_policy(
        &self,
        policy: usize,
        cost: Option<u64>,
    ) -> Result<(), RequestError> {
        {
            let mut inner = self.lock_unless_failed().await?;
            let decided = inner.limits.decided.len();
            inner.limits.set.add_policy(policy, cost, decided);
        }
        self.decide_limits().await
    }

    /// Charges so much more to every policy over time that the request falls under.
    pub(in crate::http) async fn charge(&self, cost: u64) -> Result<(), RequestError> {
        self.decide_limits().await?;
        let mut inner = self.lock_unless_failed().await?;
        let decided = inner.limits.decided.len();
        inner.limits.set.charge(cost, decided);
        drop(inner);
        self.decide_limits().await
    }

    /// Gives back what the request was charged.
    pub(in crate::http) async fn refund(&self) -> Result<(), RequestError> {
        let charges = std::mem::take(&mut self.lock_unless_failed().await?.limits.charges);
        self.core.limiter.refund(charges).await.map_err(|error| StateError::from(&error).to_request_error())
    }

    /// Looks at the limits that are open; `Ok`: what is left to ask Redis.
    pub(super) async fn check_limits(
        &self,
        inner: &mut RequestStateInner,
    ) -> Result<Option<PendingDecision>, BeginFailure> {
        if !inner.limits.are_undecided() {
            return Ok(None);
        }
        if inner.limits.set.closes_when_full(inner.limits.decided.len())
            && self.visitor.user().is_none()
            && self.core.is_redis_full()
        {
            return Err(BeginFailure::Rejected(StateError::StorageFull));
        }
        let client = self.client.limit_subject_text(self.core.config.ipv6_prefix);
        let user = self.visitor.user().map(|user| user.to_string());
        let subject =
            LimitSubject { client: &client, session: self.visitor.confirmed_digest(), user: user.as_deref() };
        let limits = &mut inner.limits;
        match self.core.limiter.check(&limits.set, limits.decided.len(), &subject).await {
            LimitAdmission::Pending(pending) => Ok(Some(pending)),
            LimitAdmission::Denied(replies) => {
                self.core.cell().count_denied_from_cache();
                Err(self.reject(limits, replies))
            }
        }
    }

    /// Redis, or nobody at all, decided that the request is allowed.
    pub(super) fn grant(
        &self,
        limits: &mut RequestLimits,
        pending: PendingDecision,
        replies: &[RateLimitDecision],
    ) {
        let granted = pending.grant(&limits.set, replies);
        if !granted.shadow_denied.is_empty() {
            self.core.cell().count_shadow_denials(granted.shadow_denied.len() as u64);
            for limit in &granted.shadow_denied {
                let policy = limits.set.policy(*limit).name();
                tracing::debug!(policy, "the limit {policy} in shadow would have denied a request");
            }
        }
        limits.record_grant(granted);
    }

    /// Redis decided that it is denied.
    pub(super) fn deny(
        &self,
        limits: &mut RequestLimits,
        pending: PendingDecision,
        replies: &[RateLimitDecision],
    ) -> BeginFailure {
        let replies = pending.deny(&limits.set, replies);
        self.reject(limits, replies)
    }

    fn reject(&self, limits: &mut RequestLimits, replies: LimitDecisions) -> BeginFailure {
        self.core.cell().count_rate_limited();
        limits.record_denial(replies);
        BeginFailure::Rejected(StateError::Denied(self.rate_limit_headers(limits).unwrap_or_default()))
    }

    /// Redis did not answer: what the limits say without it.
    pub(super) fn fall_back(
        &self,
        limits: &mut RequestLimits,
        pending: PendingDecision,
        error: redis::RedisError,
    ) -> BeginFailure {
        self.core.cell().count_local_decision();
        if error.is_out_of_memory() {
            // Known before the next look, and to every worker.
            self.core.scoreboard.set_redis_memory_permille(1000);
        }
        match pending.fall_back(&limits.set, &error, &self.local_share()) {
            FallbackOutcome::Allowed(granted) => {
                limits.record_grant(granted);
                BeginFailure::RedisUnavailable(error)
            }
            FallbackOutcome::Denied(replies) => self.reject(limits, replies),
            FallbackOutcome::FailClosed => BeginFailure::Rejected(StateError::from(&error)),
        }
    }

    /// This worker's part of limits that Redis does not count: the workers of this machine that serve share it, and as
    /// many on every other machine.
    fn local_share(&self) -> WorkerShare {
        let board = &self.core.scoreboard;
        let own = self.core.worker.slot();
        let ready = |slot: &usize| board.row(*slot).state() == SlotState::Ready;
        let workers = (0..board.slots()).filter(ready).count().max(1) as u64;
        let rank = (0..board.slots().min(own)).filter(ready).count() as u64;
        WorkerShare { instances: board.instance_count().max(1), workers, rank }
    }
}
