//! The request's limits: what they ask of Redis, what holds without it, and what is told about them.

use crate::http::error::Error;
use crate::http::error::Refusal;
use crate::http::exchange::Begun;
use crate::http::exchange::Exchange;
use crate::http::exchange::Failure;
use crate::limiter::Set;
use crate::limiter::Subject;
use crate::limiter::asked::Asked;
use crate::limiter::asked::Charges;
use crate::limiter::asked::Granted;
use crate::limiter::asked::Standings;
use crate::limiter::asked::Without;
use crate::limiter::asked::append;
use crate::limiter::desk::Admission;
use crate::limiter::headers::Headers;
use crate::limiter::place::Place;
use crate::limiter::quota::Part;
use crate::redis;
use crate::redis::begin::LimitReply;
use crate::scoreboard::row::SlotState;

/// A request's limits and how they were decided.
#[derive(Debug)]
pub(in crate::http) struct Limits {
    set: Set,
    /// Decisions in the set's order, as far as limits were decided; `None`: allowed, and no more is known.
    decided: Standings,
    /// How they stood when one of them denied the request.
    denied: Option<Standings>,
    charges: Charges,
    places: Vec<Place>,
}

impl Limits {
    /// Redis denied it: whether it has to be asked again ([`Asked::recalled`]).
    pub(super) async fn recalled(&self, asked: &mut Asked, replies: &[LimitReply]) -> bool {
        asked.recalled(&self.set, replies).await
    }

    pub(super) fn new(set: Set) -> Self {
        Self { set, decided: Standings::new(), denied: None, charges: Charges::default(), places: Vec::new() }
    }

    /// Whether a limit was not decided yet.
    pub(super) fn are_open(&self) -> bool {
        self.decided.len() < self.set.len()
    }

    /// How the request's limits stand, those that are known.
    pub(in crate::http) fn known(&self) -> Vec<LimitReply> {
        self.decided.iter().flatten().copied().collect()
    }

    /// Its places in concurrency limits, to be kept until its response has been sent.
    pub(in crate::http) fn take_places(&mut self) -> Vec<Place> {
        std::mem::take(&mut self.places)
    }

    fn grant(&mut self, granted: Granted) {
        match self.decided.is_empty() {
            true => self.decided = granted.replies,
            false => self.decided.extend(granted.replies),
        }
        append(&mut self.places, granted.places);
        self.charges.add(granted.charges);
    }

    fn deny(&mut self, replies: Standings) {
        self.denied = Some(self.decided.iter().copied().chain(replies).collect());
    }
}

impl Exchange {
    /// What the response says about the limits; `None`: they were not asked.
    pub(in crate::http) fn told(&self, limits: &Limits) -> Option<Headers> {
        let replies = limits.denied.as_ref().unwrap_or(&limits.decided);
        let style = self.core.config.http.limit_headers;
        (!replies.is_empty()).then(|| limits.set.headers(replies, style))
    }

    /// Puts the request under a policy by its number, or has it cost more there, and decides it.
    pub(in crate::http) async fn limit(&self, policy: usize, cost: Option<u64>) -> Result<(), Error> {
        {
            let mut begun = self.open().await?;
            let decided = begun.limits.decided.len();
            begun.limits.set.apply(policy, cost, decided);
        }
        self.decide().await
    }

    /// Charges so much more to every policy over time that the request falls under.
    pub(in crate::http) async fn charge(&self, cost: u64) -> Result<(), Error> {
        self.decide().await?;
        let mut begun = self.open().await?;
        let decided = begun.limits.decided.len();
        begun.limits.set.charge(cost, decided);
        drop(begun);
        self.decide().await
    }

    /// Gives back what the request was charged.
    pub(in crate::http) async fn refund(&self) -> Result<(), Error> {
        let charges = std::mem::take(&mut self.open().await?.limits.charges);
        self.core.limits.refund(charges).await.map_err(|error| Refusal::from(&error).error())
    }

    /// Looks at the limits that are open; `Ok`: what is left to ask Redis.
    pub(super) async fn admit(&self, begun: &mut Begun) -> Result<Option<Asked>, Failure> {
        if !begun.limits.are_open() {
            return Ok(None);
        }
        if begun.limits.set.closes_when_full(begun.limits.decided.len())
            && self.visitor.user().is_none()
            && self.core.is_redis_full()
        {
            return Err(Failure::Refused(Refusal::Full));
        }
        let client = self.client.subject_text(self.core.config.ipv6_prefix);
        let user = self.visitor.user().map(|user| user.to_string());
        let subject = Subject { client: &client, session: self.visitor.confirmed(), user: user.as_deref() };
        let limits = &mut begun.limits;
        match self.core.limits.admit(&limits.set, limits.decided.len(), &subject).await {
            Admission::Ask(asked) => Ok(Some(asked)),
            Admission::Denied(replies) => {
                self.core.cell().denied_here();
                Err(self.denied(limits, replies))
            }
        }
    }

    /// Redis, or nobody at all, decided that the request is allowed.
    pub(super) fn granted(&self, limits: &mut Limits, asked: Asked, replies: &[LimitReply]) {
        let granted = asked.granted(&limits.set, replies);
        if !granted.shadowed.is_empty() {
            self.core.cell().shadowed(granted.shadowed.len() as u64);
            for limit in &granted.shadowed {
                let policy = limits.set.policy(*limit).name();
                tracing::debug!(policy, "the limit {policy} in shadow would have denied a request");
            }
        }
        limits.grant(granted);
    }

    /// Redis decided that it is denied.
    pub(super) fn refused(&self, limits: &mut Limits, asked: Asked, replies: &[LimitReply]) -> Failure {
        let replies = asked.denied(&limits.set, replies);
        self.denied(limits, replies)
    }

    fn denied(&self, limits: &mut Limits, replies: Standings) -> Failure {
        self.core.cell().limited();
        limits.deny(replies);
        Failure::Refused(Refusal::Denied(self.told(limits).unwrap_or_default()))
    }

    /// Redis did not answer: what the limits say without it.
    pub(super) fn without(&self, limits: &mut Limits, asked: Asked, error: redis::Error) -> Failure {
        self.core.cell().insured();
        if error.is_out_of_memory() {
            // Known before the next look, and to every worker.
            self.core.scoreboard.set_redis_permille(1000);
        }
        match asked.without(&limits.set, &error, &self.part()) {
            Without::Allowed(granted) => {
                limits.grant(granted);
                Failure::Away(error)
            }
            Without::Denied(replies) => self.denied(limits, replies),
            Without::Closed => Failure::Refused(Refusal::from(&error)),
        }
    }

    /// This worker's part of limits that Redis does not count: the workers of this machine that serve share it, and as
    /// many on every other machine.
    fn part(&self) -> Part {
        let board = &self.core.scoreboard;
        let own = self.core.worker.slot();
        let ready = |slot: &usize| board.row(*slot).state() == SlotState::Ready;
        let workers = (0..board.slots()).filter(ready).count().max(1) as u64;
        let rank = (0..board.slots().min(own)).filter(ready).count() as u64;
        Part { machines: board.machines().max(1), workers, rank }
    }
}
