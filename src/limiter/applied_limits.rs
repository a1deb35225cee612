//! The policies that one request falls under.

use std::sync::Arc;

use crate::config::limits::RateLimitHeaderStyle;
use crate::limiter::headers;
use crate::limiter::headers::{PolicyDecision, RateLimitHeaders};
use crate::limiter::policy::{LimitPolicy, LimitSubject, PolicyMeasure};
use crate::redis::begin::{RateLimitCheck, RateLimitDecision};

/// The policies one request falls under; cheap to clone.
#[derive(Debug, Clone)]
pub struct AppliedLimits {
    all: Arc<[LimitPolicy]>,
    applied: Arc<[AppliedPolicy]>,
    /// What stands for the request's headers, by policy.
    tags: Vec<(usize, String)>,
    names_path: bool,
}

/// A policy by number, and what the request counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedPolicy {
    pub(super) policy: usize,
    pub(super) cost: u64,
}

impl AppliedPolicy {
    pub(super) fn new(policy: usize, cost: u64) -> Self {
        Self { policy, cost }
    }
}

impl AppliedLimits {
    pub(super) fn new(
        all: Arc<[LimitPolicy]>,
        chosen: Arc<[AppliedPolicy]>,
        tags: Vec<(usize, String)>,
        names_path: bool,
    ) -> Self {
        Self { all, applied: chosen, tags, names_path }
    }

    /// Whether no policy applies.
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty()
    }

    /// Limits to be decided; one policy may have two, when a layer asks for more than was decided already.
    pub fn len(&self) -> usize {
        self.applied.len()
    }

    /// Whether a policy names the path, so that it is decided before the handler even if that uses no state.
    pub fn names_path(&self) -> bool {
        self.names_path
    }

    /// Whether a stranger is refused while Redis is nearly full; the first `decided` limits have been passed.
    pub fn closes_when_full(&self, decided: usize) -> bool {
        self.applied.iter().skip(decided).any(|chosen| self.all[chosen.policy].closes_when_full())
    }

    /// A limit's policy.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn policy(&self, limit: usize) -> &LimitPolicy {
        &self.all[self.applied[limit].policy]
    }

    /// Puts the request under a policy by its number, or has it cost more there; the first `decided` limits are
    /// charged already.
    pub fn add_policy(&mut self, policy: usize, cost: Option<u64>, decided: usize) {
        let Some(own) = self.all.get(policy) else { return };
        let (cost, companion) = (cost.unwrap_or(own.cost()), own.companion_index());
        self.set_cost(policy, cost, decided);
        if let Some(companion) = companion.filter(|_| self.tags.iter().any(|(tagged, _)| *tagged == policy)) {
            self.set_cost(companion, cost, decided);
        }
    }

    fn set_cost(&mut self, policy: usize, cost: u64, decided: usize) {
        let own = &self.all[policy];
        let mut chosen = self.applied.to_vec();
        let open = chosen.iter().skip(decided).position(|chosen| chosen.policy == policy);
        match open {
            Some(position) => chosen[decided + position].cost = cost,
            None => {
                let paid = chosen.iter().filter(|chosen| chosen.policy == policy);
                let missing = match own.measure() {
                    PolicyMeasure::Rate { .. } => cost.saturating_sub(paid.map(|chosen| chosen.cost).sum()),
                    PolicyMeasure::Concurrency { .. } => cost.saturating_sub(paid.count() as u64),
                };
                if missing == 0 {
                    return;
                }
                chosen.push(AppliedPolicy::new(policy, missing));
            }
        }
        self.applied = chosen.into();
    }

    /// Asks for so much more under every policy over time; `decided` limits are charged already.
    pub fn charge(&mut self, cost: u64, decided: usize) {
        let mut chosen = self.applied.to_vec();
        for index in 0..decided.min(chosen.len()) {
            let again = AppliedPolicy { cost, ..chosen[index] };
            let is_rate = matches!(self.all[again.policy].measure(), PolicyMeasure::Rate { .. });
            if is_rate && !chosen[..index].iter().any(|before| before.policy == again.policy) {
                chosen.push(again);
            }
        }
        self.applied = chosen.into();
    }

    /// What the request asks of Redis, from this limit on.
    pub fn checks(&self, from: usize, subject: &LimitSubject<'_>) -> Vec<RateLimitCheck> {
        let arg = |chosen: &AppliedPolicy| {
            let tag = self.tags.iter().find(|(policy, _)| *policy == chosen.policy);
            self.all[chosen.policy].check_for(*chosen, subject, tag.map(|(_, tag)| tag.as_str()))
        };
        self.applied.iter().skip(from).map(arg).collect()
    }

    /// What the client is told about the decisions, which are in the set's order; `None`: nothing is known.
    pub fn headers(
        &self,
        replies: &[Option<RateLimitDecision>],
        style: RateLimitHeaderStyle,
    ) -> RateLimitHeaders {
        let policy_decision = |index: usize| {
            let chosen = self.applied[index];
            let policy = &self.all[chosen.policy];
            // Of a policy that was asked twice the last answer counts.
            let last = !self.applied[index + 1..].iter().any(|later| later.policy == chosen.policy);
            let measure = policy.measure();
            let reply = replies.get(index).copied().flatten();
            (last && !policy.is_shadow()).then(|| PolicyDecision { name: policy.name(), measure, reply })
        };
        headers::render((0..self.applied.len()).filter_map(policy_decision), style)
    }
}
