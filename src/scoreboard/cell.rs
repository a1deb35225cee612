//! One worker's part of its slot's row: the gauges that end with the worker.
//!
//! A slot has several workers for a while whenever one takes over from another, and each writes its own cell, so that
//! neither counts the other's connections. Totals are added to the row, which outlives them all.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::breaker::BreakerState;
pub use crate::scoreboard::cell_state::{CellState, DrainOrder};
use crate::scoreboard::latency;
pub use crate::scoreboard::layout::CELLS_PER_SLOT;
use crate::scoreboard::layout::{CellLayout, RowLayout};
use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::scoreboard::snapshot::CellSnapshot;
use crate::sys::atomic_memory::SharedLayout;

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
    row: &'a RowLayout,
    cell: &'a CellLayout,
}

impl<'a> WorkerCell<'a> {
    pub(super) fn new(row: &'a RowLayout, cell: &'a CellLayout) -> Self {
        Self { row, cell }
    }

    /// A worker is about to be forked into this cell; nothing of the one before it is left.
    ///
    /// Written by the supervisor before the fork: the worker may write its first figures before the fork returns.
    pub fn reset(self, generation: u64, now_ms: u64) {
        self.cell.words().iter().for_each(|word| word.store(0, Relaxed));
        self.cell.generation.store(generation, Relaxed);
        self.cell.started_ms.store(now_ms, Relaxed);
        self.cell.incarnation.store(self.row.starts.load(Relaxed) + 1, Relaxed);
        self.set_state(CellState::Booting);
    }

    /// The worker was forked. Written by the supervisor.
    pub fn set_pid(self, pid: u32) {
        self.cell.pid.store(u64::from(pid), Relaxed);
        self.row.starts.fetch_add(1, Relaxed);
    }

    /// Which of the slot's workers it is, from 1; 0 when there is no worker.
    pub(super) fn incarnation(self) -> u64 {
        self.cell.incarnation.load(Relaxed)
    }

    /// The worker is gone. Written by the supervisor.
    pub fn clear(self) {
        self.cell.words().iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Written by the supervisor at each change.
    pub fn set_state(self, state: CellState) {
        self.cell.state.store(state as u64, Relaxed);
    }

    /// Written by the supervisor before it signals the worker.
    pub fn set_drain_order(self, order: DrainOrder) {
        self.cell.drain_order.store(order as u64, Relaxed);
    }

    /// Until when the worker is to report the application's checks, milliseconds of the monotonic clock. Written by the
    /// supervisor; it ends by itself, so that no program that takes the fleet over has to end it.
    pub fn request_checks(self, until_ms: u64) {
        self.cell.checks_until_ms.store(until_ms, Relaxed);
    }

    /// Whether it is to report them now.
    pub fn are_checks_requested(self, now_ms: u64) -> bool {
        now_ms < self.cell.checks_until_ms.load(Relaxed)
    }

    /// How the worker has to leave.
    pub fn drain_order(self) -> DrainOrder {
        DrainOrder::from_word(self.cell.drain_order.load(Relaxed))
    }

    /// Heartbeat of the worker's event loop: milliseconds of the monotonic clock, memory in bytes that no file
    /// backs, and the microseconds of CPU time and of work in the loop since its start.
    pub fn record_heartbeat(self, now_ms: u64, memory_bytes: u64, cpu_us: u64, busy_us: u64) {
        self.cell.heartbeat_ms.store(now_ms, Relaxed);
        self.cell.memory_bytes.store(memory_bytes, Relaxed);
        // Added with each heartbeat and not when the worker ends: a reader between two writes would see a total go back.
        self.row.cpu_us.fetch_add(cpu_us.saturating_sub(self.cell.cpu_us.load(Relaxed)), Relaxed);
        self.row.busy_us.fetch_add(busy_us.saturating_sub(self.cell.busy_us.load(Relaxed)), Relaxed);
        self.cell.cpu_us.store(cpu_us, Relaxed);
        self.cell.busy_us.store(busy_us, Relaxed);
    }

    /// Whether the worker has Redis now.
    pub fn set_redis_up(self, up: bool) {
        self.cell.redis_up.store(u64::from(up), Relaxed);
    }

    /// The breakers' states, and how often each has opened since the last call.
    pub fn set_breakers(self, positions: [BreakerState; 2], opens: [u64; 2]) {
        let [reads, writes] = positions.map(|position| position as u64);
        self.cell.breakers.store(reads | writes << 4, Relaxed);
        add_each(&self.row.breaker_opens, opens);
    }

    /// Clients that are subscribed to broadcasts through this worker.
    pub fn set_subscribers(self, subscribers: u64) {
        self.cell.subscribers.store(subscribers, Relaxed);
    }

    /// A stream of events or a WebSocket was opened.
    pub fn count_stream_opened(self) {
        self.cell.open_streams.fetch_add(1, Relaxed);
    }

    /// A stream of events or a WebSocket has ended.
    pub fn count_stream_closed(self) {
        self.cell.open_streams.fetch_sub(1, Relaxed);
    }

    /// What broadcasts did since the last call, in the order of the snapshot's numbers.
    pub fn add_broadcast_totals(self, more: [u64; 5]) {
        add_each(&self.row.broadcast_totals, more);
    }

    /// How often a connection to Redis has fallen silent, and calls were held for one, since the last call.
    pub fn add_redis_absences(self, more: [u64; 2]) {
        add_each(&self.row.redis_absences, more);
    }

    /// A response showed a stale session, because Redis was away.
    pub fn count_stale(self) {
        self.row.stale.fetch_add(1, Relaxed);
    }

    /// How far the worker has come, to be compared with a later reading.
    pub fn progress(self) -> LoopProgress {
        LoopProgress {
            turns: self.cell.turns.load(Relaxed),
            requests: self.cell.requests.load(Relaxed),
            in_flight: self.cell.in_flight.load(Relaxed),
            connections: self.cell.connections.load(Relaxed),
        }
    }

    /// A connection was accepted.
    pub fn count_connection_opened(self) {
        self.row.accepted.fetch_add(1, Relaxed);
        self.cell.connections.fetch_add(1, Relaxed);
    }

    /// A connection ended.
    pub fn count_connection_closed(self) {
        self.cell.connections.fetch_sub(1, Relaxed);
    }

    /// A connection came by transfer from a worker of another slot.
    pub fn count_connection_transferred(self) {
        self.row.transferred.fetch_add(1, Relaxed);
    }

    /// Whether the worker accepts transferred connections from now on.
    pub fn set_accepts_transfers(self, takes: bool) {
        self.cell.accepts_transfers.store(u64::from(takes), Relaxed);
    }

    /// Whether the worker accepts transferred connections.
    pub fn accepts_transfers(self) -> bool {
        self.cell.accepts_transfers.load(Relaxed) != 0
    }

    /// Whether it is the slot's first worker.
    pub fn is_first_incarnation(self) -> bool {
        self.incarnation() == 1
    }

    /// Open connections.
    pub fn connections(self) -> u64 {
        self.cell.connections.load(Relaxed)
    }

    /// Whether it is READY, and of which generation it is then.
    pub(super) fn serving_generation(self) -> Option<u64> {
        (self.cell.state.load(Relaxed) == CellState::Ready as u64).then(|| self.cell.generation.load(Relaxed))
    }

    /// Whether it can take a connection now: it says so, moves, and refuses nothing.
    pub(super) fn can_accept_transfer(self, moved_since_ms: u64) -> bool {
        self.accepts_transfers()
            && self.cell.shedding.load(Relaxed) == 0
            && self.cell.heartbeat_ms.load(Relaxed) >= moved_since_ms
    }

    /// Connections were cut at the drain's deadline.
    pub fn count_aborted(self, count: u64) {
        self.row.aborted_connections.fetch_add(count, Relaxed);
    }

    /// A request's header has been read.
    pub fn count_request_started(self) {
        // Here and where it ends: only the worker's own thread writes it, so that no locked instruction is needed.
        self.cell.in_flight.store(self.cell.in_flight.load(Relaxed) + 1, Relaxed);
    }

    /// A request was given up before there was a response (the client left).
    pub fn count_request_abandoned(self) {
        self.cell.in_flight.store(self.cell.in_flight.load(Relaxed).saturating_sub(1), Relaxed);
    }

    /// A response is ready: its status, the bytes of its body if known, and microseconds since the request's header.
    pub fn count_request_finished(self, status: u16, bytes: u64, latency_us: u64) {
        self.count_request_abandoned();
        self.cell.requests.store(self.cell.requests.load(Relaxed) + 1, Relaxed);
        let class = usize::from(status / 100);
        self.row.responses[if class < 6 { class } else { 0 }].fetch_add(1, Relaxed);
        self.row.latency[latency::bucket(latency_us)].fetch_add(1, Relaxed);
        self.row.latency_sum_us.fetch_add(latency_us, Relaxed);
        self.row.bytes.fetch_add(bytes, Relaxed);
    }

    /// A turn of the event loop in which a request began has ended: its length, microseconds, and how many requests
    /// wait for the next one. It shows that the loop turns as well as a heartbeat does.
    pub fn record_turn(self, length_us: u64, waiting: u64) {
        // Only the worker's own thread writes them, so that no locked instruction is needed.
        self.cell.turns.store(self.cell.turns.load(Relaxed) + 1, Relaxed);
        self.cell.turn_us.store(length_us, Relaxed);
        self.cell.waiting.store(waiting, Relaxed);
    }

    /// Whether the worker is overloaded and refuses requests.
    pub fn set_shedding(self, shedding: bool) {
        self.cell.shedding.store(u64::from(shedding), Relaxed);
    }

    /// A request was refused before it reached the application.
    pub fn count_refused(self, reason: RefusalReason) {
        self.row.refused[reason as usize].fetch_add(1, Relaxed);
    }

    /// A connection is closed before its client wants that.
    pub fn count_closed(self, reason: ConnectionCloseReason) {
        self.row.closed[reason as usize].fetch_add(1, Relaxed);
    }

    /// A page view was counted in a session.
    pub fn count_view(self) {
        self.row.views.fetch_add(1, Relaxed);
    }

    /// A request was denied by a rate limit.
    pub fn count_rate_limited(self) {
        self.row.rate_limited.fetch_add(1, Relaxed);
    }

    /// It was denied by the worker's cache.
    pub fn count_denied_from_cache(self) {
        self.row.denied_from_cache.fetch_add(1, Relaxed);
    }

    /// Limits in shadow would have denied a request.
    pub fn count_shadow_denials(self, limits: u64) {
        self.row.shadow_denials.fetch_add(limits, Relaxed);
    }

    /// A request's limits were decided without Redis.
    pub fn count_local_decision(self) {
        self.row.local_decisions.fetch_add(1, Relaxed);
    }

    /// A request was refused because Redis is away.
    pub fn count_unavailable(self) {
        self.row.unavailable.fetch_add(1, Relaxed);
    }

    /// A batch of additions to counters was sent on.
    pub fn count_batch(self) {
        self.row.counter_batches.fetch_add(1, Relaxed);
    }

    /// Redis refused additions to counters for good, or they were left behind by a fleet that ended.
    pub fn count_dropped(self, additions: u64) {
        self.row.dropped_increments.fetch_add(additions, Relaxed);
    }

    /// Something that is no session lay under a session's key.
    pub fn count_corrupt_session(self) {
        self.row.corrupt_sessions.fetch_add(1, Relaxed);
    }

    /// A response was sent although its session changes were not stored.
    pub fn count_failed_commit(self) {
        self.row.failed_commits.fetch_add(1, Relaxed);
    }

    /// Memory as of the last heartbeat, bytes.
    pub fn memory_bytes(self) -> u64 {
        self.cell.memory_bytes.load(Relaxed)
    }

    /// A plain copy; none when no worker writes here.
    pub fn snapshot(self) -> Option<CellSnapshot> {
        let state = CellState::from_word(self.cell.state.load(Relaxed));
        (state != CellState::Vacant).then(|| CellSnapshot {
            pid: u32::try_from(self.cell.pid.load(Relaxed)).unwrap_or(0),
            state,
            generation: self.cell.generation.load(Relaxed),
            started_ms: self.cell.started_ms.load(Relaxed),
            heartbeat_ms: self.cell.heartbeat_ms.load(Relaxed),
            memory_bytes: self.cell.memory_bytes.load(Relaxed),
            cpu_us: self.cell.cpu_us.load(Relaxed),
            busy_us: self.cell.busy_us.load(Relaxed),
            redis_up: self.cell.redis_up.load(Relaxed) != 0,
            breakers: [0, 4]
                .map(|shift| BreakerState::from_word(self.cell.breakers.load(Relaxed) >> shift & 15)),
            subscribers: self.cell.subscribers.load(Relaxed),
            open_streams: self.cell.open_streams.load(Relaxed),
            connections: self.cell.connections.load(Relaxed),
            in_flight: self.cell.in_flight.load(Relaxed),
            requests: self.cell.requests.load(Relaxed),
            turns: self.cell.turns.load(Relaxed),
            turn_us: self.cell.turn_us.load(Relaxed),
            waiting: self.cell.waiting.load(Relaxed),
            shedding: self.cell.shedding.load(Relaxed) != 0,
        })
    }
}

/// Adds to counters that stand side by side.
fn add_each<const N: usize>(totals: &[AtomicU64; N], more: [u64; N]) {
    for (total, by) in totals.iter().zip(more) {
        total.fetch_add(by, Relaxed);
    }
}
