//! The last minute, second by second, and the lines that are drawn of it. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// Seconds that are kept.
pub(super) const KEPT: usize = 60;

/// Width of a line's picture: two units a second.
pub(super) const WIDTH: usize = 2 * (KEPT - 1);

/// Height of a line's picture.
pub(super) const HEIGHT: usize = 32;

/// One number over the last minute; seconds in which nobody watched are gaps.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Track(VecDeque<Option<f64>>);

/// What is drawn as lines.
#[derive(Debug, Default)]
pub(super) struct History {
    last: Option<Duration>,
    /// Requests per second of all machines.
    pub(super) rate: Track,
    /// The slowest hundredth, microseconds.
    pub(super) p99: Track,
    /// Share of the time in which event loops are at work, 0 to 100.
    pub(super) busy: Track,
    /// Requests per second of each of this machine's slots.
    pub(super) slots: Vec<Track>,
}

/// One second's numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Moment {
    pub(super) rate: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) busy: Option<f64>,
    pub(super) slots: Vec<Option<f64>>,
}

impl History {
    /// Remembers a moment at `now` on the monotonic clock; one in the same second as the last takes its place.
    pub(super) fn note(&mut self, now: Duration, moment: &Moment) {
        let passed = self.last.map_or(1, |last| now.as_secs().saturating_sub(last.as_secs()));
        let passed = usize::try_from(passed).unwrap_or(KEPT).min(KEPT);
        self.last = Some(now);
        self.slots.resize_with(self.slots.len().max(moment.slots.len()), Track::default);
        self.rate.push(passed, moment.rate);
        self.p99.push(passed, moment.p99);
        self.busy.push(passed, moment.busy);
        for (slot, track) in self.slots.iter_mut().enumerate() {
            track.push(passed, moment.slots.get(slot).copied().flatten());
        }
    }

    /// The highest number of all slots: their lines have one scale, so that they can be compared.
    pub(super) fn slots_max(&self) -> f64 {
        self.slots.iter().map(Track::max).fold(0.0, f64::max)
    }
}

impl Track {
    fn push(&mut self, passed: usize, number: Option<f64>) {
        if passed == 0 {
            self.0.pop_back();
        }
        // One second that a busy machine skipped is no gap: nobody stopped watching.
        let skipped = if passed == 2 { number } else { None };
        self.0.extend((1..passed).map(|_| skipped));
        self.0.push_back(number);
        let surplus = self.0.len().saturating_sub(KEPT);
        self.0.drain(..surplus);
    }

    pub(super) fn max(&self) -> f64 {
        self.0.iter().flatten().copied().fold(0.0, f64::max)
    }

    /// An SVG path, the newest number at the right edge, `max` at the top.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "pixels"
    )]
    pub(super) fn path(&self, max: f64) -> String {
        let max = if max > 0.0 { max } else { 1.0 };
        let mut path = String::new();
        let mut pen_is_up = true;
        for (at, number) in self.0.iter().enumerate() {
            let Some(number) = number else {
                pen_is_up = true;
                continue;
            };
            let x = WIDTH - 2 * (self.0.len() - 1 - at);
            let top = 1.0;
            let room = HEIGHT as f64 - 2.0;
            let y = (top + room - (number / max).clamp(0.0, 1.0) * room).round() as usize;
            // A number alone is a dot: a line to where it is already.
            if pen_is_up {
                path.push_str(&format!("M{x} {y}h0"));
            } else {
                path.push_str(&format!("L{x} {y}"));
            }
            pen_is_up = false;
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(rate: f64, slots: &[f64]) -> Moment {
        Moment {
            rate: Some(rate),
            slots: slots.iter().map(|rate| Some(*rate)).collect(),
            ..Moment::default()
        }
    }

    #[test]
    fn the_newest_number_is_at_the_right_and_the_highest_at_the_top() {
        let mut history = History::default();
        for (second, rate) in [(1, 0.0), (2, 50.0), (3, 100.0)] {
            history.note(Duration::from_secs(second), &moment(rate, &[rate]));
        }
        assert_eq!(history.rate.path(history.rate.max()), "M114 31h0L116 16L118 1");
        assert_eq!((history.slots_max(), history.slots.len()), (100.0, 1));
    }

    #[test]
    fn seconds_in_which_nobody_watched_are_gaps_and_a_minute_is_kept() {
        let mut history = History::default();
        history.note(Duration::from_secs(1), &moment(1.0, &[]));
        history.note(Duration::from_secs(4), &moment(1.0, &[1.0, 2.0]));
        assert_eq!(history.rate.path(1.0), "M112 1h0M118 1h0");
        assert_eq!(history.slots[1].path(2.0), "M118 1h0");
        let mut skipped = Track::default();
        skipped.push(1, Some(1.0));
        skipped.push(2, Some(1.0));
        assert_eq!(skipped.path(1.0), "M114 1h0L116 1L118 1", "a machine too busy for one second");
        history.note(Duration::from_millis(4_400), &moment(0.0, &[]));
        assert_eq!(history.rate.path(1.0), "M112 1h0M118 31h0", "the same second");
        for second in 5..200 {
            history.note(Duration::from_secs(second), &moment(1.0, &[]));
        }
        assert_eq!(history.rate.0.len(), KEPT);
        assert!(history.rate.path(1.0).starts_with("M0 1h0L2 1"));
        history.note(Duration::from_secs(100_000), &moment(1.0, &[]));
        assert_eq!(history.rate.path(1.0), "M118 1h0");
    }
}
