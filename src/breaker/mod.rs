//! A circuit breaker: it lets calls through (closed), refuses them (open), or tries one at a time (half-open).
//!
//! Guarantees that a server in trouble is asked by one call at a time, that one which recovers gets its load back in
//! steps, and that no outage, however long, keeps a breaker from closing again. It knows no clock and no dice: time
//! since any fixed moment and random numbers from 0 to 1 are passed in.

pub mod budget;
mod window;

#[cfg(test)]
mod tests;

use std::time::Duration;

use window::Window;

/// Failures in a row that open a breaker.
const IN_A_ROW: u32 = 5;
/// Ten slices of this are the window over which shares are counted.
const SLICE: Duration = Duration::from_millis(100);
/// Calls in the window below which a share says nothing.
const CALLS_MIN: u32 = 20;
/// First longest time open; it doubles each time the breaker opens again before it has closed.
const OPEN_FIRST: Duration = Duration::from_millis(100);
/// Longest time open after failures: each probe of a silent server costs a visitor the whole deadline.
const OPEN_MAX: Duration = Duration::from_secs(2);
/// Longest time open after a server has said no: the probe costs nothing, so its recovery may be found sooner.
const OPEN_UNABLE_MAX: Duration = Duration::from_millis(400);
/// Probes in a row that must succeed before the breaker closes.
const PROBES: u32 = 3;
/// How long each step of the way back lasts, and the share of calls it lets through.
const STEP: Duration = Duration::from_millis(250);
const SHARES: [f64; 4] = [0.1, 0.25, 0.5, 1.0];
/// Calls of each step that pass whatever the share: steps hold back a crowd, and a few visitors are none.
const STEP_FREE: u32 = 10;
/// When to ask again while a probe is under way.
const PROBE_WAIT: Duration = Duration::from_millis(50);

const GOOD: usize = 0;
const SLOW: usize = 1;
const BAD: usize = 2;

/// What became of a call that was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The server did it, or refused for a reason that says nothing about the server.
    Done,
    /// The server did it, but took most of the deadline.
    Slow,
    /// There was no answer: a timeout or a lost connection.
    Failed,
    /// The server says that it cannot at present; asking again at once is useless.
    Unable,
    /// It was never sent, or its caller left: nothing is known.
    Void,
}

/// The right to make one call; its outcome is to be told with [`Breaker::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Pass {
    /// Which state let it through: an outcome that comes after the state has changed is old news.
    epoch: u64,
    probe: bool,
}

/// A call is refused; nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// When the next call might be let through.
    pub retry_after: Duration,
}

/// A breaker's state as operators see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Position {
    /// Calls pass, all of them or, on the way back, a growing share.
    #[default]
    Closed = 0,
    /// One call at a time passes.
    HalfOpen = 1,
    /// No call passes.
    Open = 2,
}

impl Position {
    /// From its number; what is unknown counts as closed.
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

#[derive(Debug, Clone)]
enum State {
    Closed,
    Open {
        until: Duration,
    },
    HalfOpen {
        probing: bool,
        succeeded: u32,
    },
    /// Closed, but only a share passes: the step, when it began, and how many have passed in it.
    Ramp {
        since: Duration,
        step: usize,
        passed: u32,
    },
}

/// A circuit breaker for one kind of calls.
#[derive(Debug, Clone)]
pub struct Breaker {
    state: State,
    epoch: u64,
    /// Times it has opened since it was last closed for all.
    round: u32,
    in_a_row: u32,
    window: Window<3>,
    opened: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed, epoch: 0, round: 0, in_a_row: 0, window: Window::new(SLICE), opened: 0 }
    }
}

impl Breaker {
    /// Asks to make a call. `random` is from 0 to 1.
    ///
    /// # Errors
    /// [`Refused`] when it must not be made.
    pub fn ask(&mut self, now: Duration, random: f64) -> Result<Pass, Refused> {
        if let State::Open { until } = self.state {
            if now < until {
                return Err(Refused { retry_after: until - now });
            }
            self.half_open();
        }
        self.step(now);
        let epoch = self.epoch;
        match &mut self.state {
            State::HalfOpen { probing: true, .. } => Err(Refused { retry_after: PROBE_WAIT }),
            State::HalfOpen { probing, .. } => {
                *probing = true;
                Ok(Pass { epoch, probe: true })
            }
            State::Ramp { since, step, passed } => {
                if *passed >= STEP_FREE && random >= SHARES[*step] {
                    return Err(Refused { retry_after: (*since + STEP).saturating_sub(now) });
                }
                *passed += 1;
                Ok(Pass { epoch, probe: false })
            }
            State::Closed | State::Open { .. } => Ok(Pass { epoch, probe: false }),
        }
    }

    /// Tells what became of a call that was let through; `random`, from 0 to 1, chooses how long the breaker stays
    /// open if this opens it (full jitter, so that a fleet does not probe as one).
    pub fn settle(&mut self, pass: Pass, outcome: Outcome, now: Duration, random: f64) {
        if pass.epoch != self.epoch {
            return;
        }
        if let State::HalfOpen { probing, succeeded } = &mut self.state {
            *probing = false;
            match outcome {
                Outcome::Void => {}
                Outcome::Done => {
                    *succeeded += 1;
                    if *succeeded == PROBES {
                        self.begin_ramp(now);
                    }
                }
                Outcome::Slow | Outcome::Failed => self.open(OPEN_MAX, now, random),
                Outcome::Unable => self.open(OPEN_UNABLE_MAX, now, random),
            }
            return;
        }
        match outcome {
            Outcome::Void => return,
            Outcome::Unable => return self.open(OPEN_UNABLE_MAX, now, random),
            Outcome::Done => {
                self.in_a_row = 0;
                self.window.add(now, GOOD);
                return;
            }
            Outcome::Slow => {
                self.in_a_row = 0;
                self.window.add(now, SLOW);
            }
            Outcome::Failed => {
                self.in_a_row += 1;
                self.window.add(now, BAD);
            }
        }
        let [good, slow, bad] = self.window.sums(now);
        let calls = good + slow + bad;
        if self.in_a_row >= IN_A_ROW || (calls >= CALLS_MIN && 2 * (slow + bad) >= calls) {
            self.open(OPEN_MAX, now, random);
        }
    }

    /// Opens it without a call: the server was heard to be unable by somebody else.
    pub fn trip(&mut self, now: Duration, random: f64) {
        if !matches!(self.state, State::Open { .. }) {
            self.open(OPEN_UNABLE_MAX, now, random);
        }
    }

    /// A new connection was made and the server answered on it: what is open need not wait any longer for its probe.
    pub fn reconnected(&mut self) {
        if matches!(self.state, State::Open { .. }) {
            self.half_open();
        }
    }

    /// Where it stands.
    pub fn position(&self, now: Duration) -> Position {
        match self.state {
            State::Closed | State::Ramp { .. } => Position::Closed,
            // Its time is over: the next call is let through.
            State::Open { until } if now >= until => Position::HalfOpen,
            State::Open { .. } => Position::Open,
            State::HalfOpen { .. } => Position::HalfOpen,
        }
    }

    /// How often it has opened in its life.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    fn open(&mut self, max: Duration, now: Duration, random: f64) {
        let longest = OPEN_FIRST.saturating_mul(1 << self.round.min(8)).min(max);
        self.round = self.round.saturating_add(1);
        self.state = State::Open { until: now + longest.mul_f64(random.clamp(0.0, 1.0)) };
        self.epoch += 1;
        self.opened += 1;
    }

    fn half_open(&mut self) {
        self.state = State::HalfOpen { probing: false, succeeded: 0 };
        self.epoch += 1;
    }

    fn begin_ramp(&mut self, now: Duration) {
        self.state = State::Ramp { since: now, step: 0, passed: 0 };
        self.epoch += 1;
        self.in_a_row = 0;
        self.window = Window::new(SLICE);
    }

    /// Goes on to the step that is due.
    fn step(&mut self, now: Duration) {
        let State::Ramp { since, step, passed } = &mut self.state else { return };
        while now >= *since + STEP {
            *since += STEP;
            *step += 1;
            *passed = 0;
            if *step == SHARES.len() {
                self.state = State::Closed;
                self.round = 0;
                return;
            }
        }
    }
}
