//! A request that asks Redis about its limits, from the question to what the answer means.
//!
//! Guarantees that whatever becomes of it (granted, denied, no answer, dropped half-way) nobody waits for an answer
//! that does not come, and that what it took in advance goes back unless it was allowed.

use std::sync::Arc;

use smallvec::SmallVec;
use smallvec::smallvec;

use crate::config::limit::OnRedisDown;
use crate::limiter::denials::Tracked;
use crate::limiter::desk::Desk;
use crate::limiter::desk::lock;
use crate::limiter::insurance::Claim;
use crate::limiter::place::Place;
use crate::limiter::policy::Measured;
use crate::limiter::quota::Part;
use crate::limiter::set::Set;
use crate::redis::Error;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::begin::LimitReply;

/// A request and its limits.
#[derive(Debug)]
pub struct Asked {
    desk: Arc<Desk>,
    /// Number of the first limit in the request's set.
    from: usize,
    /// Limits that Redis decides.
    asked: Vec<LimitArg>,
    /// Limits that were drawn in advance.
    paid: Vec<Paid>,
    /// What is asked about limits that are short; for some of it others wait.
    tracked: Vec<Tracked>,
    name: String,
    places: Vec<Place>,
    asked_us: u64,
    /// When it took what was drawn in advance.
    spent_us: u64,
    /// Until when it may wait for what other workers return; none: Redis has not denied it.
    pub(super) recall_until_us: Option<u64>,
}

/// A limit that was drawn in advance.
#[derive(Debug)]
pub(super) struct Paid {
    /// Where it stands among the request's limits, from the first one here.
    pub(super) index: usize,
    pub(super) arg: LimitArg,
    /// How it stands, with this request charged.
    pub(super) reply: LimitReply,
}

/// What the desk found out before anything was asked.
#[derive(Debug, Default)]
pub(super) struct Question {
    pub(super) asked: Vec<LimitArg>,
    pub(super) paid: Vec<Paid>,
    pub(super) tracked: Vec<Tracked>,
    pub(super) name: String,
    pub(super) places: Vec<Place>,
}

/// How a request's limits stand; most requests have one, for which no list is allocated.
pub type Standings = SmallVec<[Option<LimitReply>; 1]>;

/// A request that is allowed.
#[derive(Debug, Default)]
pub struct Granted {
    /// How its limits stand, in their order; `None`: not known, because Redis is away.
    pub replies: Standings,
    /// Its places in concurrency limits, to be kept until it ends.
    pub places: Vec<Place>,
    /// What it was charged, to be given back if it should not have counted.
    pub charges: Charges,
    /// Limits in shadow that would have denied it, by number.
    pub shadowed: Vec<usize>,
}

/// What a request was charged.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Charges {
    /// In Redis.
    pub redis: Vec<LimitArg>,
    /// From what was drawn in advance.
    pub advance: Vec<LimitArg>,
}

impl Charges {
    /// And these too.
    pub fn add(&mut self, more: Self) {
        append(&mut self.redis, more.redis);
        append(&mut self.advance, more.advance);
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
pub enum Without {
    /// Every limit allows it, as far as they say.
    Allowed(Granted),
    /// This worker's share of a limit is used up.
    Denied(Standings),
    /// A limit is closed while Redis is away, or this worker's part of it is too small for such a request.
    Closed,
}

/// What this worker's part of the limits says.
enum Insured {
    Allowed(Vec<Place>),
    Denied,
    /// Such a request is more than its part of a limit at any time.
    TooSmall,
}

impl Asked {
    pub(super) fn new(desk: Arc<Desk>, from: usize, question: Question, asked_us: u64) -> Self {
        let Question { asked, paid, tracked, name, places } = question;
        Self {
            desk,
            from,
            asked,
            paid,
            tracked,
            name,
            places,
            asked_us,
            spent_us: asked_us,
            recall_until_us: None,
        }
    }

    pub(super) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// When the question was sent.
    pub(super) fn sent_us(&self) -> u64 {
        self.asked_us
    }

    /// Which of the limits that count denied, by number and key, and how many requests Redis has left there.
    pub(super) fn denying(&self, set: &Set, replies: &[LimitReply]) -> Vec<(usize, String, u64)> {
        let asked = self.numbers().zip(&self.asked).zip(replies);
        let denying = asked.filter(|((number, _), reply)| !reply.allowed && !set.policy(*number).is_shadow());
        denying.map(|((number, arg), reply)| (number, arg.key.clone(), reply.remaining)).collect()
    }

    /// It is asked at this time, later than it was meant to be.
    pub(super) fn asked_at(&mut self, now_us: u64) {
        self.asked_us = now_us;
    }

    /// What to ask Redis; empty: nothing.
    pub fn limits(&self) -> &[LimitArg] {
        &self.asked
    }

    /// What this request is called in limits on concurrency.
    pub fn token(&self) -> &str {
        &self.name
    }

    /// Redis, or nobody, decided that it is allowed; `replies` are to what was asked.
    pub fn granted(mut self, set: &Set, replies: &[LimitReply]) -> Granted {
        let told = self.tell(set, replies, 0);
        let mut places = std::mem::take(&mut self.places).into_iter();
        let (mut granted, mut answers) = (Granted::default(), replies.iter());
        for number in self.numbers() {
            let Some(reply) = answers.next() else { break };
            if !reply.allowed {
                granted.shadowed.push(number);
            }
            if let Measured::Concurrency { lease, .. } = set.policy(number).measure()
                && let Some(mut place) = places.next()
            {
                if reply.allowed {
                    place.keep(lease);
                    granted.places.push(place);
                } else {
                    place.forget();
                }
            }
        }
        // Moved, not copied: this is done for every request, and the answer is rarely no.
        granted.charges.redis = std::mem::take(&mut self.asked);
        if !granted.shadowed.is_empty() {
            let mut answers = replies.iter();
            granted.charges.redis.retain(|_| answers.next().is_none_or(|reply| reply.allowed));
        }
        let paid = std::mem::take(&mut self.paid).into_iter();
        granted.charges.advance = paid.map(|paid| paid.arg).collect();
        granted.replies = told;
        granted
    }

    /// Redis denied it; how its limits stand.
    pub fn denied(mut self, set: &Set, replies: &[LimitReply]) -> Standings {
        std::mem::take(&mut self.places).into_iter().for_each(Place::forget);
        self.tell(set, replies, 1)
    }

    /// Redis did not do it; `part` is this worker's of the limits.
    pub fn without(mut self, set: &Set, error: &Error, part: &Part) -> Without {
        if !matches!(error, Error::Timeout) {
            std::mem::take(&mut self.places).into_iter().for_each(Place::forget);
        }
        let enforced = |number: &usize| !set.policy(*number).is_shadow();
        let down = |number: usize| set.policy(number).on_redis_down();
        let numbers: Vec<usize> = self.numbers().collect();
        if numbers.iter().filter(|number| enforced(number)).any(|number| down(*number) == OnRedisDown::Closed)
        {
            return Without::Closed;
        }
        let insured =
            |(number, _): &(usize, &LimitArg)| enforced(number) && down(*number) == OnRedisDown::Insured;
        let insured: Vec<_> = numbers.into_iter().zip(&self.asked).filter(insured).collect();
        let mut replies: Standings = smallvec![None; self.asked.len() + self.paid.len()];
        match self.insure(set, &insured, part, &mut replies) {
            Insured::TooSmall => Without::Closed,
            Insured::Denied => Without::Denied(replies),
            Insured::Allowed(places) => {
                let mut granted = Granted { replies, places, ..Granted::default() };
                for Paid { index, arg, reply } in std::mem::take(&mut self.paid) {
                    granted.replies[index] = Some(reply);
                    granted.charges.advance.push(arg);
                }
                Without::Allowed(granted)
            }
        }
    }

    /// What this worker's part of each limit says.
    fn insure(
        &self,
        set: &Set,
        insured: &[(usize, &LimitArg)],
        part: &Part,
        replies: &mut [Option<LimitReply>],
    ) -> Insured {
        let (mut places, mut claims, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        for (number, arg) in insured {
            match set.policy(*number).measure() {
                Measured::Rate { quota, .. } => {
                    claims.push(Claim { key: &arg.key, quota, cost: arg.cost });
                    indices.push(*number - self.from);
                }
                Measured::Concurrency { most, lease } => {
                    let share = part.of(most, &arg.key);
                    if share == 0 {
                        return Insured::TooSmall;
                    }
                    let Some(place) = Place::own(&self.desk.local, &arg.key, share) else {
                        let reset_us = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
                        let retry_after_us = Some(reset_us.min(1_000_000));
                        let reply = LimitReply { allowed: false, remaining: 0, retry_after_us, reset_us };
                        replies[*number - self.from] = Some(reply);
                        return Insured::Denied;
                    };
                    places.push(place);
                }
            }
        }
        let Some(decided) = lock(&self.desk.insurance).decide(&claims, part, self.desk.now_us()) else {
            return Insured::TooSmall;
        };
        let allowed = decided.iter().all(|reply| reply.allowed);
        for (index, reply) in indices.into_iter().zip(decided) {
            replies[index] = Some(reply);
        }
        if allowed && !claims.is_empty() {
            self.desk.merge_later();
        }
        if allowed { Insured::Allowed(places) } else { Insured::Denied }
    }

    /// Numbers, in the request's set, of the limits that Redis was asked about.
    fn numbers(&self) -> impl Iterator<Item = usize> {
        let all = 0..self.asked.len() + self.paid.len();
        let asked = all.filter(move |index| !self.paid.iter().any(|paid| paid.index == *index));
        asked.map(move |index| self.from + index)
    }

    /// How all limits stand; takes note of what Redis said. What was paid comes back `times` times.
    fn tell(&mut self, set: &Set, replies: &[LimitReply], times: u64) -> Standings {
        let mut tracked = std::mem::take(&mut self.tracked);
        if !tracked.is_empty() {
            // What was paid after all is a question that was never sent.
            let unsent =
                tracked.extract_if(.., |question| !self.asked.iter().any(|arg| arg.key == question.key));
            self.desk.unanswered(&unsent.collect::<Vec<_>>());
        }
        let mut told: Standings = smallvec![None; self.asked.len() + self.paid.len()];
        for ((number, arg), reply) in self.numbers().zip(&self.asked).zip(replies) {
            if let Measured::Rate { quota, lease } = set.policy(number).measure() {
                let tracked = tracked.iter().find(|question| question.key == arg.key);
                self.desk.learn(arg, (&quota, lease), reply, self.asked_us, tracked);
            }
            told[number - self.from] = Some(*reply);
        }
        for Paid { index, arg, reply } in &self.paid {
            told[*index] = Some(with_returned(reply, arg, times));
        }
        told
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // Those that were answered are not in it any more.
        self.desk.unanswered(&self.tracked);
        for Paid { arg, .. } in self.paid.drain(..) {
            self.desk.return_unused(arg, self.spent_us);
        }
    }
}

/// How a limit stands when so many times what this request was charged is given back.
fn with_returned(reply: &LimitReply, arg: &LimitArg, times: u64) -> LimitReply {
    let LimitKind::Rate { interval_us, .. } = arg.kind else { return *reply };
    let requests = times.saturating_mul(arg.cost);
    let remaining = reply.remaining.saturating_add(requests);
    let reset_us = reply.reset_us.saturating_sub(requests.saturating_mul(interval_us));
    LimitReply { remaining, reset_us, ..*reply }
}
