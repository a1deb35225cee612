//! A request's limits, and how they were decided.

use crate::limiter::AppliedLimits;
use crate::limiter::pending::{LimitCharges, LimitDecisions, LimitGrant, PendingDecision, append};
use crate::limiter::permit::ConcurrencyPermit;
use crate::redis::begin::RateLimitDecision;

/// A request's limits and how they were decided.
#[derive(Debug)]
pub(crate) struct RequestLimits {
    pub(super) set: AppliedLimits,
    /// Decisions in the set's order, as far as limits were decided; `None`: allowed, and no more is known.
    pub(super) decided: LimitDecisions,
    /// The decisions when one of them denied the request.
    pub(super) denied: Option<LimitDecisions>,
    pub(super) charges: LimitCharges,
    permits: Vec<ConcurrencyPermit>,
}

impl RequestLimits {
    /// Redis denied the request: whether it must be sent again because other workers hold quota that is unused.
    ///
    /// See [`PendingDecision::reclaim_held_quota`].
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

    /// The decisions that are known.
    pub(crate) fn decisions(&self) -> Vec<RateLimitDecision> {
        self.decided.iter().flatten().copied().collect()
    }

    /// Its concurrency permits, to be held until its response has been sent.
    pub(crate) fn take_permits(&mut self) -> Vec<ConcurrencyPermit> {
        std::mem::take(&mut self.permits)
    }

    pub(super) fn record_grant(&mut self, granted: LimitGrant) {
        match self.decided.is_empty() {
            true => self.decided = granted.decisions,
            false => self.decided.extend(granted.decisions),
        }
        append(&mut self.permits, granted.permits);
        self.charges.add(granted.charges);
    }

    pub(super) fn record_denial(&mut self, replies: LimitDecisions) {
        self.denied = Some(self.decided.iter().copied().chain(replies).collect());
    }
}
