//! One worker's part of its slot's row: the gauges that end with the worker.
//!
//! A slot has several workers for a while whenever one takes over from another, and each writes its own cell, so that
//! neither counts the other's connections. Totals are added to the row, which outlives them all.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::breaker::Position;
use crate::scoreboard::latency;
use crate::scoreboard::refusal::Closing;
use crate::scoreboard::refusal::Refusal;
use crate::scoreboard::row;
use crate::scoreboard::snapshot::WorkerSnapshot;
pub use crate::scoreboard::states::Order;
pub use crate::scoreboard::states::WorkerState;

/// Workers a slot can have at one time: the one that serves, its successor, and those that finish.
pub const CELLS: usize = 8;

/// Words of a cell: three cache lines.
pub(super) const CELL_WORDS: usize = 24;

const STATE: usize = 0;
const PID: usize = 1;
const GENERATION: usize = 2;
const STARTED_MS: usize = 3;
const HEARTBEAT_MS: usize = 4;
const MEMORY: usize = 5;
const CONNECTIONS: usize = 6;
const IN_FLIGHT: usize = 7;
const REDIS_UP: usize = 8;
const CPU_US: usize = 9;
const BUSY_US: usize = 10;
const REQUESTS: usize = 11;
const ORDER: usize = 12;
/// Which of the slot's workers it is, from 1; 0 when no one writes the cell.
const LIFE: usize = 13;
/// Where the breakers of reads and writes stand, four bits each.
const LANES: usize = 14;
const SUBSCRIBERS: usize = 15;
/// Turns of the event loop that began a request.
const TURNS: usize = 16;
/// Length of the last of them.
const TURN_US: usize = 17;
const WAITING: usize = 18;
const SHEDDING: usize = 19;
/// Whether it takes connections that other workers pass on.
const TAKES: usize = 20;

/// Everything in a cell that moves when its worker does: two that are not equal prove that its event loop turned.
///
/// Connections of the slot as a whole are no part of it: a spare worker accepts them too, and would make a hung
/// one look alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    turns: u64,
    requests: u64,
    in_flight: u64,
    connections: u64,
}

impl Progress {
    /// What a worker has done after this many turns: tests need no table for it.
    #[cfg(test)]
    pub(crate) fn after(turns: u64) -> Self {
        Self { turns, ..Self::default() }
    }
}

/// A worker's cell, and through it the row of its slot.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    row: &'a [AtomicU64],
    words: &'a [AtomicU64],
}

impl<'a> Cell<'a> {
    pub(super) fn new(row: &'a [AtomicU64], words: &'a [AtomicU64]) -> Self {
        Self { row, words }
    }

    fn set(self, word: usize, value: u64) {
        self.words[word].store(value, Relaxed);
    }

    fn read(self, word: usize) -> u64 {
        self.words[word].load(Relaxed)
    }

    fn total(self, word: usize, by: u64) {
        self.row[word].fetch_add(by, Relaxed);
    }

    /// A worker is about to be forked into this cell; nothing of the one before it is left.
    ///
    /// Written by the supervisor before the fork: the worker may write its first figures before the fork returns.
    pub fn prepare(self, generation: u64, now_ms: u64) {
        self.words.iter().for_each(|word| word.store(0, Relaxed));
        self.set(GENERATION, generation);
        self.set(STARTED_MS, now_ms);
        self.set(LIFE, self.row[row::STARTS].load(Relaxed) + 1);
        self.set_state(WorkerState::Booting);
    }

    /// The worker was forked. Written by the supervisor.
    pub fn seated(self, pid: u32) {
        self.set(PID, u64::from(pid));
        self.total(row::STARTS, 1);
    }

    /// Number of the worker's life in its slot; 0 when there is no worker.
    pub(super) fn life(self) -> u64 {
        self.read(LIFE)
    }

    /// The worker is gone. Written by the supervisor.
    pub fn vacate(self) {
        self.words.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Written by the supervisor at each change.
    pub fn set_state(self, state: WorkerState) {
        self.set(STATE, state as u64);
    }

    /// Written by the supervisor before it tells the worker to leave.
    pub fn set_order(self, order: Order) {
        self.set(ORDER, order as u64);
    }

    /// What the worker does with its seat when it is told to leave.
    pub fn order(self) -> Order {
        Order::from_word(self.read(ORDER))
    }

    /// Sign of life of the worker's event loop: milliseconds of the monotonic clock, memory in bytes that no file
    /// backs, and the microseconds of CPU time and of work in the loop since its start.
    pub fn beat(self, now_ms: u64, memory_bytes: u64, cpu_us: u64, busy_us: u64) {
        self.set(HEARTBEAT_MS, now_ms);
        self.set(MEMORY, memory_bytes);
        // Added beat by beat and not when the worker ends: a reader between two writes would see a total go back.
        self.total(row::CPU_US, cpu_us.saturating_sub(self.read(CPU_US)));
        self.total(row::BUSY_US, busy_us.saturating_sub(self.read(BUSY_US)));
        self.set(CPU_US, cpu_us);
        self.set(BUSY_US, busy_us);
    }

    /// Whether the worker has Redis now.
    pub fn set_redis_up(self, up: bool) {
        self.set(REDIS_UP, u64::from(up));
    }

    /// Where the breakers of Redis's reads and writes stand, and how often each has opened since it was last told.
    pub fn set_redis_lanes(self, positions: [Position; 2], opened: [u64; 2]) {
        let [reads, writes] = positions.map(|position| position as u64);
        self.set(LANES, reads | writes << 4);
        for (word, opened) in [row::READS_OPENED, row::WRITES_OPENED].into_iter().zip(opened) {
            self.total(word, opened);
        }
    }

    /// Clients that are subscribed to broadcasts through this worker.
    pub fn set_subscribers(self, subscribers: u64) {
        self.set(SUBSCRIBERS, subscribers);
    }

    /// What broadcasts did since it was last told, in the order of the snapshot's numbers.
    pub fn add_broadcasts(self, more: [u64; 5]) {
        for (index, by) in more.into_iter().enumerate() {
            self.total(row::BROADCASTS + index, by);
        }
    }

    /// How often a connection to Redis has fallen silent, and calls were held for one, since it was last written.
    pub fn add_redis_absences(self, more: [u64; 2]) {
        for (index, by) in more.into_iter().enumerate() {
            self.total(row::ABSENCES + index, by);
        }
    }

    /// A response showed a session as last known, because Redis could not do all it was asked.
    pub fn served_stale(self) {
        self.total(row::STALE, 1);
    }

    /// How far the worker has come, to be compared with a later answer.
    pub fn progress(self) -> Progress {
        Progress {
            turns: self.read(TURNS),
            requests: self.read(REQUESTS),
            in_flight: self.read(IN_FLIGHT),
            connections: self.read(CONNECTIONS),
        }
    }

    /// A connection was accepted.
    pub fn connection_opened(self) {
        self.total(row::ACCEPTED, 1);
        self.words[CONNECTIONS].fetch_add(1, Relaxed);
    }

    /// A connection ended.
    pub fn connection_closed(self) {
        self.words[CONNECTIONS].fetch_sub(1, Relaxed);
    }

    /// A connection was taken over that a worker of another slot had accepted.
    pub fn connection_passed(self) {
        self.total(row::PASSED, 1);
    }

    /// Whether the worker takes connections from now on that others pass on.
    pub fn set_takes(self, takes: bool) {
        self.set(TAKES, u64::from(takes));
    }

    /// Whether the worker takes connections that others pass on.
    pub fn takes(self) -> bool {
        self.read(TAKES) != 0
    }

    /// Whether it is the slot's first worker.
    pub fn is_first(self) -> bool {
        self.life() == 1
    }

    /// Open connections.
    pub fn connections(self) -> u64 {
        self.read(CONNECTIONS)
    }

    /// Whether it is READY, and of which generation it is then.
    pub(super) fn serves(self) -> Option<u64> {
        (self.read(STATE) == WorkerState::Ready as u64).then(|| self.read(GENERATION))
    }

    /// Whether it can take a connection now: it says so, moves, and refuses nothing.
    pub(super) fn can_take(self, moved_since_ms: u64) -> bool {
        self.takes() && self.read(SHEDDING) == 0 && self.read(HEARTBEAT_MS) >= moved_since_ms
    }

    /// Connections were cut at the drain's deadline.
    pub fn connections_cut(self, count: u64) {
        self.total(row::CUT, count);
    }

    /// A request's header has been read.
    pub fn request_started(self) {
        // Here and where it ends: only the worker's own thread writes it, so that no locked instruction is needed.
        self.set(IN_FLIGHT, self.read(IN_FLIGHT) + 1);
    }

    /// A request was given up before there was a response (the client left).
    pub fn request_abandoned(self) {
        self.set(IN_FLIGHT, self.read(IN_FLIGHT).saturating_sub(1));
    }

    /// A response is ready: its status, the bytes of its body if known, and microseconds since the request's header.
    pub fn request_done(self, status: u16, bytes: u64, latency_us: u64) {
        self.request_abandoned();
        self.set(REQUESTS, self.read(REQUESTS) + 1);
        let class = usize::from(status / 100);
        self.total(row::STATUS + if class < 6 { class } else { 0 }, 1);
        self.total(row::LATENCY + latency::bucket(latency_us), 1);
        self.total(row::LATENCY_SUM_US, latency_us);
        self.total(row::BYTES, bytes);
    }

    /// A turn of the event loop in which a request began has ended: its length, microseconds, and how many requests
    /// wait for the next one. It is as good a sign of life as a beat.
    pub fn turned(self, length_us: u64, waiting: u64) {
        // Only the worker's own thread writes them, so that no locked instruction is needed.
        self.set(TURNS, self.read(TURNS) + 1);
        self.set(TURN_US, length_us);
        self.set(WAITING, waiting);
    }

    /// Whether the worker is overloaded and refuses requests.
    pub fn set_shedding(self, shedding: bool) {
        self.set(SHEDDING, u64::from(shedding));
    }

    /// A request was refused before it reached the application.
    pub fn refused(self, why: Refusal) {
        self.total(row::REFUSED + why as usize, 1);
    }

    /// A connection is closed before its client wants that.
    pub fn closed(self, why: Closing) {
        self.total(row::CLOSED + why as usize, 1);
    }

    /// A page view was counted in a session.
    pub fn viewed(self) {
        self.total(row::VIEWS, 1);
    }

    /// A request was denied by a rate limit.
    pub fn limited(self) {
        self.total(row::LIMITED, 1);
    }

    /// It was denied by what the worker knew.
    pub fn denied_here(self) {
        self.total(row::DENIED_HERE, 1);
    }

    /// Limits in shadow would have denied a request.
    pub fn shadowed(self, limits: u64) {
        self.total(row::SHADOWED, limits);
    }

    /// A request's limits were decided without Redis.
    pub fn insured(self) {
        self.total(row::INSURED, 1);
    }

    /// A request was refused because Redis is away.
    pub fn unavailable(self) {
        self.total(row::UNAVAILABLE, 1);
    }

    /// A batch of additions to counters was sent on.
    pub fn flushed(self) {
        self.total(row::FLUSHES, 1);
    }

    /// Redis refused additions to counters for good, or they were left behind by a fleet that ended.
    pub fn dropped(self, additions: u64) {
        self.total(row::DROPPED, additions);
    }

    /// Something that is no session lay under a session's key.
    pub fn corrupt(self) {
        self.total(row::CORRUPT, 1);
    }

    /// A response was sent although its session changes were not stored.
    pub fn unstored(self) {
        self.total(row::UNSTORED, 1);
    }

    /// Memory as of the last beat, bytes.
    pub fn memory_bytes(self) -> u64 {
        self.read(MEMORY)
    }

    /// A plain copy; none when no worker writes here.
    pub fn snapshot(self) -> Option<WorkerSnapshot> {
        let state = WorkerState::from_word(self.read(STATE));
        (state != WorkerState::Vacant).then(|| WorkerSnapshot {
            pid: u32::try_from(self.read(PID)).unwrap_or(0),
            state,
            generation: self.read(GENERATION),
            started_ms: self.read(STARTED_MS),
            heartbeat_ms: self.read(HEARTBEAT_MS),
            memory_bytes: self.read(MEMORY),
            cpu_us: self.read(CPU_US),
            busy_us: self.read(BUSY_US),
            redis_up: self.read(REDIS_UP) != 0,
            redis_lanes: [0, 4].map(|shift| Position::from_word(self.read(LANES) >> shift & 15)),
            subscribers: self.read(SUBSCRIBERS),
            connections: self.read(CONNECTIONS),
            in_flight: self.read(IN_FLIGHT),
            requests: self.read(REQUESTS),
            turns: self.read(TURNS),
            turn_us: self.read(TURN_US),
            waiting: self.read(WAITING),
            shedding: self.read(SHEDDING) != 0,
        })
    }
}
