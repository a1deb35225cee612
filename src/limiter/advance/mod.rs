//! Quota that a worker draws in advance, so that most requests under a high limit need no round trip.
//!
//! What is drawn is charged in Redis before it is used, and it is worth only what of that charge is still ahead
//! (`lots.rs`): time takes it from the worker as it takes it from Redis, so no number of workers allows more than the
//! limit does, in any window (but for what passes while the news of a return is on its way). A worker holds what it will need in a tenth of a second (or what the rate brings in it,
//! where it is leased by default: less would be passed before it is used), at most what the policy's `Terms` say. It
//! gives back what it did not use within two tenths (under `auto` not what time takes within two more), or as soon as another worker is denied; one that dies leaves that
//! much unused. Where a policy is leased by default, nothing is kept of a subject until it comes often, and nothing is
//! drawn of the last half of its burst. What passes unused was charged for nothing: a client may be denied that is less
//! than what the rate brings in half a second below its burst. Pure; times are µs of the worker's clock.

mod lots;
mod purse;

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::config::limit::Lease;
use crate::limiter::advance::purse::Drawing;
use crate::limiter::advance::purse::Purse;
use crate::limiter::demand::Demand;
use crate::limiter::hot;
use crate::limiter::hot::Hot;
use crate::limiter::hot::Turn;
use crate::limiter::quota::Quota;
use crate::limiter::terms::Terms;
use crate::redis::begin::LimitReply;

pub(super) use lots::still_ahead;
pub(super) use purse::piece_us;

/// How long drawn quota may wait, µs.
pub const KEPT_US: u64 = 200_000;

/// Time over which demand is counted, µs.
const SPAN_US: u64 = 100_000;

/// Fewest requests that are drawn: for less a request may as well ask itself.
const DRAW_MIN: u64 = 2;

/// Most limits with drawn quota; what the least recently used one holds is lost until it comes back by itself.
const PURSES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 14) - 1);

/// Drawn quota by the limits' keys.
#[derive(Debug)]
pub struct Advance {
    purses: LruCache<Box<str>, Purse>,
    /// Of limits without a purse: which of them should have one.
    demand: Demand,
    /// Until then some limit may be hot.
    hot_until_us: u64,
}

/// An answer to a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Requests that were charged; 0 if Redis had none.
    pub requests: u64,
    /// When the limit is as if never used, µs after it was asked.
    pub reset_us: u64,
    /// When Redis was asked.
    pub asked_us: u64,
    /// Whether this worker has heard since then of what others give back. If not, time takes what was drawn from the
    /// question on, as if nothing lay before it.
    pub hears: bool,
}

/// What is given back of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Return {
    /// The limit's.
    pub quota: Quota,
    /// How much of its time: a request may have been passed in part.
    pub time_us: u64,
}

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// It is paid for; how the limit stands, as far as this worker knows.
    Paid(LimitReply),
    /// There is not enough: ask Redis.
    Short,
}

impl Advance {
    /// Nothing is held; `seeds` are this worker's own and secret.
    pub fn new(seeds: [u64; 2]) -> Self {
        Self { purses: LruCache::sparse(PURSES_MAX), demand: Demand::new(seeds), hot_until_us: 0 }
    }

    /// Takes `cost` from what was drawn.
    pub fn spend(&mut self, key: &str, (quota, lease): (&Quota, Lease), cost: u64, now_us: u64) -> Spent {
        if !self.has_purse(key, quota, lease, now_us) {
            return Spent::Short;
        }
        let Some(purse) = self.purse(key, quota, now_us) else { return Spent::Short };
        purse.count(cost, now_us);
        let cost_us = purse.quota.interval_us().saturating_mul(cost);
        if purse.until_us <= now_us || !purse.lots.spend(cost_us, now_us) {
            return Spent::Short;
        }
        Spent::Paid(purse.standing(now_us))
    }

    /// Whether anything is kept of a limit, or should be from now on.
    fn has_purse(&mut self, key: &str, quota: &Quota, lease: Lease, now_us: u64) -> bool {
        if !self.purses.is_empty() && self.purses.contains(key) {
            return true;
        }
        match Terms::of(lease, quota) {
            Some(terms) if terms.busy_only => self.demand.is_busy(key, now_us),
            Some(_) => true,
            None => false,
        }
    }

    /// How a limit stood in Redis, heard now in answer to a question from `asked_us`; kept only of limits that may be
    /// drawn. An answer that a later one overtook would count as left what was drawn since.
    pub fn learn(&mut self, key: &str, reset_us: u64, (asked_us, now_us): (u64, u64)) {
        if self.purses.is_empty() {
            return;
        }
        if let Some(purse) = self.purses.peek_mut(key) {
            let tat_us = now_us.saturating_add(reset_us);
            let overtaken = |(known_us, heard_us)| asked_us < heard_us && tat_us < known_us;
            if !purse.known.is_some_and(overtaken) {
                purse.known = Some((tat_us, now_us));
            }
        }
    }

    fn purse(&mut self, key: &str, quota: &Quota, now_us: u64) -> Option<&mut Purse> {
        if !self.purses.contains(key) {
            self.purses.push(key.into(), Purse::new(*quota, now_us));
        }
        self.purses.get_mut(key)
    }

    /// Redis denied a request that may come again in less time than a draw takes: from now on quota is drawn for all.
    pub fn heat(&mut self, key: &str, quota: &Quota, reset_us: u64, now_us: u64) {
        if !hot::suits(quota) {
            return;
        }
        let Some(purse) = self.purse(key, quota, now_us) else { return };
        purse.hot.get_or_insert_with(|| Hot::new(now_us, reset_us)).denied(now_us);
        self.hot_until_us = now_us.saturating_add(hot::HOT_US);
    }

    /// What a request under a limit does that is hot and has not so much paid for; `None`: the limit is not hot, and
    /// it asks Redis itself.
    pub fn turn(
        &mut self,
        key: &str,
        cost: u64,
        (now_us, patience_us): (u64, u64),
        waited: bool,
    ) -> Option<Turn> {
        if !self.may_be_hot(now_us) {
            return None;
        }
        let purse = self.purses.get_mut(key)?;
        let quota = purse.quota;
        if cost > hot::most(&quota) {
            return None;
        }
        if !waited {
            purse.count(cost, now_us);
        }
        let demand = purse.asked.max(purse.asked_before);
        let hot = purse.hot.as_mut()?;
        if hot.is_over(now_us) {
            purse.hot = None;
            return None;
        }
        let turn = hot.turn(&quota, demand, now_us, patience_us, waited);
        self.hot_until_us = now_us.saturating_add(hot::HOT_US);
        Some(turn)
    }

    /// Whether a limit is hot: what it allows is paid from what was drawn.
    pub fn is_hot(&self, key: &str, now_us: u64) -> bool {
        let is_hot = |purse: &Purse| purse.hot.as_ref().is_some_and(|hot| !hot.is_over(now_us));
        self.may_be_hot(now_us) && self.purses.peek(key).is_some_and(is_hot)
    }

    /// Of next to all workers no limit is hot: this is all that it costs them.
    pub fn may_be_hot(&self, now_us: u64) -> bool {
        now_us < self.hot_until_us
    }

    /// A draw for a hot limit was answered; `None`: it failed, and each request asks by itself.
    pub fn drawn_hot(&mut self, key: &str, answer: Option<Draw>, now_us: u64) -> bool {
        let drawing = self.purses.peek(key).map(|purse| purse.drawing);
        let kept = self.drawn(key, answer, now_us);
        let Some(purse) = self.purses.peek_mut(key) else { return kept };
        purse.drawing = drawing.unwrap_or(Drawing::No);
        if let Some(hot) = &mut purse.hot {
            match answer {
                Some(draw) => hot.drawn(draw.reset_us, now_us),
                None => {
                    hot.wake();
                    purse.hot = None;
                }
            }
        }
        kept
    }

    /// Quota was given back: there may be some at once, and what is held here is nearer.
    pub fn returned(&mut self, key: &str, now_us: u64) {
        if self.purses.is_empty() {
            return;
        }
        let Some(purse) = self.purses.peek_mut(key) else { return };
        purse.refunded_us = Some(now_us);
        let by_us = piece_us(purse.quota.interval_us(), purse.quota.tolerance_us());
        purse.lots.nearer(by_us, now_us);
        if let Some(hot) = &mut purse.hot {
            hot.hurry(now_us);
        }
    }

    /// Gives back what a request took at `spent_us` and does not need; whether it is held here again, or else has to go
    /// to Redis.
    pub fn unspend(&mut self, key: &str, cost: u64, (spent_us, now_us): (u64, u64)) -> bool {
        match self.purses.peek_mut(key) {
            Some(purse) if purse.until_us > now_us => {
                let cost_us = purse.quota.interval_us().saturating_mul(cost);
                purse.lots.put_back(cost_us, spent_us, now_us);
                true
            }
            _ => false,
        }
    }

    /// Whether so much is paid for: such a request needs no answer of Redis, whatever Redis said to others.
    pub fn covers(&self, key: &str, cost: u64, now_us: u64) -> bool {
        self.purses.peek(key).is_some_and(|purse| purse.held(now_us) >= cost)
    }

    /// How much to draw now, if less than half of what is to be held is left; ends with [`Advance::drawn`].
    ///
    /// Only what is missing: what a worker holds is denied to all others.
    pub fn wants(
        &mut self,
        key: &str,
        (lease, cost): (Lease, u64),
        now_us: u64,
        patience_us: u64,
    ) -> Option<u64> {
        if self.is_hot(key, now_us) {
            return None;
        }
        let purse = self.purses.peek_mut(key)?;
        let terms = Terms::of(lease, &purse.quota)?;
        let demand = purse.asked.max(purse.asked_before);
        let from = if terms.busy_only { terms.from.saturating_mul(cost) } else { terms.from };
        // Near now, time takes what the rate brings: of less than that most would be passed before it is used.
        let passes = if terms.busy_only { SPAN_US / purse.quota.interval_us() } else { 0 };
        let target = terms.most.min(demand.max(passes));
        // What is about to go back counts: a draw that is answered first keeps it here, beside what it brings.
        let held = purse.lots.left_us(now_us) / purse.quota.interval_us();
        let waits =
            matches!(purse.drawing, Drawing::Since(since) if now_us.saturating_sub(since) < patience_us);
        if waits || held * 2 >= target || demand < from || target < DRAW_MIN {
            return None;
        }
        let mut amount = target.saturating_sub(held).max(DRAW_MIN);
        if terms.reserve > 0 {
            amount = amount.min(purse.in_redis(now_us)?.saturating_sub(terms.reserve));
        }
        if amount < DRAW_MIN {
            return None;
        }
        purse.drawing = Drawing::Since(now_us);
        Some(amount)
    }

    /// A draw was answered; `None`: it was not. Whether it has to be looked after.
    pub fn drawn(&mut self, key: &str, answer: Option<Draw>, now_us: u64) -> bool {
        let Some(purse) = self.purses.peek_mut(key) else { return false };
        purse.drawing = Drawing::No;
        let Some(Draw { requests: requests @ 1.., reset_us, asked_us, hears }) = answer else { return false };
        let length_us = purse.quota.interval_us().saturating_mul(requests);
        let is_nearer = !hears || purse.refunded_us.is_some_and(|refunded_us| refunded_us >= asked_us);
        // Counted from the question, which was before Redis decided: no later than it is.
        let tat_us = asked_us.saturating_add(reset_us);
        let latest_us = if is_nearer { asked_us.saturating_add(length_us) } else { u64::MAX };
        purse.lots.add(tat_us.min(latest_us), length_us, now_us);
        purse.until_us = now_us.saturating_add(KEPT_US);
        true
    }

    /// Takes out what was drawn at `asked_us` and is wanted elsewhere: others drew too, and Redis has less left than the
    /// policy's reserve, or another worker called it back meanwhile.
    pub fn wanted_back(&mut self, key: &str, lease: Lease, (asked_us, now_us): (u64, u64)) -> Option<Return> {
        let purse = self.purses.peek(key)?;
        let reserve = Terms::of(lease, &purse.quota)?.reserve;
        let enough = reserve == 0 || purse.in_redis(now_us).is_none_or(|left| left >= reserve);
        let recalled = purse.recalled_us.is_some_and(|recalled_us| recalled_us >= asked_us);
        if enough && !recalled { None } else { self.take(key, now_us) }
    }

    /// Takes out what is held of a limit that denied a request of another worker; what was drawn in a flood stays, or
    /// two workers would send it to and fro.
    pub fn recall(&mut self, key: &str, now_us: u64) -> Option<Return> {
        if self.is_hot(key, now_us) {
            return None;
        }
        // What is on its way goes back, too, when it comes.
        self.purses.peek_mut(key)?.recalled_us = Some(now_us);
        self.take(key, now_us)
    }

    fn take(&mut self, key: &str, now_us: u64) -> Option<Return> {
        if self.is_hot(key, now_us) {
            return None;
        }
        let purse = self.purses.peek_mut(key)?;
        // Nothing more is drawn until Redis says how the limit stands.
        purse.known = None;
        let time_us = purse.lots.take(now_us);
        (time_us > 0).then_some(Return { quota: purse.quota, time_us })
    }

    /// Takes out what has waited too long, for Redis to have it back; `None`: it is gone, or drawn anew meanwhile.
    ///
    /// Under `auto` what time takes soon stays: a worker that is denied calls it back, and a return would bring what
    /// others hold nearer to now than they know for a moment.
    pub fn expired(&mut self, key: &str, lease: Lease, now_us: u64) -> Option<Return> {
        let is_hot = self.is_hot(key, now_us);
        let purse = self.purses.peek_mut(key)?;
        let left_us = purse.lots.left_us(now_us);
        if purse.until_us > now_us || left_us == 0 {
            return None;
        }
        let end_us = purse.lots.end_us();
        if lease == Lease::Auto && !is_hot && end_us <= now_us.saturating_add(KEPT_US) {
            purse.until_us = end_us;
            return None;
        }
        Some(Return { quota: purse.quota, time_us: purse.lots.take(now_us) })
    }

    /// Takes out everything.
    #[cfg(test)]
    fn empty(&mut self, now_us: u64) -> Vec<(String, Return)> {
        let all = self.purses.iter_mut().map(|(key, purse)| {
            (key.to_string(), Return { quota: purse.quota, time_us: purse.lots.take(now_us) })
        });
        all.filter(|(_, held)| held.time_us > 0).collect()
    }
}

#[cfg(test)]
mod tests;
