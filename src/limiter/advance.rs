//! Quota that a worker draws in advance, so that most requests under a high limit need no round trip.
//!
//! What is drawn is charged in Redis before anybody uses it, so no number of workers can allow more than the limit
//! does. A worker holds what it will need in a tenth of a second, at most a twentieth of the burst, and gives back what
//! it did not use within two tenths; one that dies leaves that much unused. Pure; times are µs of the worker's clock.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::limiter::hot;
use crate::limiter::hot::Hot;
use crate::limiter::hot::Turn;
use crate::limiter::quota::Quota;

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
    /// It is paid for; so many are left.
    Paid {
        /// Requests that are still paid for here.
        left: u64,
    },
    /// There is not enough: ask Redis.
    Short,
}

impl Default for Advance {
    fn default() -> Self {
        Self { purses: LruCache::sparse(PURSES_MAX), hot_until_us: 0 }
    }
}

impl Advance {
    /// Takes `cost` from what was drawn.
    pub fn spend(&mut self, key: &str, quota: &Quota, cost: u64, now_us: u64) -> Spent {
        let Some(purse) = self.purse(key, quota, now_us) else { return Spent::Short };
        purse.count(cost, now_us);
        if purse.until_us <= now_us || purse.left < cost {
            return Spent::Short;
        }
        purse.left -= cost;
        Spent::Paid { left: purse.left }
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

    /// Gives back what a request took and does not need, because another limit denied it.
    pub fn unspend(&mut self, key: &str, cost: u64) {
        if let Some(purse) = self.purses.peek_mut(key) {
            purse.left = purse.left.saturating_add(cost);
        }
    }

    /// Whether so much is paid for: such a request needs no answer of Redis, whatever Redis said to others.
    pub fn covers(&self, key: &str, cost: u64, now_us: u64) -> bool {
        self.purses.peek(key).is_some_and(|purse| purse.until_us > now_us && purse.left >= cost)
    }

    /// How much to draw now, if less than half of what is to be held is left; ends with [`Advance::drawn`].
    ///
    /// Only what is missing: what a worker holds is denied to all others.
    pub fn wants(&mut self, key: &str, now_us: u64, patience_us: u64) -> Option<u64> {
        if self.is_hot(key, now_us) {
            return None;
        }
        let purse = self.purses.peek_mut(key)?;
        let target = (purse.quota.burst() / 20).min(purse.asked.max(purse.asked_before));
        let waits =
            matches!(purse.drawing, Drawing::Since(since) if now_us.saturating_sub(since) < patience_us);
        let enough = purse.until_us > now_us && purse.left * 2 >= target;
        if waits || enough || target < DRAW_MIN {
            return None;
        }
        purse.drawing = Drawing::Since(now_us);
        Some(target.saturating_sub(purse.left).max(DRAW_MIN))
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
        }
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
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::limit::Rate;

    const KEY: &str = "k";
    const PATIENCE_US: u64 = 50_000;

    fn quota(burst: u64) -> Quota {
        Quota::new(Rate { count: burst, period: Duration::from_secs(1) }, burst)
    }

    #[test]
    fn it_draws_what_a_tenth_of_a_second_needs_and_at_most_a_twentieth_of_the_burst() {
        let (quota, mut advance) = (quota(1000), Advance::default());
        assert_eq!(advance.spend(KEY, &quota, 1, 0), Spent::Short);
        assert_eq!(advance.wants(KEY, 0, PATIENCE_US), None, "one request is no demand");
        for now in 1..20 {
            assert_eq!(advance.spend(KEY, &quota, 1, now), Spent::Short);
        }
        assert_eq!(advance.wants(KEY, 20, PATIENCE_US), Some(20));
        assert_eq!(advance.wants(KEY, 21, PATIENCE_US), None, "it is on its way");
        assert!(advance.drawn(KEY, 20, 100));
        for left in (10..20).rev() {
            assert_eq!(advance.spend(KEY, &quota, 1, 200), Spent::Paid { left });
        }
        for _ in 0..100 {
            advance.spend(KEY, &quota, 1, 300);
        }
        assert_eq!(advance.wants(KEY, 300, PATIENCE_US), Some(50), "a twentieth of the burst");
        assert!(!advance.drawn(KEY, 0, 400));
    }

    #[test]
    fn what_is_not_used_goes_back() {
        let (quota, mut advance) = (quota(1000), Advance::default());
        advance.spend(KEY, &quota, 10, 0);
        assert_eq!(advance.wants(KEY, 0, PATIENCE_US), Some(10));
        advance.drawn(KEY, 10, 1000);
        assert_eq!(advance.expired(KEY, 1000 + KEPT_US - 1), None);
        assert_eq!(advance.spend(KEY, &quota, 1, 1000 + KEPT_US), Spent::Short, "it is about to go back");
        assert_eq!(advance.expired(KEY, 1000 + KEPT_US), Some((quota, 10)));
        assert_eq!(advance.expired(KEY, 1000 + KEPT_US), None);
        advance.drawn(KEY, 5, 500_000);
        advance.spend(KEY, &quota, 2, 500_000);
        advance.unspend(KEY, 1);
        assert_eq!(advance.empty(), [(KEY.to_owned(), quota, 4)]);
        assert!(advance.empty().is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_allowed_that_was_not_paid(
            steps in prop::collection::vec((0..3u8, 1..20u64, 0..40_000u64), 1..200),
        ) {
            let (quota, mut advance) = (quota(2000), Advance::default());
            let (mut now, mut drawn, mut spent, mut back) = (0, 0, 0, 0);
            for (kind, cost, pause) in steps {
                now += pause;
                match kind {
                    0 | 1 => {
                        let covered = advance.covers(KEY, cost, now);
                        let paid = matches!(advance.spend(KEY, &quota, cost, now), Spent::Paid { .. });
                        prop_assert_eq!(covered, paid);
                        spent += if paid { cost } else { 0 };
                    }
                    _ => if let Some(amount) = advance.wants(KEY, now, PATIENCE_US) {
                        prop_assert!(amount <= 100);
                        drawn += amount;
                        advance.drawn(KEY, amount, now);
                    },
                }
                back += advance.expired(KEY, now).map_or(0, |(_, amount)| amount);
                prop_assert!(spent + back <= drawn);
                prop_assert!(drawn - spent - back <= 100 + DRAW_MIN, "more than a twentieth is held");
            }
            let left: u64 = advance.empty().iter().map(|(_, _, amount)| amount).sum();
            prop_assert_eq!(spent + back + left, drawn);
        }
    }
}
