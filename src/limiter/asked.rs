//! A request that asks Redis about its limits, from the question to what the answer means.
//!
//! Guarantees that whatever becomes of it (granted, denied, no answer, dropped half-way) nobody waits for an answer
//! that does not come, and that what it took in advance goes back unless it was allowed.

use std::sync::Arc;

use crate::config::limit::OnRedisDown;
use crate::limiter::desk::Desk;
use crate::limiter::desk::lock;
use crate::limiter::insurance::Claim;
use crate::limiter::place::Place;
use crate::limiter::policy::Measured;
use crate::limiter::quota::Quota;
use crate::limiter::set::Set;
use crate::redis::Error;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitReply;
use crate::redis::limit::Amount;

/// A request and its limits.
#[derive(Debug)]
pub struct Asked {
    desk: Arc<Desk>,
    /// Number of the first limit in the request's set.
    from: usize,
    slots: Vec<Slot>,
    /// Limits about which others wait for this request's answer.
    probes: Vec<String>,
    name: String,
    places: Vec<Place>,
    asked_us: u64,
}

/// One limit.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    /// Redis decides.
    Asked(LimitArg),
    /// It was drawn in advance.
    Paid { arg: LimitArg, left: u64 },
}

/// A request that is allowed.
#[derive(Debug, Default)]
pub struct Granted {
    /// How its limits stand, in their order; `None`: not known, because Redis is away.
    pub replies: Vec<Option<LimitReply>>,
    /// Its places in concurrency limits, to be kept until it ends.
    pub places: Vec<Place>,
    /// What it was charged, to be given back if it should not have counted.
    pub charges: Vec<Charge>,
    /// Limits in shadow that would have denied it, by number.
    pub shadowed: Vec<usize>,
}

/// What a limit was charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charge {
    /// In Redis.
    Redis(Amount),
    /// From what was drawn in advance.
    Advance {
        /// The limit's key.
        key: String,
        /// Requests.
        requests: u64,
    },
}

/// What becomes of a request when Redis did not answer.
#[derive(Debug)]
pub enum Without {
    /// Every limit allows it, as far as they say.
    Allowed(Granted),
    /// This worker's share of a limit is used up.
    Denied(Vec<Option<LimitReply>>),
    /// A limit is such that nobody is allowed.
    Closed,
}

impl Asked {
    pub(super) fn new(
        desk: Arc<Desk>,
        from: usize,
        slots: Vec<Slot>,
        probes: Vec<String>,
        name: String,
        places: Vec<Place>,
        asked_us: u64,
    ) -> Self {
        Self { desk, from, slots, probes, name, places, asked_us }
    }

    /// What to ask Redis; empty: nothing.
    pub fn limits(&self) -> Vec<LimitArg> {
        let asked = |slot: &Slot| match slot {
            Slot::Asked(arg) => Some(arg.clone()),
            Slot::Paid { .. } => None,
        };
        self.slots.iter().filter_map(asked).collect()
    }

    /// What this request is called in limits on concurrency.
    pub fn token(&self) -> &str {
        &self.name
    }

    /// Redis, or nobody, denied it: `replies` are to what was asked.
    pub fn granted(mut self, set: &Set, replies: &[LimitReply]) -> Granted {
        let mut granted = Granted { places: std::mem::take(&mut self.places), ..Granted::default() };
        let mut replies = replies.iter();
        for (index, slot) in std::mem::take(&mut self.slots).into_iter().enumerate() {
            let number = self.from + index;
            let reply = match slot {
                Slot::Paid { arg, left } => {
                    granted.charges.push(Charge::Advance { key: arg.key, requests: arg.cost });
                    Some(paid(&quota(set, number), left))
                }
                Slot::Asked(arg) => {
                    let reply = replies.next().copied();
                    if let Some(reply) = &reply {
                        self.note(set, number, &arg, reply);
                        match reply.allowed {
                            true => granted.charges.extend(charge(set, number, arg)),
                            false => granted.shadowed.push(number),
                        }
                    }
                    reply
                }
            };
            granted.replies.push(reply);
        }
        let lease = |number: usize| match set.policy(number).measure() {
            Measured::Concurrency { lease, .. } => Some(lease),
            Measured::Rate { .. } => None,
        };
        let leases: Vec<_> = (self.from..self.from + granted.replies.len()).filter_map(lease).collect();
        granted.places.iter_mut().zip(leases).for_each(|(place, lease)| place.keep(lease));
        granted
    }

    /// Redis denied it; how its limits stand.
    pub fn denied(mut self, set: &Set, replies: &[LimitReply]) -> Vec<Option<LimitReply>> {
        std::mem::take(&mut self.places).into_iter().for_each(Place::forget);
        let mut replies = replies.iter();
        let mut told = Vec::with_capacity(self.slots.len());
        for (index, slot) in self.slots.iter().enumerate() {
            let number = self.from + index;
            told.push(match slot {
                Slot::Paid { arg, left } => Some(paid(&quota(set, number), left + arg.cost)),
                Slot::Asked(arg) => {
                    let reply = replies.next();
                    if let Some(reply) = reply {
                        self.note(set, number, arg, reply);
                    }
                    reply.copied()
                }
            });
        }
        told
    }

    /// Redis did not do it; `sharers` is the number of workers who share the limits.
    pub fn without(mut self, set: &Set, error: &Error, sharers: u64) -> Without {
        let may_be_done = matches!(error, Error::Timeout);
        if !may_be_done {
            std::mem::take(&mut self.places).into_iter().for_each(Place::forget);
        }
        let enforced = |number: usize| !set.policy(number).is_shadow();
        let asked: Vec<(usize, &LimitArg)> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| match slot {
                Slot::Asked(arg) if enforced(self.from + index) => Some((self.from + index, arg)),
                _ => None,
            })
            .collect();
        let down = |number: usize| set.policy(number).on_redis_down();
        if asked.iter().any(|(number, _)| down(*number) == OnRedisDown::Closed) {
            return Without::Closed;
        }
        let insured: Vec<_> =
            asked.into_iter().filter(|(number, _)| down(*number) == OnRedisDown::Insured).collect();
        match self.insure(set, &insured, sharers) {
            Err(replies) => Without::Denied(replies),
            Ok((replies, places)) => {
                let mut granted = Granted { replies, places, ..Granted::default() };
                for (index, slot) in std::mem::take(&mut self.slots).into_iter().enumerate() {
                    if let Slot::Paid { arg, left } = slot {
                        granted.replies[index] = Some(paid(&quota(set, self.from + index), left));
                        granted.charges.push(Charge::Advance { key: arg.key, requests: arg.cost });
                    }
                }
                Without::Allowed(granted)
            }
        }
    }

    /// This worker's share of each limit.
    #[allow(clippy::type_complexity, reason = "allowed with its places, or denied")]
    fn insure(
        &self,
        set: &Set,
        insured: &[(usize, &LimitArg)],
        sharers: u64,
    ) -> Result<(Vec<Option<LimitReply>>, Vec<Place>), Vec<Option<LimitReply>>> {
        let mut replies = vec![None; self.slots.len()];
        let (mut places, mut claims, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        for (number, arg) in insured {
            match set.policy(*number).measure() {
                Measured::Rate { quota, .. } => {
                    claims.push(Claim { key: &arg.key, quota, cost: arg.cost });
                    numbers.push(*number - self.from);
                }
                Measured::Concurrency { most, lease } => {
                    let share = (most / sharers.max(1)).max(1);
                    match Place::own(&self.desk.local, &arg.key, share) {
                        Some(place) => places.push(place),
                        None => {
                            let reset_us = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
                            let retry_after_us = Some(reset_us.min(1_000_000));
                            let reply = LimitReply { allowed: false, remaining: 0, retry_after_us, reset_us };
                            replies[*number - self.from] = Some(reply);
                            return Err(replies);
                        }
                    }
                }
            }
        }
        let decided = lock(&self.desk.insurance).decide(&claims, sharers, self.desk.now_us());
        let allowed = decided.iter().all(|reply| reply.allowed);
        for (index, reply) in numbers.into_iter().zip(decided) {
            replies[index] = Some(reply);
        }
        if !allowed {
            return Err(replies);
        }
        if !claims.is_empty() {
            self.desk.merge_later();
        }
        Ok((replies, places))
    }

    fn note(&self, set: &Set, number: usize, arg: &LimitArg, reply: &LimitReply) {
        if let Measured::Rate { quota, .. } = set.policy(number).measure() {
            self.desk.learn(arg, &quota, reply, self.asked_us);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // Nobody waits for those that were answered: this finds nothing then.
        self.desk.unanswered(&self.probes);
        for slot in &self.slots {
            if let Slot::Paid { arg, .. } = slot {
                lock(&self.desk.advance).unspend(&arg.key, arg.cost);
            }
        }
    }
}

fn quota(set: &Set, number: usize) -> Option<Quota> {
    match set.policy(number).measure() {
        Measured::Rate { quota, .. } => Some(quota),
        Measured::Concurrency { .. } => None,
    }
}

fn charge(set: &Set, number: usize, arg: LimitArg) -> Option<Charge> {
    let quota = quota(set, number).filter(|_| arg.cost > 0)?;
    let (interval_us, tolerance_us) = (quota.interval_us(), quota.tolerance_us());
    Some(Charge::Redis(Amount { key: arg.key, interval_us, tolerance_us, requests: arg.cost }))
}

/// How a limit stands of which only this is known: so much is paid for.
fn paid(quota: &Option<Quota>, left: u64) -> LimitReply {
    let used =
        quota.map_or(0, |quota| quota.burst().saturating_sub(left).saturating_mul(quota.interval_us()));
    LimitReply { allowed: true, remaining: left, retry_after_us: None, reset_us: used }
}
