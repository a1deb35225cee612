//! A plain copy of the table: what status, metrics and dashboards are made from.

use crate::breaker::BreakerState;
use crate::scoreboard::cell_state::CellState;
use crate::scoreboard::exit_reason::ExitReason;
use crate::scoreboard::latency;
use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::scoreboard::slot_state::SlotState;

/// The whole fleet at one moment.
#[derive(Debug, Clone)]
pub struct ScoreboardSnapshot {
    /// The supervisor's process.
    pub supervisor_pid: u32,
    /// When the fleet started, Unix milliseconds.
    pub started_ms: u64,
    /// Number of the configuration and binary in use, from 1.
    pub generation: u64,
    /// Whether Redis was ever reached.
    pub redis_ever_connected: bool,
    /// Lines of its log that the supervisor dropped, because nothing took them.
    pub log_lines_dropped: u64,
    /// Every slot that is or was in use, by index.
    pub slots: Vec<SlotSnapshot>,
}

/// One slot at one moment; totals count over all workers it ever had.
#[derive(Debug, Clone)]
pub struct SlotSnapshot {
    /// The slot's index, from 0.
    pub slot: usize,
    /// Its state.
    pub state: SlotState,
    /// The worker that serves it, or boots in it; its successor and those that finish are in `workers` only.
    pub active_worker: Option<CellSnapshot>,
    /// Every worker it has now, the oldest first.
    pub workers: Vec<CellSnapshot>,
    /// Workers started in this slot.
    pub starts: u64,
    /// Workers that failed.
    pub crashes: u64,
    /// Workers that ended, by `ExitReason`.
    pub exits: [u64; ExitReason::ALL.len()],
    /// Why the last one ended.
    pub last_exit_reason: Option<ExitReason>,
    /// Connections accepted.
    pub accepted: u64,
    /// Of these, connections taken over from workers of other slots.
    pub transferred: u64,
    /// Connections cut at a drain's deadline.
    pub aborted_connections: u64,
    /// Bytes of response bodies whose length was known.
    pub bytes: u64,
    /// Page views counted.
    pub views: u64,
    /// Requests denied by a rate limit.
    pub rate_limited: u64,
    /// Of these, requests denied by the worker's cache, without a call to Redis.
    pub denied_from_cache: u64,
    /// Times a limit in shadow would have denied a request.
    pub shadow_denials: u64,
    /// Requests decided without Redis while it was away, denied ones included.
    pub local_decisions: u64,
    /// Requests refused because Redis was away.
    pub unavailable: u64,
    /// Responses that showed a stale session, because Redis was away.
    pub stale: u64,
    /// How often the breakers of Redis's reads and writes have opened.
    pub breaker_opens: [u64; 2],
    /// Messages published and delivered, gaps, reads that caught up with the stream, and clients dropped for lagging.
    pub broadcast_totals: [u64; 5],
    /// Requests refused before they reached the application, by `RefusalReason`.
    pub refused: [u64; RefusalReason::ALL.len()],
    /// Connections closed before their clients wanted that, by `ConnectionCloseReason`.
    pub closed: [u64; ConnectionCloseReason::ALL.len()],
    /// Times a connection to Redis fell silent, and calls held while there was none to be used.
    pub redis_absences: [u64; 2],
    /// Session keys under which something else lay.
    pub corrupt_sessions: u64,
    /// Lines of their log that its workers dropped, because nothing took them.
    pub log_lines_dropped: u64,
    /// Responses whose session changes were not stored.
    pub failed_commits: u64,
    /// Responses by the first digit of their status; index 0 holds anything else.
    pub responses: [u64; 6],
    /// Time that event loops were at work, microseconds; what a worker did after its last heartbeat is missing.
    pub busy_us: u64,
    /// CPU time, microseconds; what a worker used after its last heartbeat is missing.
    pub cpu_us: u64,
    /// Batches of additions to counters that were sent on.
    pub counter_batches: u64,
    /// How much was to be added to counters and never will be.
    pub dropped_increments: u64,
    /// How much is to be added to counters and was not sent on yet, whatever the signs.
    pub pending_increments: u64,
    /// When the oldest of it came, milliseconds of the monotonic clock.
    pub pending_since_ms: Option<u64>,
    /// Sum of all latencies, microseconds.
    pub latency_sum_us: u64,
    /// Requests by `latency::bucket`.
    pub latency: [u64; latency::BUCKETS],
}

/// One worker at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellSnapshot {
    /// Its process; 0 for a moment while it is forked.
    pub pid: u32,
    /// Its state.
    pub state: CellState,
    /// Generation it belongs to.
    pub generation: u64,
    /// When it was forked, Unix milliseconds.
    pub started_ms: u64,
    /// Last heartbeat, milliseconds of the monotonic clock; 0 before the first.
    pub heartbeat_ms: u64,
    /// Memory that no file backs, bytes.
    pub memory_bytes: u64,
    /// CPU time, microseconds.
    pub cpu_us: u64,
    /// Time its event loop was at work, microseconds.
    pub busy_us: u64,
    /// Whether it has Redis.
    pub redis_up: bool,
    /// Where its breakers of Redis's reads and writes stand.
    pub breakers: [BreakerState; 2],
    /// Clients that are subscribed to broadcasts through it.
    pub subscribers: u64,
    /// Open streams of events and WebSockets.
    pub open_streams: u64,
    /// Open connections.
    pub connections: u64,
    /// Requests being answered.
    pub in_flight: u64,
    /// Requests it has answered.
    pub requests: u64,
    /// Turns of its event loop that began a request.
    pub turns: u64,
    /// Length of the last of them, microseconds.
    pub turn_us: u64,
    /// Requests that wait for their turn.
    pub waiting: u64,
    /// Whether it is overloaded and refuses requests.
    pub shedding: bool,
}

impl SlotSnapshot {
    /// The process of the slot's worker, 0 when there is none.
    pub fn pid(&self) -> u32 {
        self.active_worker.as_ref().map_or(0, |worker| worker.pid)
    }

    /// The generation of the slot's worker, 0 when there is none.
    pub fn generation(&self) -> u64 {
        self.active_worker.as_ref().map_or(0, |worker| worker.generation)
    }

    /// Whether the slot's worker has Redis.
    pub fn redis_up(&self) -> bool {
        self.active_worker.as_ref().is_some_and(|worker| worker.redis_up)
    }

    /// The sum of one number over the slot's workers.
    pub fn sum(&self, number: impl Fn(&CellSnapshot) -> u64) -> u64 {
        self.workers.iter().map(number).sum()
    }

    /// Requests refused before they reached the application.
    pub fn refused(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// Responses of this slot, whatever their status.
    pub fn requests(&self) -> u64 {
        self.responses.iter().sum()
    }
}

impl ScoreboardSnapshot {
    /// Responses of the whole fleet.
    pub fn requests(&self) -> u64 {
        self.total(SlotSnapshot::requests)
    }

    /// Lines of the log that any process of the fleet dropped.
    pub fn log_lines_dropped(&self) -> u64 {
        self.log_lines_dropped + self.total(|slot| slot.log_lines_dropped)
    }

    /// The sum of one number over all slots.
    pub fn total(&self, number: impl Fn(&SlotSnapshot) -> u64) -> u64 {
        self.slots.iter().map(number).sum()
    }

    /// The fleet's latency histogram.
    pub fn latency(&self) -> [u64; latency::BUCKETS] {
        std::array::from_fn(|bucket| self.total(|slot| slot.latency[bucket]))
    }

    /// Slots whose worker serves.
    pub fn ready(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == SlotState::Ready).count()
    }
}
