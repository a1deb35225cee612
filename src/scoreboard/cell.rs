//! One worker's part of its slot's row: the gauges that end with the worker.
//!
//! A slot has several workers for a while whenever one takes over from another, and each writes its own cell, so that
//! neither counts the other's connections. Totals are added to the row, which outlives them all.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::breaker::BreakerState;
pub use crate::scoreboard::cell_state::{CellState, DrainOrder};
use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::scoreboard::snapshot::CellSnapshot;
use crate::scoreboard::{latency, row};

/// Workers a slot can have at one time: the one that serves, its successor, and those that finish.
pub const CELLS_PER_SLOT: usize = 8;

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
const DRAIN_ORDER: usize = 12;
/// Which of the slot's workers it is, from 1; 0 when no one writes the cell.
const INCARNATION: usize = 13;
/// Where the breakers of reads and writes stand, four bits each.
const BREAKERS: usize = 14;
const SUBSCRIBERS: usize = 15;
/// Turns of the event loop that began a request.
const TURNS: usize = 16;
/// Length of the last of them.
const TURN_US: usize = 17;
const WAITING: usize = 18;
const SHEDDING: usize = 19;
/// Whether it takes connections that other workers pass on.
const ACCEPTS_TRANSFERS: usize = 20;

/// Everything in a cell that moves when its worker does: two that are not equal prove that its event loop turned.
///
/// Connections of the slot as a whole are no part of it: a spare worker accepts them too, and would make a hung
/// one look alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoopProgress {
    turns: u64,
    requests: u64,
    in_flight: u64,
    connections: u64,
}

impl LoopProgress {
    /// What a worker has done after this many turns: tests need no table for it.
    #[cfg(test)]
    pub(crate) fn from_turns(turns: u64) -> Self {
        Self { turns, ..Self::default() }
    }
}

/// A worker's cell, and through it the row of its slot.
#[derive(Debug, Clone, Copy)]
pub struct WorkerCell<'a> {
    row: &'a [AtomicU64],
    words: &'a [AtomicU64],
}

impl<'a> WorkerCell<'a> {
    pub(super) fn new(row: &'a [AtomicU64], words: &'a [AtomicU64]) -> Self {
        Self { row, words }
    }

    fn set(self, word: usize, value: u64) {
        self.words[word].store(value, Relaxed);
    }

    fn read(self, word: usize) -> u64 {
        self.words[word].load(Relaxed)
    }

    fn add_to_total(self, word: usize, by: u64) {
        self.row[word].fetch_add(by, Relaxed);
    }

    /// A worker is about to be forked into this cell; nothing of the one before it is left.
    ///
    /// Written by the supervisor before the fork: the worker may write its first figures before the fork returns.
    pub fn reset(self, generation: u64, now_ms: u64) {
        self.words.iter().for_each(|word| word.store(0, Relaxed));
        self.set(GENERATION, generation);
        self.set(STARTED_MS, now_ms);
        self.set(INCARNATION, self.row[row::STARTS].load(Relaxed) + 1);
        self.set_state(CellState::Booting);
    }

    /// The worker was forked. Written by the supervisor.
    pub fn set_pid(self, pid: u32) {
        self.set(PID, u64::from(pid));
        self.add_to_total(row::STARTS, 1);
    }

    /// Number of the worker's life in its slot; 0 when there is no worker.
    pub(super) fn incarnation(self) -> u64 {
        self.read(INCARNATION)
    }

    /// The worker is gone. Written by the supervisor.
    pub fn clear(self) {
        self.words.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Written by the supervisor at each change.
    pub fn set_state(self, state: CellState) {
        self.set(STATE, state as u64);
    }

    /// Written by the supervisor before it tells the worker to leave.
    pub fn set_drain_order(self, order: DrainOrder) {
        self.set(DRAIN_ORDER, order as u64);
    }

    /// What the worker does with its seat when it is told to leave.
    pub fn drain_order(self) -> DrainOrder {
        DrainOrder::from_word(self.read(DRAIN_ORDER))
    }

    /// Sign of life of the worker's event loop: milliseconds of the monotonic clock, memory in bytes that no file
    /// backs, and the microseconds of CPU time and of work in the loop since its start.
    pub fn record_heartbeat(self, now_ms: u64, memory_bytes: u64, cpu_us: u64, busy_us: u64) {
        self.set(HEARTBEAT_MS, now_ms);
        self.set(MEMORY, memory_bytes);
        // Added beat by beat and not when the worker ends: a reader between two writes would see a total go back.
        self.add_to_total(row::CPU_US, cpu_us.saturating_sub(self.read(CPU_US)));
        self.add_to_total(row::BUSY_US, busy_us.saturating_sub(self.read(BUSY_US)));
        self.set(CPU_US, cpu_us);
        self.set(BUSY_US, busy_us);
    }

    /// Whether the worker has Redis now.
    pub fn set_redis_up(self, up: bool) {
        self.set(REDIS_UP, u64::from(up));
    }

    /// Where the breakers of Redis's reads and writes stand, and how often each has opened since it was last told.
    pub fn set_breakers(self, positions: [BreakerState; 2], opens: [u64; 2]) {
        let [reads, writes] = positions.map(|position| position as u64);
        self.set(BREAKERS, reads | writes << 4);
        for (word, opens) in [row::READ_BREAKER_OPENS, row::WRITE_BREAKER_OPENS].into_iter().zip(opens) {
            self.add_to_total(word, opens);
        }
    }

    /// Clients that are subscribed to broadcasts through this worker.
    pub fn set_subscribers(self, subscribers: u64) {
        self.set(SUBSCRIBERS, subscribers);
    }

    /// What broadcasts did since it was last told, in the order of the snapshot's numbers.
    pub fn add_broadcast_totals(self, more: [u64; 5]) {
        for (index, by) in more.into_iter().enumerate() {
            self.add_to_total(row::BROADCASTS + index, by);
        }
    }

    /// How often a connection to Redis has fallen silent, and calls were held for one, since it was last written.
    pub fn add_redis_absences(self, more: [u64; 2]) {
        for (index, by) in more.into_iter().enumerate() {
            self.add_to_total(row::ABSENCES + index, by);
        }
    }

    /// A response showed a session as last known, because Redis could not do all it was asked.
    pub fn count_stale(self) {
        self.add_to_total(row::STALE, 1);
    }

    /// How far the worker has come, to be compared with a later answer.
    pub fn progress(self) -> LoopProgress {
        LoopProgress {
            turns: self.read(TURNS),
            requests: self.read(REQUESTS),
            in_flight: self.read(IN_FLIGHT),
            connections: self.read(CONNECTIONS),
        }
    }

    /// A connection was accepted.
    pub fn count_connection_opened(self) {
        self.add_to_total(row::ACCEPTED, 1);
        self.words[CONNECTIONS].fetch_add(1, Relaxed);
    }

    /// A connection ended.
    pub fn count_connection_closed(self) {
        self.words[CONNECTIONS].fetch_sub(1, Relaxed);
    }

    /// A connection was taken over that a worker of another slot had accepted.
    pub fn count_connection_transferred(self) {
        self.add_to_total(row::TRANSFERRED, 1);
    }

    /// Whether the worker takes connections from now on that others pass on.
    pub fn set_accepts_transfers(self, takes: bool) {
        self.set(ACCEPTS_TRANSFERS, u64::from(takes));
    }

    /// Whether the worker takes connections that others pass on.
    pub fn accepts_transfers(self) -> bool {
        self.read(ACCEPTS_TRANSFERS) != 0
    }

    /// Whether it is the slot's first worker.
    pub fn is_first_incarnation(self) -> bool {
        self.incarnation() == 1
    }

    /// Open connections.
    pub fn connections(self) -> u64 {
        self.read(CONNECTIONS)
    }

    /// Whether it is READY, and of which generation it is then.
    pub(super) fn serving_generation(self) -> Option<u64> {
        (self.read(STATE) == CellState::Ready as u64).then(|| self.read(GENERATION))
    }

    /// Whether it can take a connection now: it says so, moves, and refuses nothing.
    pub(super) fn can_accept_transfer(self, moved_since_ms: u64) -> bool {
        self.accepts_transfers() && self.read(SHEDDING) == 0 && self.read(HEARTBEAT_MS) >= moved_since_ms
    }

    /// Connections were cut at the drain's deadline.
    pub fn count_aborted(self, count: u64) {
        self.add_to_total(row::ABORTED, count);
    }

    /// A request's header has been read.
    pub fn count_request_started(self) {
        // Here and where it ends: only the worker's own thread writes it, so that no locked instruction is needed.
        self.set(IN_FLIGHT, self.read(IN_FLIGHT) + 1);
    }

    /// A request was given up before there was a response (the client left).
    pub fn count_request_abandoned(self) {
        self.set(IN_FLIGHT, self.read(IN_FLIGHT).saturating_sub(1));
    }

    /// A response is ready: its status, the bytes of its body if known, and microseconds since the request's header.
    pub fn count_request_finished(self, status: u16, bytes: u64, latency_us: u64) {
        self.count_request_abandoned();
        self.set(REQUESTS, self.read(REQUESTS) + 1);
        let class = usize::from(status / 100);
        self.add_to_total(row::STATUS + if class < 6 { class } else { 0 }, 1);
        self.add_to_total(row::LATENCY + latency::bucket(latency_us), 1);
        self.add_to_total(row::LATENCY_SUM_US, latency_us);
        self.add_to_total(row::BYTES, bytes);
    }

    /// A turn of the event loop in which a request began has ended: its length, microseconds, and how many requests
    /// wait for the next one. It is as good a sign of life as a beat.
    pub fn record_turn(self, length_us: u64, waiting: u64) {
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
    pub fn count_refused(self, reason: RefusalReason) {
        self.add_to_total(row::REFUSED + reason as usize, 1);
    }

    /// A connection is closed before its client wants that.
    pub fn count_closed(self, reason: ConnectionCloseReason) {
        self.add_to_total(row::CLOSED + reason as usize, 1);
    }

    /// A page view was counted in a session.
    pub fn count_view(self) {
        self.add_to_total(row::VIEWS, 1);
    }

    /// A request was denied by a rate limit.
    pub fn count_rate_limited(self) {
        self.add_to_total(row::RATE_LIMITED, 1);
    }

    /// It was denied by what the worker knew.
    pub fn count_denied_from_cache(self) {
        self.add_to_total(row::DENIED_FROM_CACHE, 1);
    }

    /// Limits in shadow would have denied a request.
    pub fn count_shadow_denials(self, limits: u64) {
        self.add_to_total(row::SHADOW_DENIALS, limits);
    }

    /// A request's limits were decided without Redis.
    pub fn count_local_decision(self) {
        self.add_to_total(row::LOCAL_DECISIONS, 1);
    }

    /// A request was refused because Redis is away.
    pub fn count_unavailable(self) {
        self.add_to_total(row::UNAVAILABLE, 1);
    }

    /// A batch of additions to counters was sent on.
    pub fn count_batch(self) {
        self.add_to_total(row::COUNTER_BATCHES, 1);
    }

    /// Redis refused additions to counters for good, or they were left behind by a fleet that ended.
    pub fn count_dropped(self, additions: u64) {
        self.add_to_total(row::DROPPED_INCREMENTS, additions);
    }

    /// Something that is no session lay under a session's key.
    pub fn count_corrupt_session(self) {
        self.add_to_total(row::CORRUPT_SESSIONS, 1);
    }

    /// A response was sent although its session changes were not stored.
    pub fn count_failed_commit(self) {
        self.add_to_total(row::FAILED_COMMITS, 1);
    }

    /// Memory as of the last beat, bytes.
    pub fn memory_bytes(self) -> u64 {
        self.read(MEMORY)
    }

    /// A plain copy; none when no worker writes here.
    pub fn snapshot(self) -> Option<CellSnapshot> {
        let state = CellState::from_word(self.read(STATE));
        (state != CellState::Vacant).then(|| CellSnapshot {
            pid: u32::try_from(self.read(PID)).unwrap_or(0),
            state,
            generation: self.read(GENERATION),
            started_ms: self.read(STARTED_MS),
            heartbeat_ms: self.read(HEARTBEAT_MS),
            memory_bytes: self.read(MEMORY),
            cpu_us: self.read(CPU_US),
            busy_us: self.read(BUSY_US),
            redis_up: self.read(REDIS_UP) != 0,
            breakers: [0, 4].map(|shift| BreakerState::from_word(self.read(BREAKERS) >> shift & 15)),
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
