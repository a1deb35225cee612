//! What a worker knows and holds of one limit. Pure; times are µs of the worker's clock.

use crate::limiter::advance::SPAN_US;
use crate::limiter::advance::lots::Lots;
use crate::limiter::hot::Hot;
use crate::limiter::quota::Quota;
use crate::redis::begin::LimitReply;

/// How long it is believed how a limit stands in Redis, µs.
const KNOWN_US: u64 = 1_000_000;

#[derive(Debug, Clone)]
pub(super) struct Purse {
    pub(super) quota: Quota,
    /// What is paid for.
    pub(super) lots: Lots,
    /// When what is left goes back.
    pub(super) until_us: u64,
    /// Requests asked for since `span_us`, and in the span before.
    pub(super) asked: u64,
    pub(super) asked_before: u64,
    pub(super) span_us: u64,
    pub(super) drawing: Drawing,
    /// More is wanted than there is.
    pub(super) hot: Option<Hot>,
    /// The limit's arrival time in Redis, in this clock, and when that was heard: all that is held is charged in it.
    pub(super) known: Option<(u64, u64)>,
    /// When another worker last wanted what is held here: what was asked for before that is wanted, too.
    pub(super) recalled_us: Option<u64>,
    /// When quota was last given back: what was drawn before that may be nearer than it seems.
    pub(super) refunded_us: Option<u64>,
}

/// Whether more is being drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drawing {
    No,
    Since(u64),
}

impl Purse {
    pub(super) fn new(quota: Quota, now_us: u64) -> Self {
        Self {
            quota,
            lots: Lots::default(),
            until_us: 0,
            asked: 0,
            asked_before: 0,
            span_us: now_us,
            drawing: Drawing::No,
            hot: None,
            known: None,
            recalled_us: None,
            refunded_us: None,
        }
    }

    /// Requests that are paid for.
    pub(super) fn held(&self, now_us: u64) -> u64 {
        self.held_us(now_us) / self.quota.interval_us()
    }

    /// The same as time.
    fn held_us(&self, now_us: u64) -> u64 {
        if self.until_us > now_us { self.lots.left_us(now_us) } else { 0 }
    }

    /// Requests that Redis would allow now besides what is held here; `None`: not known.
    pub(super) fn in_redis(&self, now_us: u64) -> Option<u64> {
        Some(self.in_redis_us(now_us)? / self.quota.interval_us())
    }

    /// The same as time.
    fn in_redis_us(&self, now_us: u64) -> Option<u64> {
        let (tat_us, heard_us) = self.known.filter(|(_, at_us)| now_us.saturating_sub(*at_us) < KNOWN_US)?;
        let ahead_us = tat_us.saturating_sub(now_us.max(heard_us));
        Some(self.quota.tolerance_us().saturating_sub(ahead_us))
    }

    /// How the limit stands for its subject: what is held here is left, too.
    pub(super) fn standing(&self, now_us: u64) -> LimitReply {
        let (burst, interval_us) = (self.quota.burst(), self.quota.interval_us());
        // A flood draws what there is: what is held is all that this worker can say.
        let in_redis = if self.hot.is_some() { None } else { self.in_redis_us(now_us) };
        // Parts of requests count together: what time took of the one came back in the other.
        let left_us = in_redis.unwrap_or_default().saturating_add(self.held_us(now_us));
        let remaining = (left_us / interval_us).min(burst);
        let reset_us = (burst - remaining).saturating_mul(interval_us);
        LimitReply { allowed: true, remaining, retry_after_us: None, reset_us }
    }

    pub(super) fn count(&mut self, cost: u64, now_us: u64) {
        let spans = now_us.saturating_sub(self.span_us) / SPAN_US;
        if spans > 0 {
            self.asked_before = if spans == 1 { self.asked } else { 0 };
            self.asked = 0;
            self.span_us += spans * SPAN_US;
        }
        self.asked = self.asked.saturating_add(cost);
    }
}

/// Most that is given back of a limit in one call, µs of the limit's time: workers that hear of a return, but not how
/// much it is, count what they hold as so much nearer. It is what a worker holds by default, and two requests.
pub(in crate::limiter) fn piece_us(interval_us: u64, tolerance_us: u64) -> u64 {
    (tolerance_us / 20).saturating_add(interval_us.saturating_mul(2))
}
