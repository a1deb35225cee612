//! The two breakers before Redis, and what each reply means for them.
//!
//! A server that refuses every call is one fault, one that takes no writes is another: the first must stop all calls,
//! the second must let reads and deletions pass. So a call that reads passes the reads' breaker, one that writes passes
//! both, and one that deletes passes only the reads', because it frees what a full server lacks. A silent server opens
//! no breaker: see `silence_detector.rs` and `connection_state.rs`.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::{BreakerPermit, BreakerState, CallOutcome, CircuitBreaker};
use crate::redis::error::{RedisError, ServerRejection};
use crate::redis::reconnect_pauses::random_unit;

/// What a call does on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// A request's begin: it writes, and the request waits for it.
    Begin,
    /// Any other write.
    Write,
    /// It changes nothing, so it may be repeated.
    Read,
    /// A read whose reply may be so large that the silence timeout does not apply.
    LargeRead,
    /// It deletes, or needs next to no memory: repeating it changes nothing, and a full server executes it.
    Delete,
}

impl CallKind {
    /// Whether it changes what is stored, other than by deleting.
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Begin | Self::Write)
    }

    /// Whether it may be repeated although it is unknown whether it was executed.
    pub(super) fn is_repeatable(self) -> bool {
        matches!(self, Self::Read | Self::LargeRead | Self::Delete)
    }

    /// Whether its reply may take longer because it is large.
    pub(super) fn is_large_read(self) -> bool {
        self == Self::LargeRead
    }
}

/// One breaker as operators see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BreakerStatus {
    /// Its state.
    pub state: BreakerState,
    /// How often it has opened in this worker's life.
    pub open_count: u64,
    /// Why it opened last, while it is not closed.
    pub cause: Option<String>,
}

/// Both breakers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BreakerStates {
    /// Calls of every kind.
    pub reads: BreakerStatus,
    /// Calls that write, which pass the other breaker too.
    pub writes: BreakerStatus,
}

impl BreakerStates {
    /// Whether both breakers are closed, so that every call passes.
    pub fn all_closed(&self) -> bool {
        [&self.reads, &self.writes].iter().all(|lane| lane.state == BreakerState::Closed)
    }
}

/// A breaker, and what opened it last.
#[derive(Debug, Default)]
struct NamedBreaker {
    breaker: CircuitBreaker,
    cause: Option<RedisError>,
    /// Whether the log reports it as open.
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
        // Logged once per incident, not at each probe.
        if !self.logged_open {
            self.logged_open = true;
            tracing::warn!(breaker = name, cause = %error, "redis breaker open: {error}");
        }
    }

    fn log_if_closed(&mut self, name: &str, now: Duration) {
        if self.logged_open && self.breaker.state(now) == BreakerState::Closed {
            self.logged_open = false;
            tracing::info!(breaker = name, "redis breaker closed");
        }
    }

    /// The error of a refused call: the server's rejection if there was one, else that nothing was sent.
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

/// Both breakers, shared by a worker's calls.
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

    /// Asks for permission to make a call.
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

    /// A new connection is ready; `refused` is the server's error if it takes no writes.
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

/// Permission for one call. Dropped without an outcome it counts as a call whose caller left.
#[derive(Debug)]
pub(super) struct CallGuard<'a> {
    breakers: &'a RedisBreakers,
    reads: BreakerPermit,
    writes: Option<BreakerPermit>,
    recorded: bool,
}

impl CallGuard<'_> {
    /// Records the outcome of the call.
    pub(super) fn record_outcome(mut self, failed: Option<&RedisError>) {
        self.recorded = true;
        let (mut both, now) = self.breakers.lock();
        let (reads, writes) = failed.map_or((CallOutcome::Success, CallOutcome::Success), classify);
        both.reads.record_outcome("reads", self.reads, reads, failed, now);
        match self.writes {
            Some(pass) => both.writes.record_outcome("writes", pass, writes, failed, now),
            // A server that refuses all calls refuses writes too.
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

/// What an error says about the server: for calls of every kind, and for those that write.
fn classify(error: &RedisError) -> (CallOutcome, CallOutcome) {
    match error {
        RedisError::Rejected { rejection: refusal, .. } => match refusal {
            ServerRejection::NotReady | ServerRejection::Busy => {
                (CallOutcome::Unavailable, CallOutcome::Unavailable)
            }
            ServerRejection::WritesDisabled | ServerRejection::ReadOnly => {
                (CallOutcome::Success, CallOutcome::Unavailable)
            }
            // These concern the configuration, one key, the code or one client's data, and must not stop other calls.
            ServerRejection::AccessDenied
            | ServerRejection::WrongType
            | ServerRejection::FunctionMissing
            | ServerRejection::Other => (CallOutcome::Success, CallOutcome::Success),
        },
        RedisError::Overflow | RedisError::Protocol { .. } => (CallOutcome::Success, CallOutcome::Success),
        // The server answered nothing.
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
    fn each_error_counts_for_the_breakers_it_concerns() {
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
        // Full jitter may choose almost no time: repeated until it stays open.
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
    fn an_abandoned_probe_makes_room_for_the_next() {
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
