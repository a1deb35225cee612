//! The two breakers before Redis, and what each answer means for them.
//!
//! A server that refuses every call is one fault, one that takes no writes is another: the first closes both ways,
//! the second must leave reading, and deleting, open. So a call that reads passes the reads' breaker, one that writes
//! passes both, and one that deletes is asked of the reads' alone, because it frees what a full server lacks. A server
//! that says nothing is no matter of theirs: see `line.rs` and `standing.rs`.

use std::fmt;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::Breaker;
use crate::breaker::Outcome;
use crate::breaker::Pass;
use crate::breaker::Position;
use crate::redis::error::Error;
use crate::redis::error::Refusal;
use crate::redis::pauses::random;

/// What a call asks of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A request's begin: it writes, and the request waits for it before anything else.
    Begin,
    /// Anything else that writes.
    Commit,
    /// It changes nothing, so it may be made twice.
    Read,
    /// The same, and its answer may be so large that the usual silence is no measure.
    Bulk,
    /// It deletes, or takes next to no memory: made twice it does the same, and a full server takes it.
    Delete,
}

impl Kind {
    /// Whether it changes what is stored, otherwise than by deleting.
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Begin | Self::Commit)
    }

    /// Whether it may be made again although it is unknown whether it was executed.
    pub(super) fn is_repeatable(self) -> bool {
        matches!(self, Self::Read | Self::Bulk | Self::Delete)
    }

    /// Whether its answer may take longer than others, being large.
    pub(super) fn is_long(self) -> bool {
        self == Self::Bulk
    }
}

/// One way to Redis as operators see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lane {
    /// Where its breaker stands.
    pub position: Position,
    /// How often it has opened in this worker's life.
    pub opened: u64,
    /// Why it opened last, while it is not closed.
    pub cause: Option<String>,
}

/// Both ways to Redis.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneStates {
    /// Calls of every kind.
    pub reads: Lane,
    /// Calls that write, which pass the other one, too.
    pub writes: Lane,
}

impl LaneStates {
    /// Whether every call is let through: both breakers are closed.
    pub fn are_closed(&self) -> bool {
        [&self.reads, &self.writes].iter().all(|lane| lane.position == Position::Closed)
    }
}

/// A breaker, and what opened it last.
#[derive(Debug, Default)]
struct Way {
    breaker: Breaker,
    cause: Option<Error>,
    /// Whether the log says that it is open.
    told: bool,
}

impl Way {
    fn settle(&mut self, name: &str, pass: Pass, sign: Outcome, error: Option<&Error>, now: Duration) {
        let before = self.breaker.opened();
        self.breaker.settle(pass, sign, now, random);
        match error {
            Some(error) if self.breaker.opened() > before => self.opened(name, error),
            _ => self.tell(name, now),
        }
    }

    fn trip(&mut self, name: &str, error: &Error, now: Duration) {
        let before = self.breaker.opened();
        self.breaker.trip(now, random());
        if self.breaker.opened() > before {
            self.opened(name, error);
        }
    }

    fn opened(&mut self, name: &str, error: &Error) {
        self.cause = Some(error.clone());
        // Said once for each time of trouble, not at each probe.
        if !self.told {
            self.told = true;
            tracing::warn!(lane = name, cause = %error, "the breaker of Redis's {name} is open: {error}");
        }
    }

    fn tell(&mut self, name: &str, now: Duration) {
        if self.told && self.breaker.position(now) == Position::Closed {
            self.told = false;
            tracing::info!(lane = name, "the breaker of Redis's {name} is closed again");
        }
    }

    /// What whoever is refused is told: what the server said if it said no, else that nothing was sent.
    fn refusal(&self) -> Error {
        match &self.cause {
            Some(refused @ Error::Refused { .. }) => refused.clone(),
            Some(cause) => Error::unavailable(format!("calls are held back after a failure: {cause}")),
            None => Error::unavailable("calls are held back after a failure"),
        }
    }

    fn lane(&self, now: Duration) -> Lane {
        let position = self.breaker.position(now);
        let cause = (position != Position::Closed).then(|| self.refusal().to_string());
        Lane { position, opened: self.breaker.opened(), cause }
    }
}

#[derive(Debug, Default)]
struct Both {
    reads: Way,
    writes: Way,
}

/// Both ways, shared by a worker's calls.
pub(super) struct Lanes {
    origin: Instant,
    both: Mutex<Both>,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lanes").field(&self.states()).finish()
    }
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), both: Mutex::default() }
    }

    fn lock(&self) -> (MutexGuard<'_, Both>, Duration) {
        let both = self.both.lock().unwrap_or_else(PoisonError::into_inner);
        (both, self.origin.elapsed())
    }

    /// Asks to make a call.
    ///
    /// # Errors
    /// What the breaker opened for; nothing was sent.
    pub(super) fn enter(&self, kind: Kind) -> Result<Ticket<'_>, Error> {
        let (mut both, now) = self.lock();
        let Ok(reads) = both.reads.breaker.ask(now) else {
            return Err(both.reads.refusal());
        };
        let writes = match kind.writes().then(|| both.writes.breaker.ask(now)) {
            None => None,
            Some(Ok(pass)) => Some(pass),
            Some(Err(_)) => {
                both.reads.breaker.settle(reads, Outcome::Void, now, random);
                return Err(both.writes.refusal());
            }
        };
        Ok(Ticket { lanes: self, reads, writes, settled: false })
    }

    /// A new connection was made ready; `refused` is what the server said if it takes no writes.
    pub(super) fn connected(&self, refused: Option<&Error>) {
        let (mut both, now) = self.lock();
        both.reads.breaker.reconnected();
        match refused {
            Some(error) => both.writes.trip("writes", error, now),
            None => both.writes.breaker.reconnected(),
        }
    }

    pub(super) fn states(&self) -> LaneStates {
        let (both, now) = self.lock();
        LaneStates { reads: both.reads.lane(now), writes: both.writes.lane(now) }
    }
}

/// The right to make one call. Dropped unsettled it says that its caller left.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    lanes: &'a Lanes,
    reads: Pass,
    writes: Option<Pass>,
    settled: bool,
}

impl Ticket<'_> {
    /// Tells what became of the call.
    pub(super) fn settle(mut self, failed: Option<&Error>) {
        self.settled = true;
        let (mut both, now) = self.lanes.lock();
        let (reads, writes) = failed.map_or((Outcome::Done, Outcome::Done), signs);
        both.reads.settle("reads", self.reads, reads, failed, now);
        match self.writes {
            Some(pass) => both.writes.settle("writes", pass, writes, failed, now),
            // A server that says no to everybody says it to writers, too.
            None if writes == Outcome::Unable => {
                if let Some(error) = failed {
                    both.writes.trip("writes", error, now);
                }
            }
            None => {}
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let (mut both, now) = self.lanes.lock();
        both.reads.breaker.settle(self.reads, Outcome::Void, now, random);
        if let Some(pass) = self.writes {
            both.writes.breaker.settle(pass, Outcome::Void, now, random);
        }
    }
}

/// What an error says about the server: to calls of every kind, and to those that write.
fn signs(error: &Error) -> (Outcome, Outcome) {
    match error {
        Error::Refused { refusal, .. } => match refusal {
            Refusal::NotReady | Refusal::Busy => (Outcome::Unable, Outcome::Unable),
            Refusal::NoWrites | Refusal::ReadOnly => (Outcome::Done, Outcome::Unable),
            // The configuration, one key, our code or one visitor's data: others must not pay for it.
            Refusal::Permission | Refusal::WrongType | Refusal::CodeMissing | Refusal::Other => {
                (Outcome::Done, Outcome::Done)
            }
        },
        Error::Overflow | Error::Protocol { .. } => (Outcome::Done, Outcome::Done),
        // The server said nothing.
        _ => (Outcome::Void, Outcome::Void),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(refusal: Refusal) -> Error {
        Error::Refused { refusal, reason: "OOM".to_owned() }
    }

    fn call(lanes: &Lanes, kind: Kind, outcome: Option<&Error>) -> Result<(), Error> {
        lanes.enter(kind).map(|ticket| ticket.settle(outcome))
    }

    #[test]
    fn each_error_speaks_to_the_breakers_it_concerns() {
        use Outcome::{Done, Unable, Void};
        let lost = Error::Lost { reason: String::new() };
        let cases = [
            (Error::Timeout, (Void, Void)),
            (lost, (Void, Void)),
            (refused(Refusal::NotReady), (Unable, Unable)),
            (refused(Refusal::Busy), (Unable, Unable)),
            (refused(Refusal::ReadOnly), (Done, Unable)),
            (refused(Refusal::NoWrites), (Done, Unable)),
            (refused(Refusal::Permission), (Done, Done)),
            (refused(Refusal::WrongType), (Done, Done)),
            (refused(Refusal::CodeMissing), (Done, Done)),
            (refused(Refusal::Other), (Done, Done)),
            (Error::Overflow, (Done, Done)),
            (Error::protocol(""), (Done, Done)),
            (Error::unavailable(""), (Void, Void)),
            (Error::Locked, (Void, Void)),
        ];
        for (error, expected) in cases {
            assert_eq!(signs(&error), expected, "{error:?}");
        }
    }

    #[test]
    fn a_full_server_is_read_and_deleted_from_and_says_no_in_its_own_words() {
        let lanes = Lanes::new();
        let full = refused(Refusal::NoWrites);
        // Full jitter may choose almost no time at all: said again until it holds.
        while call(&lanes, Kind::Begin, Some(&full)) != Err(full.clone()) {}
        assert_eq!(call(&lanes, Kind::Commit, None), Err(full));
        assert_eq!(call(&lanes, Kind::Read, None), Ok(()));
        assert_eq!(call(&lanes, Kind::Delete, None), Ok(()));
        let states = lanes.states();
        assert_eq!((states.reads.position, states.writes.position), (Position::Closed, Position::Open));
        assert!(states.writes.cause.is_some_and(|cause| cause.contains("OOM")));
    }

    #[test]
    fn a_busy_server_is_asked_by_nobody() {
        let lanes = Lanes::new();
        let busy = refused(Refusal::Busy);
        while call(&lanes, Kind::Read, Some(&busy)) != Err(busy.clone()) {}
        assert_eq!(call(&lanes, Kind::Delete, None), Err(busy.clone()));
        assert_eq!(call(&lanes, Kind::Begin, None), Err(busy));
    }

    #[test]
    fn lost_connections_and_silence_open_nothing() {
        let lanes = Lanes::new();
        let lost = Error::Lost { reason: "reset".to_owned() };
        for _ in 0..1000 {
            assert_eq!(call(&lanes, Kind::Begin, Some(&lost)), Ok(()));
            assert_eq!(call(&lanes, Kind::Read, Some(&Error::Timeout)), Ok(()));
        }
        assert_eq!(lanes.states(), LaneStates::default());
    }

    #[test]
    fn a_caller_that_leaves_gives_its_place_as_a_probe_back() {
        let lanes = Lanes::new();
        let busy = refused(Refusal::Busy);
        assert_eq!(call(&lanes, Kind::Begin, Some(&busy)), Ok(()));
        lanes.connected(None);
        let probe = lanes.enter(Kind::Begin).unwrap();
        assert_eq!(lanes.enter(Kind::Read).map(|_| ()), Err(busy));
        drop(probe);
        assert_eq!(call(&lanes, Kind::Begin, None), Ok(()));
        assert_eq!(lanes.states().reads.position, Position::Closed);
    }
}
