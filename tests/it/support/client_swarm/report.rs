//! What a crowd saw.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What came of one request.
#[derive(Debug)]
pub(super) enum SwarmOutcome {
    /// The answer is as it should be.
    Answered,
    /// A well-formed refusal: 503, a problem document, `Retry-After`.
    Refused,
    /// Anything else, in a few words.
    Failed(String),
}

impl SwarmOutcome {
    pub(super) fn is_answered(&self) -> bool {
        matches!(self, Self::Answered)
    }
}

/// A crowd's figures, or one client's.
#[derive(Debug, Default)]
pub(crate) struct SwarmReport {
    /// Answered as they should be: when each was sent since the crowd came, and how long it took.
    answers: Vec<(Duration, Duration)>,
    /// Refused as they should be: the same.
    refusals: Vec<(Duration, Duration)>,
    /// Failures by kind.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Connections that ended between two requests.
    pub(crate) reconnected: u64,
    /// Sum of the clients' counts as they were told last.
    pub(crate) counted: u64,
    /// Requests of an open loop that were due and found no free client.
    pub(crate) never_sent: u64,
}

impl SwarmReport {
    pub(super) fn record(&mut self, came: SwarmOutcome, sent: Duration, took: Duration) {
        match came {
            SwarmOutcome::Answered => self.answers.push((sent, took)),
            SwarmOutcome::Refused => self.refusals.push((sent, took)),
            SwarmOutcome::Failed(how) => self.fail(&how),
        }
    }

    pub(super) fn fail(&mut self, how: &str) {
        *self.failures.entry(how.to_owned()).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.answers.extend(other.answers);
        self.refusals.extend(other.refusals);
        for (how, count) in other.failures {
            *self.failures.entry(how).or_default() += count;
        }
        self.reconnected += other.reconnected;
        self.counted += other.counted;
    }

    /// Requests answered as they should be.
    pub(crate) fn answered(&self) -> u64 {
        self.answers.len() as u64
    }

    /// Requests refused as they should be.
    pub(crate) fn refused(&self) -> u64 {
        self.refusals.len() as u64
    }

    /// Requests that failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Answers a second, in this part of the crowd's time.
    pub(crate) fn rate(&self, from: Duration, to: Duration) -> f64 {
        let answers = self.answers.iter().filter(|(sent, took)| (from..to).contains(&(*sent + *took)));
        answers.count() as f64 / (to - from).as_secs_f64()
    }

    /// The latency that this share of the answers stays below, of requests sent since `from`.
    pub(crate) fn latency(&self, share: f64, from: Duration) -> Duration {
        percentile(&self.answers, share, from)
    }

    /// The same of refusals.
    pub(crate) fn refusal_latency(&self, share: f64, from: Duration) -> Duration {
        percentile(&self.refusals, share, from)
    }

    /// Every request was answered as it should be, and none is missing.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert!(self.failed() == 0 && self.refused() == 0 && self.answered() > 0, "{self}");
    }

    /// The same, and every answer was counted once.
    #[track_caller]
    pub(crate) fn is_exact(&self) {
        self.is_clean();
        assert_eq!(self.counted, self.answered(), "{self}");
    }
}

fn percentile(requests: &[(Duration, Duration)], share: f64, from: Duration) -> Duration {
    let mut took: Vec<_> = requests.iter().filter(|(sent, _)| *sent >= from).map(|(_, took)| *took).collect();
    took.sort_unstable();
    let last = took.len().saturating_sub(1);
    took.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

impl fmt::Display for SwarmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share| self.latency(share, Duration::ZERO).as_secs_f64() * 1e3;
        write!(
            f,
            "{} answered, {} refused, {} failed {:?}, {} counted, p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
            self.answered(),
            self.refused(),
            self.failed(),
            self.failures,
            self.counted,
            ms(0.5),
            ms(0.99),
            ms(1.0),
        )
    }
}
