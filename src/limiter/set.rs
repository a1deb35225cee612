//! The policies that one request falls under.

use std::sync::Arc;

use crate::config::limit::LimitHeaders;
use crate::limiter::headers;
use crate::limiter::headers::Headers;
use crate::limiter::headers::Told;
use crate::limiter::policy::Measured;
use crate::limiter::policy::Policy;
use crate::limiter::policy::Subject;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitReply;

/// The policies one request falls under; cheap to clone.
#[derive(Debug, Clone)]
pub struct Set {
    all: Arc<[Policy]>,
    chosen: Arc<[Chosen]>,
    /// What stands for the request's headers, by policy.
    tags: Vec<(usize, String)>,
    names_path: bool,
}

/// A policy by number, with the route that matched and what the request counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    pub(super) policy: usize,
    pub(super) route: Option<usize>,
    pub(super) cost: u64,
}

impl Chosen {
    pub(super) fn new(policy: usize, route: Option<usize>, cost: u64) -> Self {
        Self { policy, route, cost }
    }
}

impl Set {
    pub(super) fn new(
        all: Arc<[Policy]>,
        chosen: Arc<[Chosen]>,
        tags: Vec<(usize, String)>,
        names_path: bool,
    ) -> Self {
        Self { all, chosen, tags, names_path }
    }

    /// Whether no policy applies.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// Limits to be decided; one policy may have two, when a layer asks for more than was decided already.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Whether a policy names the path, so that it is decided before the handler even if that uses no state.
    pub fn names_path(&self) -> bool {
        self.names_path
    }

    /// Whether a stranger is refused while Redis is nearly full; the first `decided` limits have been passed.
    pub fn closes_when_full(&self, decided: usize) -> bool {
        self.chosen.iter().skip(decided).any(|chosen| self.all[chosen.policy].closes_when_full())
    }

    /// A limit's policy.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn policy(&self, limit: usize) -> &Policy {
        &self.all[self.chosen[limit].policy]
    }

    /// Puts the request under a policy by its number, or has it cost more there; the first `decided` limits are
    /// charged already.
    pub fn apply(&mut self, policy: usize, cost: Option<u64>, decided: usize) {
        let Some(own) = self.all.get(policy) else { return };
        let (cost, companion) = (cost.unwrap_or(own.cost()), own.its_companion());
        self.put(policy, cost, decided);
        if let Some(companion) = companion.filter(|_| self.tags.iter().any(|(tagged, _)| *tagged == policy)) {
            self.put(companion, cost, decided);
        }
    }

    fn put(&mut self, policy: usize, cost: u64, decided: usize) {
        let own = &self.all[policy];
        let mut chosen = self.chosen.to_vec();
        let open = chosen.iter().skip(decided).position(|chosen| chosen.policy == policy);
        match open {
            Some(position) => chosen[decided + position].cost = cost,
            None => {
                let paid = chosen.iter().filter(|chosen| chosen.policy == policy);
                let missing = match own.measure() {
                    Measured::Rate { .. } => cost.saturating_sub(paid.map(|chosen| chosen.cost).sum()),
                    Measured::Concurrency { .. } => cost.saturating_sub(paid.count() as u64),
                };
                if missing == 0 {
                    return;
                }
                chosen.push(Chosen::new(policy, None, missing));
            }
        }
        self.chosen = chosen.into();
    }

    /// Asks for so much more under every policy over time; `decided` limits are charged already.
    pub fn charge(&mut self, cost: u64, decided: usize) {
        let mut chosen = self.chosen.to_vec();
        for index in 0..decided.min(chosen.len()) {
            let again = Chosen { cost, ..chosen[index] };
            let is_rate = matches!(self.all[again.policy].measure(), Measured::Rate { .. });
            if is_rate && !chosen[..index].iter().any(|before| before.policy == again.policy) {
                chosen.push(again);
            }
        }
        self.chosen = chosen.into();
    }

    /// What the request asks of Redis, from this limit on.
    pub fn args(&self, from: usize, subject: &Subject<'_>) -> Vec<LimitArg> {
        let arg = |chosen: &Chosen| {
            let tag = self.tags.iter().find(|(policy, _)| *policy == chosen.policy);
            self.all[chosen.policy].arg(*chosen, subject, tag.map(|(_, tag)| tag.as_str()))
        };
        self.chosen.iter().skip(from).map(arg).collect()
    }

    /// What the client is told about the decisions, which are in the set's order; `None`: nothing is known.
    pub fn headers(&self, replies: &[Option<LimitReply>], style: LimitHeaders) -> Headers {
        let told = |index: usize| {
            let chosen = self.chosen[index];
            let policy = &self.all[chosen.policy];
            // Of a policy that was asked twice the last answer counts.
            let last = !self.chosen[index + 1..].iter().any(|later| later.policy == chosen.policy);
            let measure = policy.measure();
            let reply = replies.get(index).copied().flatten();
            (last && !policy.is_shadow()).then(|| Told { name: policy.name(), measure, reply })
        };
        headers::compose((0..self.chosen.len()).filter_map(told), style)
    }
}
