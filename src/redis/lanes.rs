//! The two breakers before Redis, and what each kind of failure means for them.
//!
//! A server that cannot be reached is one fault, and one that takes no writes is another: the first closes both ways,
//! the second must leave reading, and deleting, open. So a call that reads passes the reads' breaker, one that writes
//! passes both, and one that deletes is asked of the reads' alone, because it frees what a full server lacks.

use std::fmt;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::breaker::Breaker;
use crate::breaker::Outcome;
use crate::breaker::Pass;
use crate::breaker::Position;
use crate::breaker::budget::Budget;
use crate::redis::error::Error;
use crate::redis::error::Refusal;

/// What a call asks of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A request's begin: it writes, and the request waits for it before anything else.
    Begin,
    /// Anything else that writes.
    Commit,
    /// It changes nothing, so it may be made twice.
    Read,
    /// The same, and its answer may be so large that no request's patience is its measure.
    Bulk,
    /// It deletes, or takes next to no memory: made twice it does the same, and a full server takes it.
    Delete,
}

impl Kind {
    fn writes(self) -> bool {
        matches!(self, Self::Begin | Self::Commit)
    }

    /// Whether it may be made again although it is unknown whether it was executed.
    pub(super) fn is_repeatable(self) -> bool {
        matches!(self, Self::Read | Self::Bulk | Self::Delete)
    }

    /// Whether it waits as long as a commit.
    pub(super) fn is_patient(self) -> bool {
        matches!(self, Self::Commit | Self::Bulk | Self::Delete)
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
    fn settle(&mut self, name: &str, pass: Pass, sign: Outcome, error: Option<&Error>, at: Moment) {
        let before = self.breaker.opened();
        self.breaker.settle(pass, sign, at.now, at.random);
        if self.breaker.opened() > before {
            self.opened(name, error);
        }
        self.tell(name, at.now);
    }

    fn trip(&mut self, name: &str, error: &Error, at: Moment) {
        let before = self.breaker.opened();
        self.breaker.trip(at.now, at.random);
        if self.breaker.opened() > before {
            self.opened(name, Some(error));
        }
    }

    fn opened(&mut self, name: &str, error: Option<&Error>) {
        self.cause = Some(error.cloned().unwrap_or_else(|| Error::unavailable("its answers are slow")));
        // Said once for each time of trouble, not at each probe.
        if !self.told {
            self.told = true;
            let cause = self.cause.as_ref().map_or_else(String::new, ToString::to_string);
            tracing::warn!(lane = name, %cause, "the breaker of Redis's {name} is open: {cause}");
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

/// A time and a random number from 0 to 1.
#[derive(Debug, Clone, Copy)]
struct Moment {
    now: Duration,
    random: f64,
}

struct Both {
    reads: Way,
    writes: Way,
    budget: Budget,
    /// Number of the connection whose loss was counted last.
    lost: u64,
    /// Of each worker's own: seeded by the operating system after the fork.
    dice: SmallRng,
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
        let both = Both {
            reads: Way::default(),
            writes: Way::default(),
            budget: Budget::default(),
            lost: 0,
            dice: SmallRng::from_os_rng(),
        };
        Self { origin: Instant::now(), both: Mutex::new(both) }
    }

    fn lock(&self) -> (MutexGuard<'_, Both>, Moment) {
        let mut both = self.both.lock().unwrap_or_else(PoisonError::into_inner);
        let random = both.dice.random();
        (both, Moment { now: self.origin.elapsed(), random })
    }

    /// Asks to make a call over the connection of this number.
    ///
    /// # Errors
    /// What the breaker opened for; nothing was sent.
    pub(super) fn enter(&self, kind: Kind, link: u64) -> Result<Ticket<'_>, Error> {
        let (mut both, at) = self.lock();
        let Ok(reads) = both.reads.breaker.ask(at.now, at.random) else {
            return Err(both.reads.refusal());
        };
        let writes = match kind.writes().then(|| both.writes.breaker.ask(at.now, at.random)) {
            None => None,
            Some(Ok(pass)) => Some(pass),
            Some(Err(_)) => {
                both.reads.breaker.settle(reads, Outcome::Void, at.now, at.random);
                return Err(both.writes.refusal());
            }
        };
        both.budget.called(at.now);
        Ok(Ticket { lanes: self, reads, writes, link, settled: false })
    }

    /// Takes one repetition out of the budget, if there is one left.
    pub(super) fn may_retry(&self) -> bool {
        let (mut both, at) = self.lock();
        both.budget.try_retry(at.now)
    }

    /// A new connection was made ready; `refused` is what the server said if it takes no writes.
    pub(super) fn connected(&self, refused: Option<&Error>) {
        let (mut both, at) = self.lock();
        both.reads.breaker.reconnected();
        match refused {
            Some(error) => both.writes.trip("writes", error, at),
            None => both.writes.breaker.reconnected(),
        }
    }

    pub(super) fn states(&self) -> LaneStates {
        let (both, at) = self.lock();
        LaneStates { reads: both.reads.lane(at.now), writes: both.writes.lane(at.now) }
    }
}

/// The right to make one call. Dropped unsettled it says that its caller left.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    lanes: &'a Lanes,
    reads: Pass,
    writes: Option<Pass>,
    link: u64,
    settled: bool,
}

impl Ticket<'_> {
    /// Tells what became of the call; `slow` when it took most of its deadline.
    pub(super) fn settle(mut self, failed: Option<&Error>, slow: bool) {
        self.settled = true;
        let (mut both, at) = self.lanes.lock();
        let done = if slow { Outcome::Slow } else { Outcome::Done };
        let (reads, writes) = match failed {
            None => (done, done),
            // What dies with one connection is one failure, however many calls were under way.
            Some(Error::Lost { .. }) if both.lost == self.link => (Outcome::Void, Outcome::Void),
            Some(error) => {
                if matches!(error, Error::Lost { .. }) {
                    both.lost = self.link;
                }
                signs(error)
            }
        };
        both.reads.settle("reads", self.reads, reads, failed, at);
        match self.writes {
            Some(pass) => both.writes.settle("writes", pass, writes, failed, at),
            // A server that says no to everybody says it to writers, too.
            None if writes == Outcome::Unable => {
                if let Some(error) = failed {
                    both.writes.trip("writes", error, at);
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
        let (mut both, at) = self.lanes.lock();
        both.reads.breaker.settle(self.reads, Outcome::Void, at.now, at.random);
        if let Some(pass) = self.writes {
            both.writes.breaker.settle(pass, Outcome::Void, at.now, at.random);
        }
    }
}

/// What an error says about the server: to calls of every kind, and to those that write.
fn signs(error: &Error) -> (Outcome, Outcome) {
    match error {
        Error::Timeout | Error::Lost { .. } => (Outcome::Failed, Outcome::Failed),
        Error::Refused { refusal, .. } => match refusal {
            Refusal::NotReady | Refusal::Busy => (Outcome::Unable, Outcome::Unable),
            Refusal::NoWrites | Refusal::ReadOnly => (Outcome::Done, Outcome::Unable),
            // The configuration, one key, our code or one visitor's data: others must not pay for it.
            Refusal::Permission | Refusal::WrongType | Refusal::CodeMissing | Refusal::Other => {
                (Outcome::Done, Outcome::Done)
            }
        },
        Error::Overflow | Error::Protocol { .. } => (Outcome::Done, Outcome::Done),
        // Nothing was sent.
        _ => (Outcome::Void, Outcome::Void),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(refusal: Refusal) -> Error {
        Error::Refused { refusal, reason: "OOM".to_owned() }
    }

    fn call(lanes: &Lanes, kind: Kind, link: u64, outcome: Option<&Error>) -> Result<(), Error> {
        lanes.enter(kind, link).map(|ticket| ticket.settle(outcome, false))
    }

    #[test]
    fn each_error_speaks_to_the_breakers_it_concerns() {
        use Outcome::{Done, Failed, Unable, Void};
        let lost = Error::Lost { reason: String::new() };
        let cases = [
            (Error::Timeout, (Failed, Failed)),
            (lost, (Failed, Failed)),
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
        while call(&lanes, Kind::Begin, 1, Some(&full)) != Err(full.clone()) {}
        assert_eq!(call(&lanes, Kind::Commit, 1, None), Err(full));
        assert_eq!(call(&lanes, Kind::Read, 1, None), Ok(()));
        assert_eq!(call(&lanes, Kind::Delete, 1, None), Ok(()));
        let states = lanes.states();
        assert_eq!((states.reads.position, states.writes.position), (Position::Closed, Position::Open));
        assert!(states.writes.cause.is_some_and(|cause| cause.contains("OOM")));
    }

    #[test]
    fn a_busy_server_is_asked_by_nobody() {
        let lanes = Lanes::new();
        let busy = refused(Refusal::Busy);
        while call(&lanes, Kind::Read, 1, Some(&busy)) != Err(busy.clone()) {}
        assert_eq!(call(&lanes, Kind::Delete, 1, None), Err(busy.clone()));
        assert_eq!(call(&lanes, Kind::Begin, 1, None), Err(busy));
    }

    #[test]
    fn a_lost_connection_is_one_failure_however_many_calls_it_took_along() {
        let lanes = Lanes::new();
        let lost = Error::Lost { reason: "reset".to_owned() };
        for _ in 0..4 {
            let tickets: Vec<_> = (0..100).map(|_| lanes.enter(Kind::Begin, 7).unwrap()).collect();
            tickets.into_iter().for_each(|ticket| ticket.settle(Some(&lost), false));
        }
        assert_eq!(lanes.states().reads, Lane::default());
        for link in 8..12 {
            assert_eq!(call(&lanes, Kind::Begin, link, Some(&lost)), Ok(()));
        }
        assert_eq!(lanes.states().reads.opened, 1);
    }

    #[test]
    fn a_caller_that_leaves_gives_its_place_as_a_probe_back() {
        let lanes = Lanes::new();
        for _ in 0..5 {
            assert_eq!(call(&lanes, Kind::Begin, 1, Some(&Error::Timeout)), Ok(()));
        }
        lanes.connected(None);
        let probe = lanes.enter(Kind::Begin, 2).unwrap();
        assert!(matches!(lanes.enter(Kind::Read, 2), Err(Error::Unavailable { .. })));
        drop(probe);
        assert_eq!(call(&lanes, Kind::Begin, 2, None), Ok(()));
    }
}
