//! Where a worker's requests come with their limits: decided here if that is exact, else asked of Redis.
//!
//! Guarantees that nothing is allowed here that was not charged (drawn in advance, or this worker's share of a limit
//! while Redis is away), that nothing is denied here that Redis would allow but for a moment after it denied the same
//! subject (`denials`), and that a request that is denied by one limit is charged by none. It decides; asking Redis is its caller's, because the session travels along.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use rand::TryRngCore;
use rand::rngs::OsRng;
use smallvec::smallvec;

use crate::config::limit::Lease;
use crate::limiter::advance::Advance;
use crate::limiter::advance::Spent;
use crate::limiter::asked::Asked;
use crate::limiter::asked::Paid;
use crate::limiter::asked::Question;
use crate::limiter::asked::Standings;
use crate::limiter::denials::Denials;
use crate::limiter::denials::Look;
use crate::limiter::denials::Moment;
use crate::limiter::denials::Tracked;
use crate::limiter::hot;
use crate::limiter::hot::Turn;
use crate::limiter::insurance::Insurance;
use crate::limiter::meter::Meters;
use crate::limiter::place::Local;
use crate::limiter::place::Place;
use crate::limiter::policy::Measured;
use crate::limiter::policy::Policies;
use crate::limiter::policy::Policy;
use crate::limiter::policy::Subject;
use crate::limiter::quota::Quota;
use crate::limiter::recall::Recalls;
use crate::limiter::set::Set;
use crate::redis::Redis;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::begin::LimitReply;
use crate::redis::limit::RECALLED;

/// How long a denial is believed while news of refunds is not heard, µs.
const UNHEARD_US: u64 = 100_000;

/// The kind of news that says that a limit has quota again.
const NEWS: char = 'l';

/// A worker's limits.
pub struct Desk {
    policies: Policies,
    pub(super) redis: Redis,
    /// When this worker's clock began; `now` is counted from here.
    started: Instant,
    clock: Clock,
    /// Longest wait for an answer of Redis.
    pub(super) patience: Duration,
    denials: Mutex<Denials>,
    pub(super) insurance: Mutex<Insurance>,
    pub(super) advance: Mutex<Advance>,
    pub(super) recalls: Mutex<Recalls>,
    pub(super) local: Local,
    pub(super) meters: Mutex<Meters>,
    /// Since when it listens to news of limits, µs of its clock.
    pub(super) listens: OnceLock<u64>,
    pub(super) merges: AtomicBool,
    /// Names of this worker's places and batches: a random start, then counting.
    name: u64,
    names: AtomicU64,
}

/// Says what time it is.
pub type Clock = fn() -> Instant;

/// What becomes of a request under its limits.
#[derive(Debug)]
pub enum Admission {
    /// One of them is known to deny; how they stand, as far as that is known.
    Denied(Standings),
    /// Redis has to be asked, or nothing is left to ask.
    Ask(Asked),
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("policies", &self.policies).finish_non_exhaustive()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn denied_for(retry_us: u64, reset_us: u64) -> LimitReply {
    LimitReply { allowed: false, remaining: 0, retry_after_us: Some(retry_us), reset_us }
}

/// What the look at all limits of a request found.
enum Looked {
    Denied(Standings),
    Wait(Arc<tokio::sync::Notify>),
    /// So much is to be drawn for this limit first, which is hot.
    Draw {
        key: String,
        quota: Quota,
        requests: u64,
        answered: Arc<tokio::sync::Notify>,
    },
    /// Nothing denies. What is asked about limits that are short, and when.
    Ask {
        tracked: Vec<Tracked>,
        at_us: u64,
    },
}

impl Desk {
    /// Prepares the limits of one worker; `patience` is the longest wait for Redis.
    pub fn new(policies: Policies, redis: Redis, patience: Duration, clock: Clock) -> Arc<Self> {
        // Without random bytes places of two workers may have one name: one of them then ends early.
        let random = || OsRng.try_next_u64().unwrap_or(0);
        let name = random();
        Arc::new(Self {
            policies,
            redis,
            started: clock(),
            clock,
            patience,
            denials: Mutex::default(),
            insurance: Mutex::default(),
            advance: Mutex::new(Advance::new([random(), random()])),
            recalls: Mutex::default(),
            local: Local::default(),
            meters: Mutex::default(),
            listens: OnceLock::new(),
            merges: AtomicBool::new(false),
            name,
            names: AtomicU64::new(0),
        })
    }

    /// The configured policies.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// µs of this worker's clock.
    pub(super) fn now_us(&self) -> u64 {
        self.us((self.clock)())
    }

    pub(super) fn us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    fn patience_us(&self) -> u64 {
        u64::try_from(self.patience.as_micros()).unwrap_or(u64::MAX)
    }

    /// After so long no question of before is under way any more, µs.
    fn under_way_us(&self) -> u64 {
        self.patience_us().saturating_mul(4)
    }

    /// A name that no other worker has given.
    pub(super) fn new_name(&self) -> String {
        format!("{:016x}-{:x}", self.name, self.names.fetch_add(1, Relaxed))
    }

    /// Looks at the limits of a request from number `from` on.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn admit(self: &Arc<Self>, set: &Set, from: usize, subject: &Subject<'_>) -> Admission {
        let args = set.args(from, subject);
        let mut waited = false;
        loop {
            let now_us = self.now_us();
            match self.look(set, from, &args, now_us, waited) {
                Looked::Denied(replies) => return Admission::Denied(replies),
                Looked::Wait(answered) => {
                    waited = true;
                    // Answered or not, the next look says how things are.
                    let _ = tokio::time::timeout(self.patience, answered.notified()).await.is_ok();
                }
                Looked::Draw { key, quota, requests, answered } => {
                    waited = true;
                    // It goes on whatever becomes of this request: others wait for it.
                    tokio::spawn(Arc::clone(self).draw_hot(key, quota, requests));
                    let _ = tokio::time::timeout(self.patience, answered.notified()).await.is_ok();
                }
                Looked::Ask { tracked, at_us } => {
                    // From here on the question is one that others may wait for, whatever becomes of this request.
                    let mut asked = self.ask(set, from, args, tracked, now_us);
                    if at_us > now_us {
                        let wait = Duration::from_micros(at_us - now_us).min(self.patience);
                        tokio::time::sleep(wait).await;
                        asked.asked_at(self.now_us());
                    }
                    return Admission::Ask(asked);
                }
            }
        }
    }

    /// What is known of the limits; if none denies, this request becomes the one that asks about those that did.
    fn look(&self, set: &Set, from: usize, args: &[LimitArg], now_us: u64, waited: bool) -> Looked {
        let mut denials = lock(&self.denials);
        let mut advance = lock(&self.advance);
        denials.expire(now_us, self.under_way_us());
        if denials.is_empty() && !advance.may_be_hot(now_us) {
            return Looked::Ask { tracked: Vec::new(), at_us: now_us };
        }
        let heard_since = self.redis.news_since().map(|since| self.us(since));
        let oldest_us = heard_since.unwrap_or(u64::MAX).min(now_us.saturating_sub(UNHEARD_US));
        let patience_us = self.patience_us();
        let at = Moment { now_us, oldest_us, patience_us, waited };
        let (mut denied, mut wait, mut tracked, mut at_us) = (None, None, Vec::new(), now_us);
        let track = |arg: &LimitArg, probe| Tracked { key: arg.key.clone(), cost: arg.cost, probe };
        for (index, arg) in args.iter().enumerate() {
            let Measured::Rate { quota, lease } = set.policy(from + index).measure() else { continue };
            let is_hot = advance.is_hot(&arg.key, now_us);
            // Without the second half, quota that was drawn a moment before Redis ran out would lie unused, and its
            // subject be denied, until it goes back.
            if arg.shadow || (lease != Lease::Never && advance.covers(&arg.key, arg.cost, now_us)) {
                continue;
            }
            let turn = match is_hot && arg.cost > 0 {
                true => advance.turn(&arg.key, arg.cost, (now_us, patience_us), waited),
                false => None,
            };
            let look = match turn {
                // Whatever else was found is found again after it.
                Some(Turn::Draw(requests, answered)) => {
                    return Looked::Draw { key: arg.key.clone(), quota, requests, answered };
                }
                Some(Turn::Wait(answered)) => Look::Wait(answered),
                Some(Turn::Denied { retry_us, reset_us }) => Look::Denied(denied_for(retry_us, reset_us)),
                None => denials.look(&arg.key, &quota, arg.cost, at),
            };
            match look {
                Look::Denied(reply) => {
                    let replies: &mut Standings = denied.get_or_insert_with(|| smallvec![None; args.len()]);
                    replies[index] = Some(reply);
                }
                Look::Wait(answered) => wait = Some(answered),
                Look::Short => tracked.push(track(arg, false)),
                Look::Stale { ask_at_us } => {
                    tracked.push(track(arg, true));
                    at_us = at_us.max(ask_at_us);
                }
                Look::Unknown => {}
            }
        }
        match (denied, wait) {
            (Some(replies), _) => Looked::Denied(replies),
            (None, Some(answered)) => Looked::Wait(answered),
            (None, None) => {
                tracked.iter().for_each(|question| denials.ask(question, now_us));
                Looked::Ask { tracked, at_us }
            }
        }
    }

    /// Takes what was drawn in advance; the rest is for Redis.
    fn ask(
        self: &Arc<Self>,
        set: &Set,
        from: usize,
        mut args: Vec<LimitArg>,
        tracked: Vec<Tracked>,
        now_us: u64,
    ) -> Asked {
        let mut question = Question { tracked, ..Question::default() };
        for (index, arg) in args.iter().enumerate() {
            if let Measured::Concurrency { .. } = set.policy(from + index).measure() {
                if question.name.is_empty() {
                    question.name = self.new_name();
                }
                question.places.push(Place::wanted(&self.redis, &arg.key, &question.name));
            }
        }
        // The list stays where it is and loses what was drawn in advance.
        let (mut at, count) = (0, args.len());
        for index in 0..count {
            match self.prepaid(set.policy(from + index), &args[at], now_us) {
                Some(reply) => question.paid.push(Paid { index, arg: args.remove(at), reply }),
                None => at += 1,
            }
        }
        question.asked = args;
        Asked::new(Arc::clone(self), from, question, now_us)
    }

    /// Pays for a request under a policy from what was drawn in advance, if that is a thing of this policy.
    fn prepaid(self: &Arc<Self>, policy: &Policy, arg: &LimitArg, now_us: u64) -> Option<LimitReply> {
        let Measured::Rate { quota, lease } = policy.measure() else { return None };
        if arg.shadow || arg.cost == 0 { None } else { self.spend(arg, quota, lease, now_us) }
    }

    /// Pays from what was drawn in advance; how the limit stands then, or nothing if there is not enough.
    fn spend(
        self: &Arc<Self>,
        arg: &LimitArg,
        quota: Quota,
        lease: Lease,
        now_us: u64,
    ) -> Option<LimitReply> {
        // Without server-side code nothing can be drawn.
        if lease == Lease::Never || self.redis.is_plain() {
            return None;
        }
        let (spent, wants) = {
            let mut advance = lock(&self.advance);
            let spent = advance.spend(&arg.key, (&quota, lease), arg.cost, now_us);
            let asks = (lease, arg.cost);
            (spent, advance.wants(&arg.key, asks, now_us, self.under_way_us()))
        };
        if let Some(requests) = wants {
            tokio::spawn(Arc::clone(self).draw(arg.key.clone(), quota, lease, requests));
        }
        match spent {
            Spent::Paid(reply) => Some(reply),
            Spent::Short => None,
        }
    }

    /// Takes note of what Redis answered to a question that was sent at `asked_us`.
    pub(super) fn learn(
        self: &Arc<Self>,
        arg: &LimitArg,
        (quota, lease): (&Quota, Lease),
        reply: &LimitReply,
        asked_us: u64,
        tracked: Option<&Tracked>,
    ) {
        // A limit that denies nobody is never asked about, and one on concurrency may be free at any moment.
        if arg.shadow || !matches!(arg.kind, LimitKind::Rate { .. }) {
            return;
        }
        lock(&self.advance).learn(&arg.key, reply.reset_us, (asked_us, self.now_us()));
        let is_hot =
            !reply.allowed && reply.retry_after_us.is_some_and(|retry_us| retry_us < hot::DRAW_EVERY_US);
        if is_hot && lease != Lease::Never && !self.redis.is_plain() {
            lock(&self.advance).heat(&arg.key, quota, reply.reset_us, self.now_us());
        }
        let is_last = reply.allowed && reply.remaining < arg.cost && tracked.is_none();
        if is_last && self.may_return_after_last(&arg.key, (quota, lease), asked_us) {
            return;
        }
        let known = {
            let now_us = self.now_us();
            let mut denials = lock(&self.denials);
            denials.learn((&arg.key, quota, arg.cost), reply, (asked_us, now_us), tracked);
            !denials.is_empty()
        };
        if known {
            self.listen();
        }
    }

    /// Hears from now on which limits have quota again, and of which this worker should return what it holds.
    pub(super) fn listen(self: &Arc<Self>) {
        if self.listens.set(self.now_us()).is_err() {
            return;
        }
        let to = |act: fn(&Arc<Self>, &str)| {
            let desk: Weak<Self> = Arc::downgrade(self);
            Arc::new(move |key: &str| {
                if let Some(desk) = desk.upgrade() {
                    act(&desk, key);
                }
            })
        };
        self.redis.listen(NEWS, to(|desk, key| desk.forget(key)));
        self.redis.listen(RECALLED, to(|desk, key| desk.return_held(key)));
    }

    /// A limit has quota again.
    pub(super) fn forget(&self, key: &str) {
        let now_us = self.now_us();
        lock(&self.denials).forget(key, now_us);
        lock(&self.advance).returned(key, now_us);
        lock(&self.recalls).returned(key, now_us);
        lock(&self.meters).forget(key);
    }

    /// Questions that nobody answered.
    pub(super) fn unanswered(&self, tracked: &[Tracked]) {
        if tracked.is_empty() {
            return;
        }
        let mut denials = lock(&self.denials);
        tracked.iter().for_each(|question| denials.unanswered(question));
    }
}
