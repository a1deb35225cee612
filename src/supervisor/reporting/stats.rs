//! Figures in the log every so often: totals, and what happened since the last line; pure.

use std::time::Duration;

use crate::scoreboard::snapshot::ScoreboardSnapshot;
use crate::status::rates::{InstanceRates, RateWindow};

/// When the next line is due, and what the last one compares with.
#[derive(Debug)]
pub(in crate::supervisor) struct StatsLogger {
    interval: Duration,
    next_at: Option<Duration>,
    window: RateWindow,
    previous: StatsTotals,
}

/// Totals of which a line says how much was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StatsTotals {
    requests: u64,
    errors: u64,
    rate_limited: u64,
    unavailable: u64,
    aborted: u64,
    crashes: u64,
}

impl StatsTotals {
    fn from_snapshot(snapshot: &ScoreboardSnapshot) -> Self {
        Self {
            requests: snapshot.requests(),
            errors: snapshot.total(|slot| slot.responses[5]),
            rate_limited: snapshot.total(|slot| slot.rate_limited),
            unavailable: snapshot.total(|slot| slot.unavailable),
            aborted: snapshot.total(|slot| slot.aborted_connections),
            crashes: snapshot.total(|slot| slot.crashes),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
            rate_limited: self.rate_limited.saturating_sub(before.rate_limited),
            unavailable: self.unavailable.saturating_sub(before.unavailable),
            aborted: self.aborted.saturating_sub(before.aborted),
            crashes: self.crashes.saturating_sub(before.crashes),
        }
    }
}

impl StatsLogger {
    /// A line every `interval` from `now` on, the first one compared with this snapshot; zero: none.
    pub(in crate::supervisor) fn new(
        interval: Duration,
        now: Duration,
        snapshot: &ScoreboardSnapshot,
    ) -> Self {
        let mut window = RateWindow::new(interval);
        window.record(now, snapshot);
        let next_at = (!interval.is_zero()).then(|| now + interval);
        Self { interval, next_at, window, previous: StatsTotals::from_snapshot(snapshot) }
    }

    /// Time between two lines; zero: none.
    pub(in crate::supervisor) fn interval(&self) -> Duration {
        self.interval
    }

    /// When the next line is due; none when there are none.
    pub(in crate::supervisor) fn next_at(&self) -> Option<Duration> {
        self.next_at
    }

    /// The line, if it is due; the snapshot is taken only then.
    ///
    /// After a pause of the whole process one line covers all of it: the missed ones are not made up for.
    pub(in crate::supervisor) fn line_if_due(
        &mut self,
        now: Duration,
        snapshot: impl FnOnce() -> ScoreboardSnapshot,
    ) -> Option<StatsLine> {
        let at = self.next_at.filter(|at| *at <= now)?;
        let snapshot = snapshot();
        let next = at + self.interval;
        self.next_at = Some(if next > now { next } else { now + self.interval });
        let rates = self.window.rates(now, &snapshot);
        self.window.record(now, &snapshot);
        let totals = StatsTotals::from_snapshot(&snapshot);
        let line = StatsLine::new(&snapshot, &rates, totals.since(self.previous), totals);
        self.previous = totals;
        Some(line)
    }
}

/// One line of figures.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::supervisor) struct StatsLine {
    ready: usize,
    slots: usize,
    connections: u64,
    in_flight: u64,
    requests_per_s: f64,
    latency_p50_us: Option<u64>,
    latency_p99_us: Option<u64>,
    busy_percent: f64,
    memory_bytes: u64,
    added: StatsTotals,
    totals: StatsTotals,
}

impl StatsLine {
    fn new(
        snapshot: &ScoreboardSnapshot,
        rates: &InstanceRates,
        added: StatsTotals,
        totals: StatsTotals,
    ) -> Self {
        Self {
            ready: snapshot.ready(),
            slots: snapshot.slots.len(),
            connections: snapshot.total(|slot| slot.sum(|worker| worker.connections)),
            in_flight: snapshot.total(|slot| slot.sum(|worker| worker.in_flight)),
            requests_per_s: rates.instance.requests_per_s.unwrap_or_default(),
            latency_p50_us: rates.instance.latency_p50_us,
            latency_p99_us: rates.instance.latency_p99_us,
            busy_percent: rates.busy_percent.values().copied().fold(0.0, f64::max),
            memory_bytes: snapshot.total(|slot| slot.sum(|worker| worker.memory_bytes)),
            added,
            totals,
        }
    }

    /// Writes it.
    pub(in crate::supervisor) fn log(&self) {
        let Self { added, totals, .. } = self;
        tracing::info!(
            ready = self.ready,
            connections = self.connections,
            in_flight = self.in_flight,
            requests = added.requests,
            requests_per_second = round(self.requests_per_s),
            latency_p50_seconds = self.latency_p50_us.map(seconds),
            latency_p99_seconds = self.latency_p99_us.map(seconds),
            busy_ratio_max = ratio(self.busy_percent),
            memory_bytes = self.memory_bytes,
            errors = added.errors,
            rate_limited = added.rate_limited,
            unavailable = added.unavailable,
            aborted_connections = added.aborted,
            crashes = added.crashes,
            requests_total = totals.requests,
            errors_total = totals.errors,
            crashes_total = totals.crashes,
            "stats: {self}"
        );
    }
}

impl std::fmt::Display for StatsLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} requests, {:.1} per second", self.added.requests, self.requests_per_s)?;
        if let Some(us) = self.latency_p99_us {
            #[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
            let ms = us as f64 / 1000.0;
            write!(f, ", p99 {ms:.1} ms")?;
        }
        write!(f, ", {} errors, {} of {} workers", self.added.errors, self.ready, self.slots)
    }
}

#[allow(clippy::cast_precision_loss, reason = "numbers of this size are exact")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// A share in per cent as a ratio, to a tenth of a per cent.
fn ratio(percent: f64) -> f64 {
    (percent * 10.0).round() / 1000.0
}

/// To one digit: more is noise.
fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::scoreboard::Scoreboard;

    const SECOND: Duration = Duration::from_secs(1);

    fn table() -> Scoreboard {
        let table = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
        table.set_slots(1);
        table
    }

    fn answer(table: &Scoreboard, status: u16, requests: usize) {
        for _ in 0..requests {
            table.cell(0, 0).count_request_started();
            table.cell(0, 0).count_request_finished(status, 1, 900);
        }
    }

    #[test]
    fn without_an_interval_nothing_is_ever_due() {
        let mut stats = StatsLogger::new(Duration::ZERO, SECOND, &table().snapshot());
        assert_eq!(stats.next_at(), None);
        assert_eq!(stats.line_if_due(SECOND * 9, || unreachable!()), None);
    }

    #[test]
    fn a_line_reports_what_was_added_since_the_previous_one() {
        let table = table();
        let mut stats = StatsLogger::new(SECOND * 10, SECOND, &table.snapshot());
        assert_eq!(stats.line_if_due(SECOND * 10, || unreachable!()), None);
        answer(&table, 200, 50);
        let first = stats.line_if_due(SECOND * 11, || table.snapshot()).unwrap();
        assert_eq!((first.added.requests, first.totals.requests), (50, 50));
        assert!(first.to_string().starts_with("50 requests, 5.0 per second, p99 "), "{first}");
        answer(&table, 200, 90);
        answer(&table, 503, 10);
        let second = stats.line_if_due(SECOND * 21, || table.snapshot()).unwrap();
        assert_eq!((second.added.requests, second.added.errors, second.totals.requests), (100, 10, 150));
        assert!(second.to_string().starts_with("100 requests, 10.0 per second, p99 "), "{second}");
    }

    #[test]
    fn a_ratio_has_at_most_three_digits_behind_the_point() {
        for tenths in 0..=1000_u32 {
            assert!(ratio(f64::from(tenths) / 10.0).to_string().len() <= "0.011".len(), "{tenths}");
        }
        assert_eq!((ratio(1.14), ratio(100.0)), (0.011, 1.0));
    }

    #[test]
    fn a_long_pause_is_covered_by_one_line() {
        let table = table();
        let mut stats = StatsLogger::new(SECOND, SECOND, &table.snapshot());
        assert!(stats.line_if_due(SECOND * 60, || table.snapshot()).is_some());
        assert_eq!(stats.next_at(), Some(SECOND * 61));
    }
}
