//! The last minute, second by second, and its sparklines. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// Seconds that are retained.
pub(super) const SECONDS_KEPT: usize = 60;

/// Width of a sparkline: two units a second.
pub(super) const WIDTH: usize = 2 * (SECONDS_KEPT - 1);

/// Height of a sparkline.
pub(super) const HEIGHT: usize = 32;

/// One number over the last minute; seconds without an open page are gaps.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sparkline(VecDeque<Option<f64>>);

/// The numbers that are shown as sparklines.
#[derive(Debug, Default)]
pub(super) struct MetricHistory {
    last_recorded_at: Option<Duration>,
    /// Requests per second of all instances.
    pub(super) rate: Sparkline,
    /// The 99th percentile of latency, microseconds.
    pub(super) p99: Sparkline,
    /// Busy share of the event loops, 0 to 100.
    pub(super) busy: Sparkline,
    /// Requests per second of each slot of this instance.
    pub(super) slots: Vec<Sparkline>,
}

/// One second's numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct MetricSample {
    pub(super) rate: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) busy: Option<f64>,
    pub(super) slots: Vec<Option<f64>>,
}

impl MetricHistory {
    /// Records a sample at `now` on the monotonic clock; it replaces one of the same second.
    pub(super) fn record(&mut self, now: Duration, sample: &MetricSample) {
        let passed = self.last_recorded_at.map_or(1, |last| now.as_secs().saturating_sub(last.as_secs()));
        let passed = usize::try_from(passed).unwrap_or(SECONDS_KEPT).min(SECONDS_KEPT);
        self.last_recorded_at = Some(now);
        self.slots.resize_with(self.slots.len().max(sample.slots.len()), Sparkline::default);
        self.rate.push(passed, sample.rate);
        self.p99.push(passed, sample.p99);
        self.busy.push(passed, sample.busy);
        for (slot, sparkline) in self.slots.iter_mut().enumerate() {
            sparkline.push(passed, sample.slots.get(slot).copied().flatten());
        }
    }

    /// The highest number of all slots: one scale makes their sparklines comparable.
    pub(super) fn slots_max(&self) -> f64 {
        self.slots.iter().map(Sparkline::max).fold(0.0, f64::max)
    }
}

impl Sparkline {
    fn push(&mut self, passed: usize, number: Option<f64>) {
        if passed == 0 {
            self.0.pop_back();
        }
        // One skipped second is a busy host, and no gap.
        let skipped = if passed == 2 { number } else { None };
        self.0.extend((1..passed).map(|_| skipped));
        self.0.push_back(number);
        let surplus = self.0.len().saturating_sub(SECONDS_KEPT);
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
    pub(super) fn svg_path(&self, max: f64) -> String {
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
            // A number between gaps is a dot: a line of no length.
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

    fn sample(rate: f64, slots: &[f64]) -> MetricSample {
        MetricSample {
            rate: Some(rate),
            slots: slots.iter().map(|rate| Some(*rate)).collect(),
            ..MetricSample::default()
        }
    }

    #[test]
    fn the_newest_number_is_at_the_right_and_the_highest_at_the_top() {
        let mut history = MetricHistory::default();
        for (second, rate) in [(1, 0.0), (2, 50.0), (3, 100.0)] {
            history.record(Duration::from_secs(second), &sample(rate, &[rate]));
        }
        assert_eq!(history.rate.svg_path(history.rate.max()), "M114 31h0L116 16L118 1");
        assert_eq!((history.slots_max(), history.slots.len()), (100.0, 1));
    }

    #[test]
    fn seconds_without_a_sample_are_gaps_and_a_minute_is_retained() {
        let mut history = MetricHistory::default();
        history.record(Duration::from_secs(1), &sample(1.0, &[]));
        history.record(Duration::from_secs(4), &sample(1.0, &[1.0, 2.0]));
        assert_eq!(history.rate.svg_path(1.0), "M112 1h0M118 1h0");
        assert_eq!(history.slots[1].svg_path(2.0), "M118 1h0");
        let mut skipped = Sparkline::default();
        skipped.push(1, Some(1.0));
        skipped.push(2, Some(1.0));
        assert_eq!(skipped.svg_path(1.0), "M114 1h0L116 1L118 1", "one skipped second");
        history.record(Duration::from_millis(4_400), &sample(0.0, &[]));
        assert_eq!(history.rate.svg_path(1.0), "M112 1h0M118 31h0", "the same second");
        for second in 5..200 {
            history.record(Duration::from_secs(second), &sample(1.0, &[]));
        }
        assert_eq!(history.rate.0.len(), SECONDS_KEPT);
        assert!(history.rate.svg_path(1.0).starts_with("M0 1h0L2 1"));
        history.record(Duration::from_secs(100_000), &sample(1.0, &[]));
        assert_eq!(history.rate.svg_path(1.0), "M118 1h0");
    }
}
