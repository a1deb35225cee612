//! Quota that a worker draws in advance, so that most requests under a high limit need no round trip.
//!
//! What is drawn is charged in Redis before it is used, so no number of workers can allow more than the limit does. A
//! worker holds what it will need in a tenth of a second, at most what the policy's `Terms` say, and gives back what it
//! did not use within two tenths, or as soon as another worker is denied; one that dies leaves that much unused. Where a
//! policy is leased by default, nothing is kept of a subject until it comes often, and nothing is drawn of the last half
//! of its burst. Pure; times are µs of the worker's clock.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::config::limit::Lease;
use crate::limiter::demand::Demand;
use crate::limiter::hot;
use crate::limiter::hot::Hot;
use crate::limiter::hot::Turn;
use crate::limiter::quota::Quota;
use crate::limiter::terms::Terms;
use crate::redis::begin::LimitReply;

/// How long drawn quota may wait, µs.
pub const KEPT_US: u64 = 200_000;

/// Time over which demand is counted, µs.
const SPAN_US: u64 = 100_000;

/// Fewest requests that are drawn: for less a request may as well ask itself.
const DRAW_MIN: u64 = 2;

/// How long it is believed how a limit stands in Redis, µs.
const KNOWN_US: u64 = 1_000_000;

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

#[derive(Debug, Clone)]
struct Purse {
    quota: Quota,
    /// Requests that are paid for.
    left: u64,
    /// When what is left goes back.
    until_us: u64,
    /// Requests asked for since `span_us`, and in the span before.
    asked: u64,
    asked_before: u64,
    span_us: u64,
    drawing: Drawing,
    /// More is wanted than there is.
    hot: Option<Hot>,
    /// The limit's arrival time in Redis, in this clock, and when that was heard: all that is held is charged in it.
    known: Option<(u64, u64)>,
}

/// Whether more is being drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drawing {
    No,
    Since(u64),
}

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// It is paid for; how the limit stands, as far as this worker knows.
    Paid(LimitReply),
    /// There is not enough: ask Redis.
    Short,
}

impl Default for Advance {
    fn default() -> Self {
        Self { purses: LruCache::sparse(PURSES_MAX), demand: Demand::new(), hot_until_us: 0 }
    }
}

impl Advance {
    /// Takes `cost` from what was drawn.
    pub fn spend(&mut self, key: &str, (quota, lease): (&Quota, Lease), cost: u64, now_us: u64) -> Spent {
        if !self.has_purse(key, quota, lease, now_us) {
            return Spent::Short;
        }
        let Some(purse) = self.purse(key, quota, now_us) else { return Spent::Short };
        purse.count(cost, now_us);
        if purse.until_us <= now_us || purse.left < cost {
            return Spent::Short;
        }
        purse.left -= cost;
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
    pub fn drawn_hot(&mut self, key: &str, answer: Option<(u64, u64)>, now_us: u64) -> bool {
        let drawing = self.purses.peek(key).map(|purse| purse.drawing);
        let (amount, reset_us) = answer.unwrap_or_default();
        let kept = self.drawn(key, amount, now_us);
        let Some(purse) = self.purses.peek_mut(key) else { return kept };
        purse.drawing = drawing.unwrap_or(Drawing::No);
        if let Some(hot) = &mut purse.hot {
            match answer {
                Some(_) => hot.drawn(reset_us, now_us),
                None => {
                    hot.wake();
                    purse.hot = None;
                }
            }
        }
        kept
    }

    /// Quota was given back: there may be some at once.
    pub fn hurry(&mut self, key: &str, now_us: u64) {
        if let Some(hot) = self.purses.peek_mut(key).and_then(|purse| purse.hot.as_mut()) {
            hot.hurry(now_us);
        }
    }

    /// Gives back what a request took and does not need; whether it is held here again, or else has to go to Redis.
    pub fn unspend(&mut self, key: &str, cost: u64, now_us: u64) -> bool {
        match self.purses.peek_mut(key) {
            Some(purse) if purse.until_us > now_us => {
                purse.left = purse.left.saturating_add(cost);
                true
            }
            _ => false,
        }
    }

    /// Whether so much is paid for: such a request needs no answer of Redis, whatever Redis said to others.
    pub fn covers(&self, key: &str, cost: u64, now_us: u64) -> bool {
        self.purses.peek(key).is_some_and(|purse| purse.until_us > now_us && purse.left >= cost)
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
        let target = terms.most.min(demand);
        let held = if purse.until_us > now_us { purse.left } else { 0 };
        let waits =
            matches!(purse.drawing, Drawing::Since(since) if now_us.saturating_sub(since) < patience_us);
        if waits || held * 2 >= target || demand < from || target < DRAW_MIN {
            return None;
        }
        let mut amount = target.saturating_sub(purse.left).max(DRAW_MIN);
        if terms.reserve > 0 {
            amount = amount.min(purse.in_redis(now_us)?.saturating_sub(terms.reserve));
        }
        if amount < DRAW_MIN {
            return None;
        }
        purse.drawing = Drawing::Since(now_us);
        Some(amount)
    }

    /// So many were drawn; 0 if Redis had none, or did not answer. Whether it has to be looked after.
    pub fn drawn(&mut self, key: &str, amount: u64, now_us: u64) -> bool {
        let Some(purse) = self.purses.peek_mut(key) else { return false };
        purse.drawing = Drawing::No;
        if amount == 0 {
            return false;
        }
        purse.left = purse.left.saturating_add(amount);
        purse.until_us = now_us.saturating_add(KEPT_US);
        true
    }

    /// Takes out what is held of a limit although Redis has less left than the policy's reserve: others drew, too.
    pub fn beyond_reserve(&mut self, key: &str, lease: Lease, now_us: u64) -> Option<(Quota, u64)> {
        let purse = self.purses.peek(key)?;
        let reserve = Terms::of(lease, &purse.quota)?.reserve;
        let enough = reserve == 0 || purse.in_redis(now_us).is_none_or(|left| left >= reserve);
        if enough { None } else { self.recall(key, now_us) }
    }

    /// Takes out what is held of a limit that denied a request of another worker; what was drawn in a flood stays, or
    /// two workers would send it to and fro.
    pub fn recall(&mut self, key: &str, now_us: u64) -> Option<(Quota, u64)> {
        if self.is_hot(key, now_us) {
            return None;
        }
        let purse = self.purses.peek_mut(key)?;
        // Nothing more is drawn until Redis says how the limit stands.
        purse.known = None;
        let left = std::mem::take(&mut purse.left);
        (left > 0).then_some((purse.quota, left))
    }

    /// Takes out what has waited too long, for Redis to have it back; `None`: it is gone, or drawn anew meanwhile.
    pub fn expired(&mut self, key: &str, now_us: u64) -> Option<(Quota, u64)> {
        let purse = self.purses.peek_mut(key)?;
        if purse.until_us > now_us || purse.left == 0 {
            return None;
        }
        Some((purse.quota, std::mem::take(&mut purse.left)))
    }

    /// Takes out everything.
    #[cfg(test)]
    fn empty(&mut self) -> Vec<(String, Quota, u64)> {
        let held = self.purses.iter_mut().filter(|(_, purse)| purse.left > 0);
        held.map(|(key, purse)| (key.to_string(), purse.quota, std::mem::take(&mut purse.left))).collect()
    }
}

impl Purse {
    fn new(quota: Quota, now_us: u64) -> Self {
        Self {
            quota,
            left: 0,
            until_us: 0,
            asked: 0,
            asked_before: 0,
            span_us: now_us,
            drawing: Drawing::No,
            hot: None,
            known: None,
        }
    }

    /// Requests that Redis would allow now besides what is held here; `None`: not known.
    fn in_redis(&self, now_us: u64) -> Option<u64> {
        let (tat_us, heard_us) = self.known.filter(|(_, at_us)| now_us.saturating_sub(*at_us) < KNOWN_US)?;
        let ahead_us = tat_us.saturating_sub(now_us.max(heard_us));
        Some(self.quota.tolerance_us().saturating_sub(ahead_us) / self.quota.interval_us())
    }

    /// How the limit stands for its subject: what is held here is left, too.
    fn standing(&self, now_us: u64) -> LimitReply {
        let (burst, interval_us) = (self.quota.burst(), self.quota.interval_us());
        // A flood draws what there is: what is held is all that this worker can say.
        let in_redis = if self.hot.is_some() { None } else { self.in_redis(now_us) };
        let remaining = in_redis.unwrap_or_default().saturating_add(self.left).min(burst);
        let reset_us = (burst - remaining).saturating_mul(interval_us);
        LimitReply { allowed: true, remaining, retry_after_us: None, reset_us }
    }

    fn count(&mut self, cost: u64, now_us: u64) {
        let spans = now_us.saturating_sub(self.span_us) / SPAN_US;
        if spans > 0 {
            self.asked_before = if spans == 1 { self.asked } else { 0 };
            self.asked = 0;
            self.span_us += spans * SPAN_US;
        }
        self.asked = self.asked.saturating_add(cost);
    }
}

#[cfg(test)]
mod tests;
