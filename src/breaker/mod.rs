//! A circuit breaker: it lets calls through (closed), refuses them (open), or tries one at a time (half-open).
//!
//! It opens only when the server answers that it cannot serve at present. Silence and lost connections are handled by
//! the connection, and slowness is no failure. Guarantees that a server which refuses is called by one call at a time,
//! and that the first success closes the breaker for all. It must not know clocks or random sources: the time since a
//! fixed moment and random numbers from 0 to 1 are passed in.

#[cfg(test)]
mod tests;

use std::time::Duration;

/// First longest time open; it doubles each time the breaker opens again before it has closed.
const OPEN_FIRST: Duration = Duration::from_millis(100);
/// Longest time open. Short, because a refused probe costs next to nothing and recovery is noticed sooner.
const OPEN_MAX: Duration = Duration::from_millis(400);
/// When a refused call may retry while a probe is under way.
const PROBE_WAIT: Duration = Duration::from_millis(50);

/// The outcome of a call that was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// The server executed it, or refused it for a reason that says nothing about the server.
    Success,
    /// The server cannot serve at present; retrying at once is useless.
    Unavailable,
    /// It was never sent, was not answered, or its caller left: nothing is known about the server.
    Discarded,
}

/// Permission for one call; its outcome goes to [`CircuitBreaker::record_outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct BreakerPermit {
    /// The state that let the call through: an outcome that arrives after the state has changed is ignored.
    epoch: u64,
}

/// A call is refused; nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerRejected {
    /// When the next call might be let through.
    pub retry_after: Duration,
}

/// A breaker's state as operators see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum BreakerState {
    /// Calls pass.
    #[default]
    Closed = 0,
    /// One call at a time passes.
    HalfOpen = 1,
    /// No call passes.
    Open = 2,
}

impl BreakerState {
    /// From its number; an unknown number counts as closed.
    pub fn from_word(word: u64) -> Self {
        match word {
            1 => Self::HalfOpen,
            2 => Self::Open,
            _ => Self::Closed,
        }
    }

    /// Its name in logs, metrics and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

#[derive(Debug, Clone, Default)]
enum BreakerPhase {
    #[default]
    Closed,
    Open {
        until: Duration,
    },
    HalfOpen {
        probing: bool,
    },
}

/// A circuit breaker for one kind of calls.
#[derive(Debug, Clone, Default)]
pub struct CircuitBreaker {
    phase: BreakerPhase,
    epoch: u64,
    /// Times it has opened since it was last closed.
    consecutive_opens: u32,
    open_count: u64,
}

impl CircuitBreaker {
    /// Asks for permission to make a call.
    ///
    /// # Errors
    /// When the call must not be made.
    pub fn acquire(&mut self, now: Duration) -> Result<BreakerPermit, BreakerRejected> {
        if let BreakerPhase::Open { until } = self.phase {
            if now < until {
                return Err(BreakerRejected { retry_after: until - now });
            }
            self.half_open();
        }
        match &mut self.phase {
            BreakerPhase::HalfOpen { probing: true } => Err(BreakerRejected { retry_after: PROBE_WAIT }),
            BreakerPhase::HalfOpen { probing } => {
                *probing = true;
                Ok(BreakerPermit { epoch: self.epoch })
            }
            BreakerPhase::Closed | BreakerPhase::Open { .. } => Ok(BreakerPermit { epoch: self.epoch }),
        }
    }

    /// Records the outcome of a call that was let through. `random`, from 0 to 1, chooses how long the breaker stays
    /// open if this outcome opens it (full jitter, so that the workers of a fleet do not probe at the same moment).
    pub fn record_outcome(
        &mut self,
        permit: BreakerPermit,
        outcome: CallOutcome,
        now: Duration,
        random: impl FnOnce() -> f64,
    ) {
        if permit.epoch != self.epoch {
            return;
        }
        match (outcome, &mut self.phase) {
            (CallOutcome::Unavailable, _) => self.open(now, random()),
            (CallOutcome::Success, BreakerPhase::HalfOpen { .. }) => self.close(),
            (CallOutcome::Discarded, BreakerPhase::HalfOpen { probing }) => *probing = false,
            (CallOutcome::Success | CallOutcome::Discarded, _) => {}
        }
    }

    /// Opens the breaker without a call, when another call has shown that the server cannot serve.
    pub fn force_open(&mut self, now: Duration, random: f64) {
        if !matches!(self.phase, BreakerPhase::Open { .. }) {
            self.open(now, random);
        }
    }

    /// A new connection was opened and the server answered on it: an open breaker may probe at once.
    pub fn allow_probe(&mut self) {
        if matches!(self.phase, BreakerPhase::Open { .. }) {
            self.half_open();
        }
    }

    /// The state at this time.
    pub fn state(&self, now: Duration) -> BreakerState {
        match self.phase {
            BreakerPhase::Closed => BreakerState::Closed,
            // The open time is over: the next call is let through.
            BreakerPhase::Open { until } if now >= until => BreakerState::HalfOpen,
            BreakerPhase::Open { .. } => BreakerState::Open,
            BreakerPhase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// How often it has opened so far.
    pub fn open_count(&self) -> u64 {
        self.open_count
    }

    fn open(&mut self, now: Duration, random: f64) {
        let longest = OPEN_FIRST.saturating_mul(1 << self.consecutive_opens.min(8)).min(OPEN_MAX);
        self.consecutive_opens = self.consecutive_opens.saturating_add(1);
        self.phase = BreakerPhase::Open { until: now + longest.mul_f64(random.clamp(0.0, 1.0)) };
        self.epoch += 1;
        self.open_count += 1;
    }

    fn half_open(&mut self) {
        self.phase = BreakerPhase::HalfOpen { probing: false };
        self.epoch += 1;
    }

    fn close(&mut self) {
        self.phase = BreakerPhase::Closed;
        self.epoch += 1;
        self.consecutive_opens = 0;
    }
}
