//! What a worker holds of one limit, as spans of the limit's own time: worth only what of them is still ahead.
//!
//! A prefetch of n requests moves the limit's arrival time by n intervals, and time moves towards it. The prefetched
//! quota is the span that was added, and each request takes its interval from the front of it. Where time has reached
//! a part of the span, Redis has dropped that charge: consuming or returning that part would allow requests beyond
//! the limit. So a part that time has passed is gone. Spans of different prefetches never overlap, hence what a
//! subject is granted in any window fits between the window's start and its end plus the burst.
//!
//! Quota that another worker returns moves the arrival time back, and with it what was charged last: a span may be
//! nearer than it seems. [`PrefetchedSpans::shift_earlier`] moves it, never nearer than what this worker consumed,
//! which is still ahead of now in any case. Pure; times are µs of the worker's clock.

use std::collections::VecDeque;

/// Most spans of one limit; prefetches start at half of the target, so there are two or three.
const SPANS_MAX: usize = 4;

/// The spans of one limit, the oldest prefetch's first.
#[derive(Debug, Clone, Default)]
pub(super) struct PrefetchedSpans {
    spans: VecDeque<PrefetchedSpan>,
    /// Until then what was consumed here is ahead of now: an arrival time of this worker's requests alone.
    consumed_until_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PrefetchedSpan {
    start_us: u64,
    end_us: u64,
}

impl PrefetchedSpan {
    fn remaining_us(&self, now_us: u64) -> u64 {
        self.end_us.saturating_sub(self.start_us.max(now_us))
    }
}

impl PrefetchedSpans {
    /// Time that is held and still ahead, µs.
    pub(super) fn remaining_us(&self, now_us: u64) -> u64 {
        self.spans.iter().map(|span| span.remaining_us(now_us)).sum()
    }

    /// When time has passed the last of it.
    pub(super) fn end_us(&self) -> u64 {
        self.spans.iter().map(|span| span.end_us).max().unwrap_or_default()
    }

    /// Adds a span of this length that ends at the limit's arrival time.
    pub(super) fn add(&mut self, tat_us: u64, length_us: u64, now_us: u64) {
        self.drop_elapsed(now_us);
        self.spans.push_back(PrefetchedSpan { start_us: tat_us.saturating_sub(length_us), end_us: tat_us });
        self.merge_newest();
    }

    /// Consumes so much from the front; returns whether there was enough.
    pub(super) fn consume(&mut self, cost_us: u64, now_us: u64) -> bool {
        if self.remaining_us(now_us) < cost_us {
            return false;
        }
        self.drop_elapsed(now_us);
        let mut open_us = cost_us;
        while open_us > 0
            && let Some(span) = self.spans.front_mut()
        {
            let taken_us = open_us.min(span.remaining_us(now_us));
            span.start_us = span.start_us.max(now_us) + taken_us;
            open_us -= taken_us;
            self.drop_elapsed(now_us);
        }
        self.consumed_until_us = self.consumed_until_us.max(now_us).saturating_add(cost_us);
        true
    }

    /// Returns what was consumed at `consumed_us`, less what time has taken of it since.
    pub(super) fn restore(&mut self, cost_us: u64, consumed_us: u64, now_us: u64) {
        self.drop_elapsed(now_us);
        self.consumed_until_us = self.consumed_until_us.saturating_sub(cost_us);
        let length_us = unelapsed_us(cost_us, consumed_us, now_us);
        let from_us = self.consumed_until_us.max(now_us);
        self.spans
            .push_front(PrefetchedSpan { start_us: from_us, end_us: from_us.saturating_add(length_us) });
        self.merge_newest();
    }

    /// Others returned at most so much: in the worst case all spans are nearer by it.
    pub(super) fn shift_earlier(&mut self, by_us: u64, now_us: u64) {
        self.drop_elapsed(now_us);
        let least_us = self.consumed_until_us.max(now_us);
        for span in &mut self.spans {
            let length_us = span.remaining_us(now_us);
            let from_us = span.start_us.max(now_us);
            span.start_us = from_us.saturating_sub(by_us).max(least_us.min(from_us));
            span.end_us = span.start_us.saturating_add(length_us);
        }
    }

    /// Takes out all that is still ahead, µs.
    pub(super) fn take_all(&mut self, now_us: u64) -> u64 {
        let left_us = self.remaining_us(now_us);
        self.spans.clear();
        left_us
    }

    fn drop_elapsed(&mut self, now_us: u64) {
        self.spans.retain(|span| span.remaining_us(now_us) > 0);
    }

    /// Merges the last two into one that starts where the earlier one does: nearer than it is, so never too late.
    fn merge_newest(&mut self) {
        if self.spans.len() > SPANS_MAX
            && let (Some(last), Some(before)) = (self.spans.pop_back(), self.spans.back_mut())
        {
            let length_us = (before.end_us - before.start_us) + (last.end_us - last.start_us);
            before.start_us = before.start_us.min(last.start_us);
            before.end_us = before.start_us.saturating_add(length_us);
        }
    }
}

/// What is left of a charge, µs, after time has passed since it was made.
pub(in crate::limiter) fn unelapsed_us(cost_us: u64, consumed_us: u64, now_us: u64) -> u64 {
    cost_us.saturating_sub(now_us.saturating_sub(consumed_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_time_is_gone_and_requests_consume_from_the_front() {
        let mut spans = PrefetchedSpans::default();
        spans.add(1_000, 300, 0);
        assert_eq!(
            (spans.remaining_us(700), spans.remaining_us(800), spans.remaining_us(1_000)),
            (300, 200, 0)
        );
        assert!(spans.consume(100, 500), "taken from 700 to 800");
        assert_eq!((spans.remaining_us(800), spans.remaining_us(900)), (200, 100));
        spans.add(2_000, 100, 500);
        assert!(spans.consume(250, 600), "across two prefetches");
        assert_eq!((spans.remaining_us(1_900), spans.remaining_us(1_960), spans.end_us()), (50, 40, 2_000));
        assert!(!spans.consume(41, 1_960) && spans.consume(40, 1_960));
        assert_eq!(spans.take_all(1_960), 0);
    }

    #[test]
    fn returned_quota_shifts_spans_but_not_before_what_was_consumed() {
        let mut spans = PrefetchedSpans::default();
        spans.add(10_000, 1_000, 0);
        spans.shift_earlier(500, 0);
        assert_eq!((spans.remaining_us(8_500), spans.remaining_us(9_000)), (1_000, 500));
        assert!(spans.consume(400, 0));
        spans.shift_earlier(1_000_000, 0);
        assert_eq!(
            (spans.remaining_us(400), spans.remaining_us(700)),
            (600, 300),
            "what was consumed lies before it"
        );
    }

    #[test]
    fn an_unused_charge_returns_what_time_has_not_taken() {
        let mut spans = PrefetchedSpans::default();
        spans.add(10_000, 1_000, 0);
        assert!(spans.consume(100, 0));
        spans.restore(100, 0, 30);
        assert_eq!(spans.remaining_us(30), 970);
        assert_eq!(spans.remaining_us(100), 900, "time takes it at once");
        for _ in 0..10 {
            assert!(spans.consume(1, 100));
            spans.restore(1, 100, 100);
        }
        assert!(spans.spans.len() <= SPANS_MAX);
    }
}
