//! What a worker holds of one limit, as stretches of the limit's own time: paid for only while they are ahead.
//!
//! A draw of n requests moves the limit's arrival time by n intervals, and time moves towards it. What is drawn is the
//! stretch that the draw added, and each request takes its interval from the front of it. Where time has reached a part
//! of the stretch, Redis has forgotten that it was charged: spending that part, or giving it back, would let requests in
//! beyond the limit. So a part that time has passed is gone. Stretches of different draws never overlap, hence what a
//! subject is granted in any window fits between its begin and its end plus the burst.
//!
//! Quota that another worker gives back moves the arrival time back, and with it what was charged last: a stretch may be
//! nearer than it seems. [`Lots::nearer`] moves it, never nearer than what this worker spent of late, which lies ahead of
//! now in any case. Pure; times are µs of the worker's clock.

use std::collections::VecDeque;

/// Most stretches that are told apart; draws begin at half of what is to be held, so there are two or three.
const SPANS_MAX: usize = 4;

/// Stretches that are paid for, the oldest draw's first.
#[derive(Debug, Clone, Default)]
pub(super) struct PrefetchedSpans {
    spans: VecDeque<PrefetchedSpan>,
    /// Until then what was spent here is ahead of now: an arrival time of this worker's requests alone.
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
    /// Time that is paid for and still ahead, µs.
    pub(super) fn remaining_us(&self, now_us: u64) -> u64 {
        self.spans.iter().map(|lot| lot.remaining_us(now_us)).sum()
    }

    /// When the last of it is passed.
    pub(super) fn end_us(&self) -> u64 {
        self.spans.iter().map(|lot| lot.end_us).max().unwrap_or_default()
    }

    /// Adds a stretch that ends at the limit's arrival time and is so long.
    pub(super) fn add(&mut self, tat_us: u64, length_us: u64, now_us: u64) {
        self.drop_elapsed(now_us);
        self.spans.push_back(PrefetchedSpan { start_us: tat_us.saturating_sub(length_us), end_us: tat_us });
        self.merge_newest();
    }

    /// Takes so much from the front; whether there was so much.
    pub(super) fn consume(&mut self, cost_us: u64, now_us: u64) -> bool {
        if self.remaining_us(now_us) < cost_us {
            return false;
        }
        self.drop_elapsed(now_us);
        let mut open_us = cost_us;
        while open_us > 0
            && let Some(lot) = self.spans.front_mut()
        {
            let taken_us = open_us.min(lot.remaining_us(now_us));
            lot.start_us = lot.start_us.max(now_us) + taken_us;
            open_us -= taken_us;
            self.drop_elapsed(now_us);
        }
        self.consumed_until_us = self.consumed_until_us.max(now_us).saturating_add(cost_us);
        true
    }

    /// Gives back what was spent at `spent_us` for nothing: what time took of it meanwhile is gone.
    pub(super) fn restore(&mut self, cost_us: u64, spent_us: u64, now_us: u64) {
        self.drop_elapsed(now_us);
        self.consumed_until_us = self.consumed_until_us.saturating_sub(cost_us);
        let length_us = unelapsed_us(cost_us, spent_us, now_us);
        let from_us = self.consumed_until_us.max(now_us);
        self.spans
            .push_front(PrefetchedSpan { start_us: from_us, end_us: from_us.saturating_add(length_us) });
        self.merge_newest();
    }

    /// Others gave back at most so much: all of it is so much nearer at worst.
    pub(super) fn shift_earlier(&mut self, by_us: u64, now_us: u64) {
        self.drop_elapsed(now_us);
        let least_us = self.consumed_until_us.max(now_us);
        for lot in &mut self.spans {
            let length_us = lot.remaining_us(now_us);
            let from_us = lot.start_us.max(now_us);
            lot.start_us = from_us.saturating_sub(by_us).max(least_us.min(from_us));
            lot.end_us = lot.start_us.saturating_add(length_us);
        }
    }

    /// Takes out all that is still ahead, µs.
    pub(super) fn take_all(&mut self, now_us: u64) -> u64 {
        let left_us = self.remaining_us(now_us);
        self.spans.clear();
        left_us
    }

    fn drop_elapsed(&mut self, now_us: u64) {
        self.spans.retain(|lot| lot.remaining_us(now_us) > 0);
    }

    /// The last two become one, which begins where the earlier one does: nearer than it is, so never too late.
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

/// What is left, µs, of a charge of which time has passed since it was made.
pub(in crate::limiter) fn unelapsed_us(cost_us: u64, spent_us: u64, now_us: u64) -> u64 {
    cost_us.saturating_sub(now_us.saturating_sub(spent_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_time_has_passed_is_gone_and_what_is_spent_comes_from_the_front() {
        let mut lots = PrefetchedSpans::default();
        lots.add(1_000, 300, 0);
        assert_eq!((lots.remaining_us(700), lots.remaining_us(800), lots.remaining_us(1_000)), (300, 200, 0));
        assert!(lots.consume(100, 500), "taken from 700 to 800");
        assert_eq!((lots.remaining_us(800), lots.remaining_us(900)), (200, 100));
        lots.add(2_000, 100, 500);
        assert!(lots.consume(250, 600), "across two draws");
        assert_eq!((lots.remaining_us(1_900), lots.remaining_us(1_960), lots.end_us()), (50, 40, 2_000));
        assert!(!lots.consume(41, 1_960) && lots.consume(40, 1_960));
        assert_eq!(lots.take_all(1_960), 0);
    }

    #[test]
    fn what_others_gave_back_brings_it_nearer_but_not_nearer_than_what_was_spent() {
        let mut lots = PrefetchedSpans::default();
        lots.add(10_000, 1_000, 0);
        lots.shift_earlier(500, 0);
        assert_eq!((lots.remaining_us(8_500), lots.remaining_us(9_000)), (1_000, 500));
        assert!(lots.consume(400, 0));
        lots.shift_earlier(1_000_000, 0);
        assert_eq!(
            (lots.remaining_us(400), lots.remaining_us(700)),
            (600, 300),
            "what was spent lies before it"
        );
    }

    #[test]
    fn a_request_that_came_to_nothing_brings_back_what_time_has_not_taken() {
        let mut lots = PrefetchedSpans::default();
        lots.add(10_000, 1_000, 0);
        assert!(lots.consume(100, 0));
        lots.restore(100, 0, 30);
        assert_eq!(lots.remaining_us(30), 970);
        assert_eq!(lots.remaining_us(100), 900, "it is passed at once");
        for _ in 0..10 {
            assert!(lots.consume(1, 100));
            lots.restore(1, 100, 100);
        }
        assert!(lots.spans.len() <= SPANS_MAX);
    }
}
