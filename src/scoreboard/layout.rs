//! The table in memory, word for word: a head, the rows, the heads of the journals, the entries of the journals.
//!
//! Another release takes this memory over at an upgrade, so that no word may ever mean something else while
//! [`LAYOUT_VERSION`] stays the same; the assertions below fail to compile where one moves. New totals and gauges take
//! words that are `reserved`: an older release leaves them zero.

use std::mem::offset_of;
use std::sync::atomic::AtomicU64;

use crate::scoreboard::exit_reason::ExitReason;
use crate::scoreboard::latency;
use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::sys::atomic_memory::shared_layout;

/// Layout of the words; a process that knows another one must not touch them.
pub const LAYOUT_VERSION: u64 = 4;

/// Workers a slot can have at one time: the one that serves, its successor, and those that finish.
pub const CELLS_PER_SLOT: usize = 8;

/// Names a journal has room for; only names with something pending need room.
pub const NAMES: usize = 64;

/// Longest name, bytes.
pub const NAME_MAX: usize = 64;

/// Words of a longest name.
const NAME_WORDS: usize = NAME_MAX / 8;

shared_layout! {
    /// The fleet's part, two cache lines.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct HeadLayout {
        /// [`LAYOUT_VERSION`].
        pub(super) version: AtomicU64,
        /// Slots the fleet wants to fill.
        pub(super) slots: AtomicU64,
        /// The supervisor's process.
        pub(super) pid: AtomicU64,
        /// When the fleet started, Unix milliseconds.
        pub(super) started_ms: AtomicU64,
        /// Whether any worker has ever reached Redis.
        pub(super) redis_ever_connected: AtomicU64,
        /// Generation in use, from 1.
        pub(super) generation: AtomicU64,
        /// Random name of the life of the fleet's counters.
        pub(super) counter_epoch: AtomicU64,
        /// Connections that workers ever started to transfer.
        pub(super) transfers_started: AtomicU64,
        /// What is wrong with the Redis that works, as bits.
        pub(super) redis_findings: AtomicU64,
        /// How full Redis's memory is, thousandths of its bound.
        pub(super) redis_memory_permille: AtomicU64,
        /// A peer that seems to be a proxy and is not trusted; 0: none.
        pub(super) untrusted_proxy: AtomicU64,
        /// Lines of its log that the supervisor dropped.
        pub(super) log_lines_dropped: AtomicU64,
        /// Dropped lines that no line of the log has reported yet.
        pub(super) log_lines_unreported: AtomicU64,
        /// Connections between two workers; those of a killed worker stay until the queue was seen empty.
        pub(super) transfers_pending: AtomicU64,
        /// Instances that share the fleet's limits.
        pub(super) instances: AtomicU64,
        /// Random number of this instance; 0: none was drawn.
        pub(super) instance_id: AtomicU64,
    }
}

shared_layout! {
    /// One worker's gauges, three cache lines.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct CellLayout {
        /// Its [`CellState`](super::cell_state::CellState).
        pub(super) state: AtomicU64,
        /// Its process; 0 while it is forked.
        pub(super) pid: AtomicU64,
        /// Generation it belongs to.
        pub(super) generation: AtomicU64,
        /// When it was forked, Unix milliseconds.
        pub(super) started_ms: AtomicU64,
        /// Its last heartbeat, milliseconds of the monotonic clock.
        pub(super) heartbeat_ms: AtomicU64,
        /// Memory that no file backs, bytes.
        pub(super) memory_bytes: AtomicU64,
        /// Open connections.
        pub(super) connections: AtomicU64,
        /// Requests being answered.
        pub(super) in_flight: AtomicU64,
        /// Whether it has Redis.
        pub(super) redis_up: AtomicU64,
        /// CPU time as of its last heartbeat, microseconds.
        pub(super) cpu_us: AtomicU64,
        /// Time of work in its event loop as of its last heartbeat, microseconds.
        pub(super) busy_us: AtomicU64,
        /// Requests it has answered.
        pub(super) requests: AtomicU64,
        /// Its [`DrainOrder`](super::cell_state::DrainOrder).
        pub(super) drain_order: AtomicU64,
        /// Which of the slot's workers it is, from 1; 0 when none writes the cell.
        pub(super) incarnation: AtomicU64,
        /// States of the breakers of reads and writes, four bits each.
        pub(super) breakers: AtomicU64,
        /// Clients that are subscribed to broadcasts through it.
        pub(super) subscribers: AtomicU64,
        /// Turns of its event loop that began a request.
        pub(super) turns: AtomicU64,
        /// Length of the last of them, microseconds.
        pub(super) turn_us: AtomicU64,
        /// Requests that wait for their turn.
        pub(super) waiting: AtomicU64,
        /// Whether it is overloaded and refuses requests.
        pub(super) shedding: AtomicU64,
        /// Whether it takes connections that other workers transfer.
        pub(super) accepts_transfers: AtomicU64,
        /// Until when the application's checks are to be reported, milliseconds of the monotonic clock.
        pub(super) checks_until_ms: AtomicU64,
        /// Open streams of events and WebSockets.
        pub(super) open_streams: AtomicU64,
        /// Zero.
        _reserved: [AtomicU64; 1],
    }
}

shared_layout! {
    /// One slot's totals, which outlive its workers, and its cells. Whole cache lines: two slots share none.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct RowLayout {
        /// Its [`SlotState`](super::slot_state::SlotState).
        pub(super) state: AtomicU64,
        /// Number of the cell whose worker is the slot's, from 1; 0 when there is none.
        pub(super) active_cell: AtomicU64,
        /// Workers started.
        pub(super) starts: AtomicU64,
        /// Workers that failed.
        pub(super) crashes: AtomicU64,
        /// Number of the last exit reason, from 1; 0 before the first.
        pub(super) last_exit_reason: AtomicU64,
        /// Connections accepted.
        pub(super) accepted: AtomicU64,
        /// Bytes of response bodies whose length was known.
        pub(super) bytes: AtomicU64,
        /// Sum of all latencies, microseconds.
        pub(super) latency_sum_us: AtomicU64,
        /// Page views counted.
        pub(super) views: AtomicU64,
        /// Requests denied by a rate limit.
        pub(super) rate_limited: AtomicU64,
        /// Requests refused because Redis was away.
        pub(super) unavailable: AtomicU64,
        /// Connections cut at a drain's deadline.
        pub(super) aborted_connections: AtomicU64,
        /// Responses by the first digit of their status.
        pub(super) responses: [AtomicU64; 6],
        /// Workers that ended, by [`ExitReason`].
        pub(super) exits: [AtomicU64; ExitReason::ALL.len()],
        /// Requests by [`latency::bucket`].
        pub(super) latency: [AtomicU64; latency::BUCKETS],
        /// Time of work in event loops, microseconds.
        pub(super) busy_us: AtomicU64,
        /// CPU time, microseconds.
        pub(super) cpu_us: AtomicU64,
        /// Batches of additions to counters that were sent.
        pub(super) counter_batches: AtomicU64,
        /// Additions to counters that never will be made.
        pub(super) dropped_increments: AtomicU64,
        /// Requests denied by a worker's cache.
        pub(super) denied_from_cache: AtomicU64,
        /// How often the breakers of reads and writes opened.
        pub(super) breaker_opens: [AtomicU64; 2],
        /// Responses that showed a stale session.
        pub(super) stale: AtomicU64,
        /// Session keys under which something else lay.
        pub(super) corrupt_sessions: AtomicU64,
        /// Responses whose session changes were not stored.
        pub(super) failed_commits: AtomicU64,
        /// Times a limit in shadow mode would have denied a request.
        pub(super) shadow_denials: AtomicU64,
        /// Requests whose limits were decided without Redis.
        pub(super) local_decisions: AtomicU64,
        /// What broadcasts did, in the order of [`SlotSnapshot::broadcast_totals`](super::snapshot::SlotSnapshot).
        pub(super) broadcast_totals: [AtomicU64; 5],
        /// Zero.
        _reserved_broadcast: AtomicU64,
        /// Lines of their log that workers dropped.
        pub(super) log_lines_dropped: AtomicU64,
        /// Silences of Redis's connections, and calls held while there was none.
        pub(super) redis_absences: [AtomicU64; 2],
        /// Connections taken over from workers of other slots.
        pub(super) transferred: AtomicU64,
        /// Whether new connections are kept off the slot.
        pub(super) avoided: AtomicU64,
        /// Zero.
        _reserved: [AtomicU64; 3],
        /// Requests refused, by [`RefusalReason`].
        pub(super) refused: [AtomicU64; 8],
        /// Connections closed, by [`ConnectionCloseReason`].
        pub(super) closed: [AtomicU64; 8],
        /// Its workers.
        pub(super) cells: [CellLayout; CELLS_PER_SLOT],
    }
}

shared_layout! {
    /// A journal's state, one cache line.
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct JournalHead {
        /// Its [`JournalOwner`](super::journal::JournalOwner); 0: none.
        pub(super) owner: AtomicU64,
        /// Number of the batch that was sealed last, 0 before the first.
        pub(super) sealed: AtomicU64,
        /// Number of the batch that was acknowledged last: one behind while a sealed one is on its way.
        pub(super) acknowledged: AtomicU64,
        /// For each bank when its first addition came, milliseconds of the monotonic clock; 0 when it is empty.
        pub(super) since: [AtomicU64; 2],
        /// Zero.
        _reserved: [AtomicU64; 3],
    }
}

shared_layout! {
    /// One name of a journal.
    #[derive(Debug)]
    pub(super) struct JournalEntryLayout {
        /// Bytes of its name; 0: free.
        pub(super) length: AtomicU64,
        /// The name, zeros at the end.
        pub(super) name: [AtomicU64; NAME_WORDS],
        /// Its sum in each bank.
        pub(super) deltas: [AtomicU64; 2],
        /// Zero.
        _reserved: AtomicU64,
    }
}

/// Every name of a journal.
pub(super) type JournalBody = [JournalEntryLayout; NAMES];

/// Holds a struct's size in words and the word at which each field begins.
macro_rules! assert_words {
    ($layout:ident, $size:expr, [$($field:ident $word:expr),* $(,)?]) => {
        const _: () = assert!(size_of::<$layout>() == $size * 8, "the layout has another size");
        $(const _: () = assert!(offset_of!($layout, $field) == $word * 8, stringify!($field moved));)*
    };
}

assert_words!(HeadLayout, 16, [
    version 0, slots 1, pid 2, started_ms 3, redis_ever_connected 4, generation 5, counter_epoch 6, transfers_started 7,
    redis_findings 8, redis_memory_permille 9, untrusted_proxy 10, log_lines_dropped 11, log_lines_unreported 12,
    transfers_pending 13, instances 14, instance_id 15,
]);
assert_words!(CellLayout, 24, [
    state 0, pid 1, generation 2, started_ms 3, heartbeat_ms 4, memory_bytes 5, connections 6, in_flight 7, redis_up 8,
    cpu_us 9, busy_us 10, requests 11, drain_order 12, incarnation 13, breakers 14, subscribers 15, turns 16, turn_us 17,
    waiting 18, shedding 19, accepts_transfers 20, checks_until_ms 21, open_streams 22, _reserved 23,
]);
assert_words!(RowLayout, 160 + CELLS_PER_SLOT * 24, [
    state 0, active_cell 1, starts 2, crashes 3, last_exit_reason 4, accepted 5, bytes 6, latency_sum_us 7, views 8,
    rate_limited 9, unavailable 10, aborted_connections 11, responses 12, exits 18, latency 32, busy_us 118, cpu_us 119,
    counter_batches 120, dropped_increments 121, denied_from_cache 122, breaker_opens 123, stale 125,
    corrupt_sessions 126, failed_commits 127, shadow_denials 128, local_decisions 129, broadcast_totals 130,
    log_lines_dropped 136, redis_absences 137, transferred 139, avoided 140, refused 144, closed 152, cells 160,
]);
assert_words!(JournalHead, 8, [owner 0, sealed 1, acknowledged 2, since 3, _reserved 5]);
assert_words!(JournalEntryLayout, 12, [length 0, name 1, deltas 9, _reserved 11]);

const _: () = assert!(
    align_of::<HeadLayout>() == 64
        && align_of::<RowLayout>() == 64
        && align_of::<CellLayout>() == 64
        && align_of::<JournalHead>() == 64,
    "what different workers write shares no cache line"
);
const _: () = assert!(
    RefusalReason::ALL.len() <= 8 && ConnectionCloseReason::ALL.len() <= 8,
    "a row has room for every reason"
);

/// Where each part of a table for so many slots begins, in bytes.
///
/// All heads of journals stand side by side, apart from their entries, so that a look for something pending touches
/// little memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TableLayout {
    /// Slots.
    pub(super) capacity: usize,
}

/// Bytes of a slot: its row, and the journals of its workers.
const SLOT_BYTES: usize =
    size_of::<RowLayout>() + CELLS_PER_SLOT * (size_of::<JournalHead>() + size_of::<JournalBody>());

impl TableLayout {
    /// The table that has this length; none: no table has.
    pub(super) fn from_bytes(bytes: usize) -> Option<Self> {
        let slots = bytes.checked_sub(size_of::<HeadLayout>())?;
        slots.is_multiple_of(SLOT_BYTES).then_some(Self { capacity: slots / SLOT_BYTES })
    }

    /// Its length.
    pub(super) fn bytes(self) -> usize {
        size_of::<HeadLayout>() + self.capacity * SLOT_BYTES
    }

    /// The row of a slot.
    pub(super) fn row(self, slot: usize) -> usize {
        size_of::<HeadLayout>() + slot * size_of::<RowLayout>()
    }

    /// The head of a journal, by its number in the whole table.
    pub(super) fn journal_head(self, journal: usize) -> usize {
        self.row(self.capacity) + journal * size_of::<JournalHead>()
    }

    /// The entries of a journal, by its number in the whole table.
    pub(super) fn journal_body(self, journal: usize) -> usize {
        self.journal_head(self.capacity * CELLS_PER_SLOT) + journal * size_of::<JournalBody>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_table_lie_where_the_first_release_of_this_layout_put_them() {
        let table = TableLayout { capacity: 3 };
        let words = |bytes: usize| bytes / 8;
        assert_eq!([table.row(0), table.row(2)].map(words), [16, 16 + 2 * 352]);
        assert_eq!([table.journal_head(0), table.journal_head(9)].map(words), [1072, 1072 + 9 * 8]);
        assert_eq!([table.journal_body(0), table.journal_body(9)].map(words), [1264, 1264 + 9 * 768]);
        assert_eq!(words(table.bytes()), 16 + 3 * (352 + 8 * (8 + 768)));
        assert_eq!(TableLayout::from_bytes(table.bytes()), Some(table));
        assert_eq!(TableLayout::from_bytes(table.bytes() + 8), None);
        assert_eq!(TableLayout::from_bytes(0), None);
    }
}
