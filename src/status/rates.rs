//! Rates of a fleet over its last moments: what two snapshots have between them.
//!
//! Pure: the owner of the loop feeds snapshots with the time they were taken at. Totals alone tell how a fleet fared
//! since its start; a p99 that includes yesterday hides the trouble of this minute.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::scoreboard::latency;
use crate::scoreboard::snapshot::{CellSnapshot, ScoreboardSnapshot};

/// What happened within a window.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InstanceRates {
    /// Length of the window; zero while there is nothing to compare with.
    pub window: Duration,
    /// The whole fleet.
    pub instance: SlotRates,
    /// Each slot, by index.
    pub slots: Vec<SlotRates>,
    /// Share of the time, 0 to 100, in which a worker's event loop was at work, by pid; missing while unknown.
    pub busy_percent: HashMap<u32, f64>,
}

/// One slot's, or the fleet's, part in it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SlotRates {
    /// Requests answered per second; none while there is nothing to compare with.
    pub requests_per_s: Option<f64>,
    /// Half of the window's requests took less, microseconds.
    pub latency_p50_us: Option<u64>,
    /// 99 of a hundred took less, microseconds.
    pub latency_p99_us: Option<u64>,
}

/// The snapshots of the last moments, reduced to what rates need.
#[derive(Debug)]
pub struct RateWindow {
    span: Duration,
    samples: VecDeque<Sample>,
}

#[derive(Debug)]
struct Sample {
    at: Duration,
    slots: Vec<SlotSample>,
    workers: HashMap<u32, HeartbeatSample>,
}

#[derive(Debug)]
struct SlotSample {
    requests: u64,
    latency: [u64; latency::BUCKETS],
}

#[derive(Debug, Clone, Copy)]
struct HeartbeatSample {
    at_ms: u64,
    busy_us: u64,
}

impl Sample {
    fn from_snapshot(snapshot: &ScoreboardSnapshot, at: Duration) -> Self {
        let slots = snapshot.slots.iter();
        let slots = slots.map(|slot| SlotSample { requests: slot.requests(), latency: slot.latency });
        let workers = snapshot.slots.iter().flat_map(|slot| &slot.workers);
        let beat = |worker: &CellSnapshot| {
            (worker.pid, HeartbeatSample { at_ms: worker.heartbeat_ms, busy_us: worker.busy_us })
        };
        Self { at, slots: slots.collect(), workers: workers.map(beat).collect() }
    }
}

impl RateWindow {
    /// A window at least this long, once it has been fed for as long.
    pub fn new(span: Duration) -> Self {
        Self { span, samples: VecDeque::new() }
    }

    /// Remembers a snapshot taken at `now`, and forgets those that no rate needs any more.
    ///
    /// Feeding it once a span is enough; more often makes the window's length steadier.
    pub fn record(&mut self, now: Duration, snapshot: &ScoreboardSnapshot) {
        // The oldest one stays until its follower is a span old by itself.
        while self.samples.get(1).is_some_and(|second| now.saturating_sub(second.at) >= self.span) {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample::from_snapshot(snapshot, now));
    }

    /// When the next snapshot is due: a span after the last one.
    pub fn next_sample_at(&self) -> Option<Duration> {
        self.samples.back().map(|last| last.at + self.span)
    }

    /// The rates between this snapshot and the window's beginning; none while there is nothing to compare with.
    pub fn rates(&self, now: Duration, snapshot: &ScoreboardSnapshot) -> InstanceRates {
        let aged = self.samples.iter().rev().find(|sample| now.saturating_sub(sample.at) >= self.span);
        let Some(first) = aged.or_else(|| self.samples.front()) else { return InstanceRates::default() };
        let window = now.saturating_sub(first.at);
        if window.is_zero() {
            return InstanceRates::default();
        }
        let last = Sample::from_snapshot(snapshot, now);
        let nothing = SlotSample { requests: 0, latency: [0; latency::BUCKETS] };
        let mut histogram = [0; latency::BUCKETS];
        let mut requests = 0;
        let mut slots = Vec::with_capacity(last.slots.len());
        for (index, slot) in last.slots.iter().enumerate() {
            let before = first.slots.get(index).unwrap_or(&nothing);
            let answered = slot.requests.saturating_sub(before.requests);
            let took: [u64; latency::BUCKETS] =
                std::array::from_fn(|bucket| slot.latency[bucket].saturating_sub(before.latency[bucket]));
            histogram.iter_mut().zip(took).for_each(|(sum, count)| *sum += count);
            requests += answered;
            slots.push(slot_rates(answered, &took, window));
        }
        let busy = last.workers.iter();
        let busy = busy.filter_map(|(pid, beat)| Some((*pid, busy_percent(first.workers.get(pid), *beat)?)));
        InstanceRates {
            window,
            instance: slot_rates(requests, &histogram, window),
            slots,
            busy_percent: busy.collect(),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn slot_rates(requests: u64, took: &[u64], window: Duration) -> SlotRates {
    SlotRates {
        requests_per_s: Some(requests as f64 / window.as_secs_f64()),
        latency_p50_us: latency::quantile_us(took, 0.5),
        latency_p99_us: latency::quantile_us(took, 0.99),
    }
}

/// The share of the time between two beats; the beats' own clock, because they come only twice a second.
#[allow(clippy::cast_precision_loss, reason = "a share for people")]
fn busy_percent(before: Option<&HeartbeatSample>, now: HeartbeatSample) -> Option<f64> {
    let before = before?;
    let passed_ms = now.at_ms.checked_sub(before.at_ms).filter(|ms| *ms > 0 && before.at_ms > 0)?;
    let busy_us = now.busy_us.saturating_sub(before.busy_us);
    Some((busy_us as f64 / (passed_ms as f64 * 10.0)).min(100.0))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::scoreboard::Scoreboard;

    const SECOND: Duration = Duration::from_secs(1);

    fn table() -> Scoreboard {
        let table = Scoreboard::create(NonZeroUsize::new(2).unwrap(), 1, 0).unwrap();
        table.set_slots(2);
        for slot in 0..2 {
            table.cell(slot, 0).reset(1, 0);
            table.cell(slot, 0).set_pid(100 + u32::try_from(slot).unwrap());
        }
        table
    }

    fn answer(table: &Scoreboard, slot: usize, requests: usize, latency_us: u64) {
        for _ in 0..requests {
            table.cell(slot, 0).count_request_started();
            table.cell(slot, 0).count_request_finished(200, 1, latency_us);
        }
    }

    #[test]
    fn nothing_to_compare_with_gives_no_rate_and_not_zero() {
        let table = table();
        let mut window = RateWindow::new(SECOND);
        assert_eq!(window.rates(SECOND, &table.snapshot()), InstanceRates::default());
        window.record(SECOND, &table.snapshot());
        assert_eq!(window.rates(SECOND, &table.snapshot()).instance.requests_per_s, None);
    }

    #[test]
    fn rates_and_quantiles_are_those_of_the_window_and_not_of_all_time() {
        let table = table();
        let mut window = RateWindow::new(SECOND);
        answer(&table, 0, 1000, 1_000_000);
        window.record(SECOND, &table.snapshot());
        answer(&table, 0, 100, 100);
        answer(&table, 1, 50, 100);
        let rates = window.rates(SECOND * 3, &table.snapshot());
        assert_eq!(rates.window, SECOND * 2);
        assert_eq!(rates.instance.requests_per_s, Some(75.0));
        assert_eq!(rates.slots[0].requests_per_s, Some(50.0));
        assert!(rates.instance.latency_p99_us.unwrap() < 150, "{rates:?}");
    }

    #[test]
    fn the_window_is_never_shorter_than_its_span_once_it_was_fed_that_long() {
        let table = table();
        let mut window = RateWindow::new(SECOND);
        for tenth in 0..50_u32 {
            let now = SECOND + SECOND / 10 * tenth;
            window.record(now, &table.snapshot());
            let length = window.rates(now, &table.snapshot()).window;
            assert!(tenth < 10 || length == SECOND, "{length:?}");
        }
        assert!(window.samples.len() < 14, "{} samples are kept", window.samples.len());
    }

    #[test]
    fn busy_time_is_measured_by_the_beats_own_clock() {
        let table = table();
        let mut window = RateWindow::new(SECOND);
        table.cell(0, 0).record_heartbeat(1000, 0, 0, 0);
        window.record(SECOND, &table.snapshot());
        // Two seconds have passed, but the last beat was after one.
        table.cell(0, 0).record_heartbeat(2000, 0, 0, 250_000);
        let rates = window.rates(SECOND * 3, &table.snapshot());
        assert_eq!(rates.busy_percent.get(&100), Some(&25.0));
        assert_eq!(rates.busy_percent.get(&101), None, "it never beat");
    }
}
