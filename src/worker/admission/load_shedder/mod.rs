//! When waiting requests are refused instead: overload as a state with bounds; pure, `now` is time since the start.
//!
//! The wait of a request that comes now is predicted: requests that wait, divided by the rate at which they were let in.
//! Many connections that each wait for their answer can stand at some seconds for ever and needs no refusal. So the
//! bound is wide (`MAX_PREDICTED_WAIT`) as long as it was never exceeded, and narrow once it was.

use std::time::Duration;

/// Predicted wait beyond which a worker is overloaded, less the share of the time in which the host's other work had
/// its CPU. 6,000 connections with a handler of 1 ms stand at 3 s with two workers, and none of them is to see an
/// error; 10,000, which is what twice the capacity comes to on kept connections, stand at 5 s and are too many.
const MAX_PREDICTED_WAIT: Duration = Duration::from_secs(5);

/// How long the predicted wait must stay beyond `MAX_PREDICTED_WAIT`: one handler that blocked for long is no overload.
const SUSTAINED_FOR: Duration = Duration::from_secs(1);

/// Largest share of the time that counts as other work's: however busy the host is, waiting has a bound.
const MAX_STARVED_SHARE: f64 = 0.75;

/// So few waiting requests are no overload, however slow their handlers are.
const FEW_WAITING: usize = 64;

/// Predicted wait beyond which a request is refused on arrival while shedding.
const SHEDDING_WAIT: Duration = Duration::from_millis(400);

/// Age at which a waiting request is too old to be served while shedding: its client would get its answer too late.
const SHEDDING_MAX_AGE: Duration = Duration::from_millis(800);

/// Fewest requests that may wait while shedding.
const MIN_WAITING: usize = 4;

/// Time without a refusal after which shedding ends.
const QUIET_PERIOD: Duration = Duration::from_secs(10);

/// Time over which the rate is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// Whether the worker is overloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShedState {
    /// Requests wait for their turn, none is refused.
    Normal,
    /// Requests that would wait too long are refused.
    Shedding,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShedChange {
    /// Shedding has begun: requests would have waited this long.
    Started(Duration),
    /// Shedding has ended.
    Stopped,
}

/// The state and what it is decided by.
#[derive(Debug)]
pub(super) struct LoadShedder {
    state: ShedState,
    /// Requests let in per second while others waited.
    rate: f64,
    /// How long requests have been waiting without a break; the rate means something once that is `RATE_WINDOW`.
    crowded_for: Duration,
    exceeded_since: Option<Duration>,
    refused_at: Duration,
    /// Share of the time in which the worker was ready to run and others had the CPU.
    starved_share: f64,
}

impl LoadShedder {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            state: ShedState::Normal,
            rate: 0.0,
            crowded_for: Duration::ZERO,
            exceeded_since: None,
            refused_at: now,
            starved_share: 0.0,
        }
    }

    pub(super) fn state(&self) -> ShedState {
        self.state
    }

    /// Requests that may wait, beyond which one more is refused; none: any number.
    pub(super) fn max_waiting(&self) -> Option<usize> {
        (self.state == ShedState::Shedding).then(|| self.admitted_within(SHEDDING_WAIT).max(MIN_WAITING))
    }

    /// Age from which on a waiting request is refused; none: any.
    ///
    /// Those that may wait at all are waited for, however slow the handlers are.
    pub(super) fn max_age(&self) -> Option<Duration> {
        (self.state == ShedState::Shedding).then(|| SHEDDING_MAX_AGE.max(2 * self.time_to_admit(MIN_WAITING)))
    }

    /// In so much of the time that passed the worker was ready to run and was given no CPU.
    ///
    /// The host's other work alone is no overload: it may end at any moment, and refusing requests would not end it.
    pub(super) fn record_starvation(&mut self, starved: Duration, passed: Duration) {
        let share = (starved.as_secs_f64() / passed.as_secs_f64().max(1e-6)).clamp(0.0, MAX_STARVED_SHARE);
        self.starved_share += (share - self.starved_share) / 4.0;
    }

    /// A request was refused.
    pub(super) fn record_refusal(&mut self, now: Duration) {
        self.refused_at = now;
    }

    /// Records a turn of this length that let in `started` requests and at whose end `waiting` wait.
    ///
    /// Refused requests are not among those let in: the rate would rise by them and let still more come.
    pub(super) fn record_turn(
        &mut self,
        now: Duration,
        length: Duration,
        started: u32,
        waiting: usize,
    ) -> Option<ShedChange> {
        if self.crowded_for > Duration::ZERO || waiting > 0 {
            self.update_rate(length, started);
        }
        self.crowded_for = match waiting {
            0 => Duration::ZERO,
            _ => self.crowded_for + length.max(Duration::from_nanos(1)),
        };
        self.update_state(now, waiting)
    }

    fn update_rate(&mut self, length: Duration, started: u32) {
        let seconds = length.as_secs_f64().max(1e-6);
        // The first turns weigh as much as what is known altogether.
        let known = self.crowded_for.min(RATE_WINDOW).as_secs_f64();
        self.rate += (f64::from(started) / seconds - self.rate) * (seconds / (seconds + known));
    }

    fn update_state(&mut self, now: Duration, waiting: usize) -> Option<ShedChange> {
        if self.state == ShedState::Shedding {
            let quiet = now.saturating_sub(self.refused_at) >= QUIET_PERIOD;
            if quiet {
                self.state = ShedState::Normal;
                self.exceeded_since = None;
            }
            return quiet.then_some(ShedChange::Stopped);
        }
        let wait = self.time_to_admit(waiting);
        let own = wait.mul_f64(1.0 - self.starved_share);
        if waiting <= FEW_WAITING || self.crowded_for < RATE_WINDOW || own <= MAX_PREDICTED_WAIT {
            self.exceeded_since = None;
            return None;
        }
        let since = *self.exceeded_since.get_or_insert(now);
        if now.saturating_sub(since) < SUSTAINED_FOR {
            return None;
        }
        self.state = ShedState::Shedding;
        self.refused_at = now;
        Some(ShedChange::Started(wait))
    }

    /// Time in which this many requests are let in.
    fn time_to_admit(&self, requests: usize) -> Duration {
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        let seconds = if self.rate > 0.0 { f64::from(requests) / self.rate } else { 0.0 };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Requests that are let in within this time.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is not negative, and a float too large becomes the largest number"
    )]
    fn admitted_within(&self, time: Duration) -> usize {
        (self.rate * time.as_secs_f64()) as usize
    }
}

#[cfg(test)]
mod tests;
