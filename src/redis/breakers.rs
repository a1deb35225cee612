//! The two breakers before Redis, and what each answer means for them.
//!
//! A server that refuses every call is one fault, one that takes no writes is another: the first closes both ways,
//! the second must leave reading, and deleting, open. So a call that reads passes the reads' breaker, one that writes
//! passes both, and one that deletes is asked of the reads' alone, because it frees what a full server lacks. A server
//! that says nothing is no matter of theirs: see `line.rs` and `standing.rs`.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::{BreakerPermit, BreakerState, CallOutcome, CircuitBreaker};
use crate::redis::error::{RedisError, ServerRejection};
use crate::redis::reconnect_pauses::random_unit;

/// What a call asks of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallKind {
    /// A request's begin: it writes, and the request waits for it before anything else.
    Begin,
    /// Anything else that writes.
    Write,
    /// It changes nothing, so it may be made twice.
    Read,
    /// The same, and its answer may be so large that the usual silence is no measure.
    LargeRead,
    /// It deletes, or takes next to no memory: made twice it does the same, and a full server takes it.
    Delete,
}

impl CallKind {
    /// Whether it changes what is stored, otherwise than by deleting.
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Begin | Self::Write)
    }

    /// Whether it may be made again although it is unknown whether it was executed.
    pub(super) fn is_repeatable(self) -> bool {
        matches!(self, Self::Read | Self::LargeRead | Self::Delete)
    }

    /// Whether its answer may take longer than others, being large.
    pub(super) fn is_large_read(self) -> bool {
        self == Self::LargeRead
    }
}

/// One way to Redis as operators see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BreakerStatus {
    /// Where its breaker stands.
    pub state: BreakerState,
    /// How often it has opened in this worker's life.
    pub open_count: u64,
    /// Why it opened last, while it is not closed.
    pub cause: Option<String>,
}

/// Both ways to Redis.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BreakerStates {
    /// Calls of every kind.
    pub reads: BreakerStatus,
    /// Calls that write, which pass the other one, too.
    pub writes: BreakerStatus,
}

impl BreakerStates {
    /// Whether every call is let through: both breakers are closed.
    pub fn all_closed(&self) -> bool {
        [&self.reads, &self.writes].iter().all(|lane| lane.state == BreakerState::Closed)
    }
}

/// A breaker, and what opened it last.
#[derive(Debug, Default)]
struct NamedBreaker {
    breaker: CircuitBreaker,
    cause: Option<RedisError>,
    /// Whether the log says that it is open.
    logged_open: bool,
}

impl NamedBreaker {
    fn record_outcome(
        &mut self,
        name: &str,
        pass: BreakerPermit,
        outcome: CallOutcome,
        error: Option<&RedisError>,
        now: Duration,
    ) {
        let before = self.breaker.open_count();
        self.breaker.record_outcome(pass, outcome, now, random_unit);
        match error {
            Some(error) if self.breaker.open_count() > before => self.on_opened(name, error),
            _ => self.log_if_closed(name, now),
        }
    }

    fn force_open(&mut self, name: &str, error: &RedisError, now: Duration) {
        let before = self.breaker.open_count();
        self.breaker.force_open(now, random_unit());
        if self.breaker.open_count() > before {
            self.on_opened(name, error);
        }
    }

    fn on_opened(&mut self, name: &str, error: &RedisError) {
        self.cause = Some(error.clone());
        // Said once for each time of trouble, not at each probe.
        if !self.logged_open {
            self.logged_open = true;
            tracing::warn!(lane = name, cause = %error, "the breaker of Redis's {name} is open: {error}");
        }
    }

    fn log_if_closed(&mut self, name: &str, now: Duration) {
        if self.logged_open && self.breaker.state(now) == BreakerState::Closed {
            self.logged_open = false;
            tracing::info!(lane = name, "the breaker of Redis's {name} is closed again");
        }
    }

    /// What whoever is refused is told: what the server said if it said no, else that nothing was sent.
    fn rejection(&self) -> RedisError {
        match &self.cause {
            Some(refused @ RedisError::Rejected { .. }) => refused.clone(),
            Some(cause) => RedisError::unavailable(format!("calls are held back after a failure: {cause}")),
            None => RedisError::unavailable("calls are held back after a failure"),
        }
    }

    fn status(&self, now: Duration) -> BreakerStatus {
        let position = self.breaker.state(now);
        let cause = (position != BreakerState::Closed).then(|| self.rejection().to_string());
        BreakerStatus { state: position, open_count: self.breaker.open_count(), cause }
    }
}

#[derive(Debug, Default)]
struct BreakerPair {
    reads: NamedBreaker,
    writes: NamedBreaker,
}

/// Both ways, shared by a worker's calls.
pub(super) struct RedisBreakers {
    origin: Instant,
    pair: Mutex<BreakerPair>,
}

impl fmt::Debug for RedisBreakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lanes").field(&self.states()).finish()
    }
}

impl RedisBreakers {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), pair: Mutex::default() }
    }

    fn lock(&self) -> (MutexGuard<'_, BreakerPair>, Duration) {
        let both = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        (both, self.origin.elapsed())
    }

    /// Asks to make a call.
    ///
    /// # Errors
    /// What the breaker opened for; nothing was sent.
    pub(super) fn acquire(&self, kind: CallKind) -> Result<CallGuard<'_>, RedisError> {
        let (mut both, now) = self.lock();
        let Ok(reads) = both.reads.breaker.acquire(now) else {
            return Err(both.reads.rejection());
        };
        let writes = match kind.writes().then(|| both.writes.breaker.acquire(now)) {
            None => None,
            Some(Ok(pass)) => Some(pass),
            Some(Err(_)) => {
                both.reads.breaker.record_outcome(reads, CallOutcome::Discarded, now, random_unit);
                return Err(both.writes.rejection());
            }
        };
        Ok(CallGuard { breakers: self, reads, writes, recorded: false })
    }

    /// A new connection was made ready; `refused` is what the server said if it takes no writes.
    pub(super) fn on_connected(&self, refused: Option<&RedisError>) {
        let (mut both, now) = self.lock();
        both.reads.breaker.allow_probe();
        match refused {
            Some(error) => both.writes.force_open("writes", error, now),
            None => both.writes.breaker.allow_probe(),
        }
    }

    pub(super) fn states(&self) -> BreakerStates {
        let (both, now) = self.lock();
        BreakerStates { reads: both.reads.status(now), writes: both.writes.status(now) }
    }
}

/// The right to make one call. Dropped unsettled it says that its caller left.
#[derive(Debug)]
pub(super) struct CallGuard<'a> {
    breakers: &'a RedisBreakers,
    reads: BreakerPermit,
    writes: Option<BreakerPermit>,
    recorded: bool,
}

impl CallGuard<'_> {
    /// Tells what became of the call.
    pub(super) fn record_outcome(mut self, failed: Option<&RedisError>) {
        self.recorded = true;
        let (mut both, now) = self.breakers.lock();
        let (reads, writes) = failed.map_or((CallOutcome::Success, CallOutcome::Success), classify);
        both.reads.record_outcome("reads", self.reads, reads, failed, now);
        match self.writes {
            Some(pass) => both.writes.record_outcome("writes", pass, writes, failed, now),
            // A server that says no to everybody says it to writers, too.
            None if writes == CallOutcome::Unavailable => {
                if let Some(error) = failed {
                    both.writes.force_open("writes", error, now);
                }
            }
            None => {}
        }
    }
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        if self.recorded {
            return;
        }
        let (mut both, now) = self.breakers.lock();
        both.reads.breaker.record_outcome(self.reads, CallOutcome::Discarded, now, random_unit);
        if let Some(pass) = self.writes {
            both.writes.breaker.record_outcome(pass, CallOutcome::Discarded, now, random_unit);
        }
    }
}

/// What an error says about the server: to calls of every kind, and to those that write.
fn classify(error: &RedisError) -> (CallOutcome, CallOutcome) {
    match error {
        RedisError::Rejected { rejection: refusal, .. } => match refusal {
            ServerRejection::NotReady | ServerRejection::Busy => {
                (CallOutcome::Unavailable, CallOutcome::Unavailable)
            }
            ServerRejection::WritesDisabled | ServerRejection::ReadOnly => {
                (CallOutcome::Success, CallOutcome::Unavailable)
            }
            // The configuration, one key, our code or one visitor's data: others must not pay for it.
            ServerRejection::AccessDenied
            | ServerRejection::WrongType
            | ServerRejection::FunctionMissing
            | ServerRejection::Other => (CallOutcome::Success, CallOutcome::Success),
        },
        RedisError::Overflow | RedisError::Protocol { .. } => (CallOutcome::Success, CallOutcome::Success),
        // The server said nothing.
        _ => (CallOutcome::Discarded, CallOutcome::Discarded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(refusal: ServerRejection) -> RedisError {
        RedisError::Rejected { rejection: refusal, reason: "OOM".to_owned() }
    }

    fn call(lanes: &RedisBreakers, kind: CallKind, outcome: Option<&RedisError>) -> Result<(), RedisError> {
        lanes.acquire(kind).map(|guard| guard.record_outcome(outcome))
    }

    #[test]
    fn each_error_speaks_to_the_breakers_it_concerns() {
        use CallOutcome::{Discarded, Success, Unavailable};
        let lost = RedisError::ConnectionLost { reason: String::new() };
        let cases = [
            (RedisError::Timeout, (Discarded, Discarded)),
            (lost, (Discarded, Discarded)),
            (refused(ServerRejection::NotReady), (Unavailable, Unavailable)),
            (refused(ServerRejection::Busy), (Unavailable, Unavailable)),
            (refused(ServerRejection::ReadOnly), (Success, Unavailable)),
            (refused(ServerRejection::WritesDisabled), (Success, Unavailable)),
            (refused(ServerRejection::AccessDenied), (Success, Success)),
            (refused(ServerRejection::WrongType), (Success, Success)),
            (refused(ServerRejection::FunctionMissing), (Success, Success)),
            (refused(ServerRejection::Other), (Success, Success)),
            (RedisError::Overflow, (Success, Success)),
            (RedisError::protocol(""), (Success, Success)),
            (RedisError::unavailable(""), (Discarded, Discarded)),
            (RedisError::MigrationsLocked, (Discarded, Discarded)),
        ];
        for (error, expected) in cases {
            assert_eq!(classify(&error), expected, "{error:?}");
        }
    }

    #[test]
    fn a_full_server_is_read_and_deleted_from_and_its_rejection_is_passed_on() {
        let lanes = RedisBreakers::new();
        let full = refused(ServerRejection::WritesDisabled);
        // Full jitter may choose almost no time at all: said again until it holds.
        while call(&lanes, CallKind::Begin, Some(&full)) != Err(full.clone()) {}
        assert_eq!(call(&lanes, CallKind::Write, None), Err(full));
        assert_eq!(call(&lanes, CallKind::Read, None), Ok(()));
        assert_eq!(call(&lanes, CallKind::Delete, None), Ok(()));
        let states = lanes.states();
        assert_eq!((states.reads.state, states.writes.state), (BreakerState::Closed, BreakerState::Open));
        assert!(states.writes.cause.is_some_and(|cause| cause.contains("OOM")));
    }

    #[test]
    fn a_busy_server_gets_no_calls() {
        let lanes = RedisBreakers::new();
        let busy = refused(ServerRejection::Busy);
        while call(&lanes, CallKind::Read, Some(&busy)) != Err(busy.clone()) {}
        assert_eq!(call(&lanes, CallKind::Delete, None), Err(busy.clone()));
        assert_eq!(call(&lanes, CallKind::Begin, None), Err(busy));
    }

    #[test]
    fn lost_connections_and_silence_open_nothing() {
        let lanes = RedisBreakers::new();
        let lost = RedisError::ConnectionLost { reason: "reset".to_owned() };
        for _ in 0..1000 {
            assert_eq!(call(&lanes, CallKind::Begin, Some(&lost)), Ok(()));
            assert_eq!(call(&lanes, CallKind::Read, Some(&RedisError::Timeout)), Ok(()));
        }
        assert_eq!(lanes.states(), BreakerStates::default());
    }

    #[test]
    fn a_caller_that_leaves_gives_its_place_as_a_probe_back() {
        let lanes = RedisBreakers::new();
        let busy = refused(ServerRejection::Busy);
        assert_eq!(call(&lanes, CallKind::Begin, Some(&busy)), Ok(()));
        lanes.on_connected(None);
        let probe = lanes.acquire(CallKind::Begin).unwrap();
        assert_eq!(lanes.acquire(CallKind::Read).map(|_| ()), Err(busy));
        drop(probe);
        assert_eq!(call(&lanes, CallKind::Begin, None), Ok(()));
        assert_eq!(lanes.states().reads.state, BreakerState::Closed);
    }
}
