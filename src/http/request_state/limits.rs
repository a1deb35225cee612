//! The request's limits: how they are decided with Redis and without, and their headers.

use std::sync::Arc;

use crate::http::error::{RequestError, StateError};
use crate::http::request_state::request_limits::RequestLimits;
use crate::http::request_state::state::{BeginFailure, RequestState, RequestStateInner};
use crate::limiter::LimitSubject;
use crate::limiter::commands::RateLimitDecision;
use crate::limiter::gcra::WorkerShare;
use crate::limiter::headers::RateLimitHeaders;
use crate::limiter::pending::{FallbackOutcome, LimitDecisions, PendingDecision};
use crate::limiter::policy::LimitPolicy;
use crate::limiter::request_limiter::LimitAdmission;
use crate::redis;
use crate::scoreboard::row::SlotState;

impl RequestState {
    /// The headers of the limits; `None`: none was decided.
    pub(crate) fn rate_limit_headers(&self, limits: &RequestLimits) -> Option<RateLimitHeaders> {
        let replies = limits.denied.as_ref().unwrap_or(&limits.decided);
        let style = self.services.worker.http.rate_limit_headers;
        (!replies.is_empty()).then(|| RateLimitHeaders::for_decisions(&limits.set, replies, style))
    }

    /// Applies a policy by its number, or raises the request's cost there, and decides it.
    pub(crate) async fn apply_policy(&self, policy: usize, cost: Option<u64>) -> Result<(), RequestError> {
        self.add_policy(policy, cost).await?;
        self.decide_limits().await
    }

    /// Applies a policy by its number, or raises the request's cost there, to be decided with the rest.
    pub(crate) async fn add_policy(&self, policy: usize, cost: Option<u64>) -> Result<(), RequestError> {
        let mut inner = self.lock_unless_failed().await?;
        let decided = inner.limits.decided.len();
        inner.limits.set.add_policy(policy, cost, decided);
        Ok(())
    }

    /// Applies policies that the program made, to be decided with the rest.
    pub(crate) async fn add_policy_in_code(
        &self,
        policies: [Option<&Arc<LimitPolicy>>; 2],
        tag: Option<&str>,
        cost: Option<u64>,
    ) -> Result<(), RequestError> {
        let mut inner = self.lock_unless_failed().await?;
        let decided = inner.limits.decided.len();
        for policy in policies.into_iter().flatten() {
            inner.limits.set.add_in_code(policy, tag, cost, decided);
        }
        Ok(())
    }

    /// Charges more requests to every rate policy that applies.
    pub(crate) async fn charge(&self, cost: u64) -> Result<(), RequestError> {
        self.decide_limits().await?;
        let mut inner = self.lock_unless_failed().await?;
        let decided = inner.limits.decided.len();
        inner.limits.set.charge(cost, decided);
        drop(inner);
        self.decide_limits().await
    }

    /// Gives back what the request was charged.
    pub(crate) async fn refund(&self) -> Result<(), RequestError> {
        let charges = std::mem::take(&mut self.lock_unless_failed().await?.limits.charges);
        self.services
            .limiter
            .refund(charges)
            .await
            .map_err(|error| StateError::from(&error).to_request_error())
    }

    /// Checks the undecided limits in this worker; `Ok`: what Redis has to decide.
    pub(crate) async fn check_limits(
        &self,
        inner: &mut RequestStateInner,
    ) -> Result<Option<PendingDecision>, BeginFailure> {
        if !inner.limits.are_undecided() {
            return Ok(None);
        }
        if inner.limits.set.closes_when_full(inner.limits.decided.len())
            && self.visitor.user().is_none()
            && self.services.worker.cell.is_redis_full()
        {
            return Err(BeginFailure::Rejected(StateError::StorageFull));
        }
        let client = self.client.limit_subject_text(self.services.ipv6_prefix);
        let user = self.visitor.user().map(|user| user.to_string());
        let subject =
            LimitSubject { client: &client, session: self.visitor.confirmed_digest(), user: user.as_deref() };
        let limits = &mut inner.limits;
        match self.services.limiter.check(&limits.set, limits.decided.len(), &subject).await {
            LimitAdmission::Pending(pending) => Ok(Some(pending)),
            LimitAdmission::Denied(replies) => {
                self.services.worker.cell().count_denied_from_cache();
                Err(self.reject(limits, replies))
            }
        }
    }

    /// The request is allowed, by Redis or without it.
    pub(crate) fn grant(
        &self,
        limits: &mut RequestLimits,
        pending: PendingDecision,
        replies: &[RateLimitDecision],
    ) {
        let granted = pending.grant(&limits.set, replies);
        if !granted.shadow_denied.is_empty() {
            self.services.worker.cell().count_shadow_denials(granted.shadow_denied.len() as u64);
            for limit in &granted.shadow_denied {
                let policy = limits.set.policy(*limit).name();
                tracing::debug!(policy, "the limit {policy} in shadow would have denied a request");
            }
        }
        limits.record_grant(granted);
    }

    /// Redis decided that it is denied.
    pub(crate) fn deny(
        &self,
        limits: &mut RequestLimits,
        pending: PendingDecision,
        replies: &[RateLimitDecision],
    ) -> BeginFailure {
        let replies = pending.deny(&limits.set, replies);
        self.reject(limits, replies)
    }

    fn reject(&self, limits: &mut RequestLimits, replies: LimitDecisions) -> BeginFailure {
        self.services.worker.cell().count_rate_limited();
        limits.record_denial(replies);
        BeginFailure::Rejected(StateError::Denied(self.rate_limit_headers(limits).unwrap_or_default()))
    }

    /// Redis did not reply: decides without it.
    pub(crate) fn fall_back(
        &self,
        limits: &mut RequestLimits,
        pending: PendingDecision,
        error: redis::RedisError,
    ) -> BeginFailure {
        self.services.worker.cell().count_local_decision();
        if error.is_out_of_memory() {
            // Known before the next inspection, and to every worker.
            self.services.worker.cell.scoreboard.set_redis_memory_permille(1000);
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

    /// This worker's share of limits while Redis does not count: it is shared by the ready workers of this instance, and by as
    /// many of every other instance.
    fn local_share(&self) -> WorkerShare {
        let board = &self.services.worker.cell.scoreboard;
        let own = self.services.worker.worker.slot();
        let ready = |slot: &usize| board.row(*slot).state() == SlotState::Ready;
        let workers = (0..board.slots()).filter(ready).count().max(1) as u64;
        let rank = (0..board.slots().min(own)).filter(ready).count() as u64;
        WorkerShare { instances: board.instance_count().max(1), workers, rank }
    }
}
