//! What came of every request: numbers by kind, and enough of each failure to look for it in the fleet's log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::support::client::Failure;
use crate::support::load_generator::{ClientKind, RequestOutcome};

/// A small answer that takes longer than this is told of: nothing failed, but someone waited.
const LATE: Duration = Duration::from_millis(500);

/// Failures that are told in full.
const EXAMPLES: usize = 20;

/// How a request was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RequestLoss {
    /// No one listens.
    Refused,
    /// The connection ended before the first byte of the answer, or was torn down.
    Reset,
    /// The answer broke off, or is not what was asked for.
    Short,
    /// No answer for longer than a client's patience.
    TimedOut,
    /// A status of 500 to 599.
    ServerError,
    /// 429.
    Limited,
    /// Anything else.
    Other,
}

impl From<&Failure> for RequestLoss {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Refused => Self::Refused,
            Failure::Reset | Failure::Closed => Self::Reset,
            Failure::Short => Self::Short,
            Failure::TimedOut => Self::TimedOut,
            Failure::Other(_) => Self::Other,
        }
    }
}

impl RequestLoss {
    /// What a status that is not 200 means.
    pub(super) fn of_status(status: u16) -> Self {
        match status {
            429 => Self::Limited,
            500..=599 => Self::ServerError,
            _ => Self::Other,
        }
    }
}

/// One failure.
#[derive(Debug)]
struct LossExample {
    at: OffsetDateTime,
    took: Duration,
    kind: ClientKind,
    loss: RequestLoss,
    text: String,
}

impl fmt::Display for LossExample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, took) = (self.at.time(), self.took);
        write!(f, "{at} {:?} {:?} after {took:?}: {}", self.kind, self.loss, self.text)
    }
}

/// Numbers of one kind of client.
#[derive(Debug, Default)]
struct KindRow {
    answered: u64,
    lost: BTreeMap<RequestLoss, u64>,
    slowest: Duration,
    /// Answers that came late, and when the first of them did.
    late: (u64, Option<OffsetDateTime>),
}

/// Everything that clients saw.
#[derive(Debug, Default)]
pub(crate) struct LoadReport {
    rows: BTreeMap<ClientKind, KindRow>,
    examples: Vec<LossExample>,
    workers: BTreeSet<u32>,
    /// Answered requests that added to the counter.
    pub(super) posted: u64,
}

impl LoadReport {
    pub(super) fn record(&mut self, kind: ClientKind, begin: Instant, outcome: RequestOutcome) {
        let row = self.rows.entry(kind).or_default();
        let took = begin.elapsed();
        row.slowest = row.slowest.max(took);
        if took > LATE && !kind.takes_its_time() {
            row.late.0 += 1;
            row.late.1.get_or_insert_with(OffsetDateTime::now_utc);
        }
        match outcome {
            Ok(worker) => {
                row.answered += 1;
                self.workers.insert(worker);
            }
            Err((loss, text)) => {
                *row.lost.entry(loss).or_default() += 1;
                if self.examples.len() < EXAMPLES {
                    self.examples.push(LossExample { at: OffsetDateTime::now_utc(), took, kind, loss, text });
                }
            }
        }
    }

    /// Both together.
    pub(crate) fn with(mut self, other: Self) -> Self {
        for (kind, row) in other.rows {
            let own = self.rows.entry(kind).or_default();
            own.answered += row.answered;
            own.slowest = own.slowest.max(row.slowest);
            own.late = (own.late.0 + row.late.0, own.late.1.into_iter().chain(row.late.1).min());
            for (loss, count) in row.lost {
                *own.lost.entry(loss).or_default() += count;
            }
        }
        self.examples.extend(other.examples);
        self.workers.extend(other.workers);
        self.posted += other.posted;
        self
    }

    /// Requests that were answered as they should be.
    pub(crate) fn answered(&self) -> u64 {
        self.rows.values().map(|row| row.answered).sum()
    }

    /// Those of one kind of client.
    pub(crate) fn answered_to(&self, kind: ClientKind) -> u64 {
        self.rows.get(&kind).map_or(0, |row| row.answered)
    }

    /// What the counter has to be.
    pub(crate) fn posted(&self) -> u64 {
        self.posted
    }

    /// Requests that were not.
    pub(crate) fn failed(&self) -> u64 {
        self.rows.values().flat_map(|row| row.lost.values()).sum()
    }

    /// Requests lost in one way.
    pub(crate) fn lost(&self, loss: RequestLoss) -> u64 {
        self.rows.values().filter_map(|row| row.lost.get(&loss)).sum()
    }

    /// Workers that answered.
    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// One line: requests, and failures by kind of failure.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!(
            "{} requests, {} workers, {} failed",
            self.answered() + self.failed(),
            self.workers(),
            self.failed()
        );
        let losses: BTreeSet<_> = self.rows.values().flat_map(|row| row.lost.keys().copied()).collect();
        for loss in losses {
            let _ = write!(text, ", {loss:?} {}", self.lost(loss));
        }
        for (kind, row) in &self.rows {
            let _ = write!(text, "; {kind:?} {} (slowest {} ms", row.answered, row.slowest.as_millis());
            if let (late, Some(first)) = row.late {
                let _ = write!(text, ", {late} after {LATE:?}, first {}", first.time());
            }
            text.push(')');
        }
        text
    }

    /// That not one request failed.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        if self.failed() > 0 {
            let mut examples: Vec<_> = self.examples.iter().collect();
            examples.sort_by_key(|example| example.at);
            let shown: Vec<_> = examples.iter().take(EXAMPLES).map(ToString::to_string).collect();
            panic!("{}\n{}", self.summary(), shown.join("\n"));
        }
        assert!(self.rows.values().all(|row| row.answered > 0), "a client did nothing: {}", self.summary());
    }
}
