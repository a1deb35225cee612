//! Charging a policy for what comes over one connection without end, such as the messages of a WebSocket.
//!
//! Each is charged to the same key as a request would be, so that both together are bounded. A client that sends much
//! costs Redis a few calls a second in each worker, whatever it sends and over however many connections: quota is drawn
//! for one message first, for twice as many the next time, and never more than [`DRAWS_PER_SECOND`] times a second; what
//! is known to be denied is denied here. Pure but for the signal that others wait for; times are µs of the worker's
//! clock.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tokio::sync::Notify;

use crate::limiter::quota::Quota;

/// Most draws a second for one limit in one worker.
pub const DRAWS_PER_SECOND: u64 = 10;

/// Shortest time between two draws, µs.
const DRAW_EVERY_US: u64 = 1_000_000 / DRAWS_PER_SECOND;

/// A client that pauses for so long begins with one message's worth again, µs.
const CALM_US: u64 = 300_000;

/// Most limits that are metered; the least recently used is forgotten first.
const METERS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 14) - 1);

/// Limits that are metered, by their keys.
#[derive(Debug)]
pub struct Meters {
    known: LruCache<Box<str>, Meter>,
}

#[derive(Debug, Default)]
struct Meter {
    /// What is paid for.
    left: u64,
    /// When the last draw was answered, and how much it asked for.
    drawn_us: u64,
    drew: u64,
    /// Until then nothing is allowed that costs as much or more.
    denied: Option<(u64, u64)>,
    /// A draw is under way; others wait for its answer.
    drawing: Option<Arc<Notify>>,
}

/// What a message has to do.
#[derive(Debug)]
pub enum Step {
    /// It is paid for.
    Paid,
    /// It is denied for so long, µs.
    Denied(u64),
    /// It waits for another one's draw, and looks again.
    Wait(Arc<Notify>),
    /// It waits until then, and looks again: there was a draw a moment ago.
    Until(u64),
    /// It draws so much; others wait for this.
    Draw(u64, Arc<Notify>),
}

impl Default for Meters {
    fn default() -> Self {
        Self { known: LruCache::sparse(METERS_MAX) }
    }
}

impl Meters {
    /// What a message of this cost has to do.
    pub fn step(&mut self, key: &str, quota: &Quota, cost: u64, now_us: u64) -> Step {
        if !self.known.contains(key) {
            self.known.push(key.into(), Meter::default());
        }
        match self.known.get_mut(key) {
            Some(meter) => meter.step(quota, cost, now_us),
            None => Step::Paid,
        }
    }

    /// A draw was answered: what was had, and when the limit is as if never used; `None`: Redis did not say.
    pub fn drawn(
        &mut self,
        key: &str,
        (quota, cost): (&Quota, u64),
        answer: Option<(u64, u64)>,
        now_us: u64,
    ) {
        let Some(meter) = self.known.peek_mut(key) else { return };
        meter.drawn_us = now_us;
        if let Some((requests, reset_us)) = answer {
            meter.left = meter.left.saturating_add(requests);
            if meter.left < cost {
                let missing_us = quota.interval_us().saturating_mul(cost - meter.left);
                let wait_us = reset_us.saturating_add(missing_us).saturating_sub(quota.tolerance_us()).max(1);
                meter.denied = Some((cost, now_us.saturating_add(wait_us)));
            }
        }
        if let Some(answered) = meter.drawing.take() {
            answered.notify_waiters();
        }
    }

    /// Takes out what has waited for too long, for Redis to have it back.
    pub fn expired(&mut self, key: &str, now_us: u64) -> u64 {
        match self.known.peek_mut(key) {
            Some(meter) if now_us.saturating_sub(meter.drawn_us) >= 2 * DRAW_EVERY_US => {
                std::mem::take(&mut meter.left)
            }
            _ => 0,
        }
    }

    /// Quota was given back: what was known to be denied may be allowed.
    pub fn forget(&mut self, key: &str) {
        if let Some(meter) = self.known.peek_mut(key) {
            meter.denied = None;
        }
    }
}

impl Meter {
    fn step(&mut self, quota: &Quota, cost: u64, now_us: u64) -> Step {
        if self.left >= cost {
            self.left -= cost;
            return Step::Paid;
        }
        if let Some((_, until_us)) = self.denied.filter(|(least, until)| cost >= *least && now_us < *until) {
            return Step::Denied(until_us - now_us);
        }
        if let Some(answered) = &self.drawing {
            return Step::Wait(Arc::clone(answered));
        }
        let due_us = self.drawn_us.saturating_add(DRAW_EVERY_US);
        if self.drew > 0 && now_us < due_us {
            return Step::Until(due_us);
        }
        let is_calm = self.drew == 0 || now_us.saturating_sub(self.drawn_us) > CALM_US;
        let more = if is_calm { 0 } else { self.drew.saturating_mul(2).min(quota.burst() / 4) };
        let answered = Arc::new(Notify::new());
        self.drew = (cost - self.left).max(more).max(1);
        self.drawing = Some(Arc::clone(&answered));
        Step::Draw(self.drew, answered)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::limit::Rate;

    fn quota() -> Quota {
        Quota::new(Rate { count: 5, period: Duration::from_secs(1) }, 20)
    }

    #[test]
    fn one_message_is_one_draw_and_more_of_them_are_few() {
        let (quota, mut meters) = (quota(), Meters::default());
        let (mut now, mut draws, mut paid) = (1_000_000, Vec::new(), 0);
        while paid < 16 {
            match meters.step("k", &quota, 1, now) {
                Step::Paid => paid += 1,
                Step::Draw(amount, _) => {
                    assert!(matches!(meters.step("k", &quota, 1, now), Step::Wait(_)));
                    draws.push(amount);
                    meters.drawn("k", (&quota, 1), Some((amount, 0)), now);
                }
                Step::Until(at) => now = at,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(draws, [1, 2, 4, 5, 5]);
        assert!(now <= 1_000_000 + 5 * DRAW_EVERY_US);
        assert_eq!(meters.expired("k", now), 0);
        assert_eq!(meters.expired("k", now + 2 * DRAW_EVERY_US), 1, "it goes back");
        assert!(matches!(meters.step("k", &quota, 1, now + 2 * CALM_US), Step::Draw(1, _)));
    }

    #[test]
    fn what_is_known_to_be_denied_is_denied_here_until_it_may_be_had() {
        let (quota, mut meters) = (quota(), Meters::default());
        assert!(matches!(meters.step("k", &quota, 2, 0), Step::Draw(2, _)));
        meters.drawn("k", (&quota, 2), Some((1, quota.tolerance_us())), 0);
        assert!(matches!(meters.step("k", &quota, 2, 10), Step::Denied(199_990)));
        assert!(matches!(meters.step("k", &quota, 1, 10), Step::Paid), "a cheaper one is paid for");
        meters.forget("k");
        assert!(matches!(meters.step("k", &quota, 2, 150_000), Step::Draw(..)));
        meters.drawn("k", (&quota, 2), None, 150_000);
        assert!(matches!(meters.step("k", &quota, 2, 150_001), Step::Until(250_000)));
    }
}
