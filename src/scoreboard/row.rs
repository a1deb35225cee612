//! One slot's row of atomics; only plain snapshots of it leave the room.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::scoreboard::latency;
use crate::scoreboard::snapshot::SlotSnapshot;

/// Words of a row: 1 KiB, so that two slots never share a cache line.
pub(super) const ROW_WORDS: usize = 128;

const STATE: usize = 0;
const PID: usize = 1;
const GENERATION: usize = 2;
const STARTED_MS: usize = 3;
const HEARTBEAT_MS: usize = 4;
const STARTS: usize = 5;
const CRASHES: usize = 6;
const MEMORY: usize = 7;
const CONNECTIONS: usize = 8;
const IN_FLIGHT: usize = 9;
const ACCEPTED: usize = 10;
const BYTES: usize = 11;
const LATENCY_SUM_US: usize = 12;
const VIEWS: usize = 13;
const LIMITED: usize = 14;
const UNAVAILABLE: usize = 15;
const CUT: usize = 16;
const REDIS_UP: usize = 17;
const CPU_US: usize = 18;
const STATUS: usize = 24;
const LATENCY: usize = 32;

const _: () = assert!(LATENCY + latency::BUCKETS <= ROW_WORDS, "a row has room for the histogram");

/// Where a slot stands, as the supervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u64)]
pub enum SlotState {
    /// No worker, and none wanted.
    Empty = 0,
    /// A worker was forked and is not READY yet.
    Booting = 1,
    /// A worker serves.
    Ready = 2,
    /// Its worker takes no new connections and finishes what it has.
    Draining = 3,
    /// The last worker died early; the next one waits for its delay.
    BackedOff = 4,
}

impl SlotState {
    fn from_word(word: u64) -> Self {
        match word {
            1 => Self::Booting,
            2 => Self::Ready,
            3 => Self::Draining,
            4 => Self::BackedOff,
            _ => Self::Empty,
        }
    }

    /// The state's name, as logs and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::BackedOff => "backed_off",
        }
    }
}

/// A slot's row.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Row<'a> {
    pub(super) fn new(words: &'a [AtomicU64]) -> Self {
        Self { words }
    }

    fn set(self, word: usize, value: u64) {
        self.words[word].store(value, Relaxed);
    }

    fn read(self, word: usize) -> u64 {
        self.words[word].load(Relaxed)
    }

    fn add(self, word: usize, by: u64) {
        self.words[word].fetch_add(by, Relaxed);
    }

    /// A worker is about to be forked into the slot; the gauges of the one before it are gone.
    ///
    /// Written by the supervisor before the fork: the worker may write its first figures before the fork returns.
    pub fn prepare(self, generation: u64, now_ms: u64) {
        self.clear_gauges();
        self.set(GENERATION, generation);
        self.set(STARTED_MS, now_ms);
        self.set_state(SlotState::Booting);
    }

    /// The worker sits in the slot. Written by the supervisor after the fork.
    pub fn seated(self, pid: u32) {
        self.set(PID, u64::from(pid));
        self.add(STARTS, 1);
    }

    /// The worker is gone. Written by the supervisor.
    pub fn vacate(self, state: SlotState) {
        self.clear_gauges();
        self.set(PID, 0);
        self.set_state(state);
    }

    fn clear_gauges(self) {
        for gauge in [CONNECTIONS, IN_FLIGHT, MEMORY, REDIS_UP, HEARTBEAT_MS, CPU_US] {
            self.set(gauge, 0);
        }
    }

    /// Written by the supervisor at each change.
    pub fn set_state(self, state: SlotState) {
        self.set(STATE, state as u64);
    }

    /// Where the slot stands.
    pub fn state(self) -> SlotState {
        SlotState::from_word(self.read(STATE))
    }

    /// Counts a worker that ended without being asked to. Written by the supervisor.
    pub fn crashed(self) {
        self.add(CRASHES, 1);
    }

    /// Sign of life of the worker's event loop, milliseconds of the monotonic clock.
    pub fn beat(self, now_ms: u64, memory_bytes: u64, cpu_us: u64) {
        self.set(HEARTBEAT_MS, now_ms);
        self.set(MEMORY, memory_bytes);
        self.set(CPU_US, cpu_us);
    }

    /// Whether this slot's worker has Redis now. Written by the worker.
    pub fn set_redis_up(self, up: bool) {
        self.set(REDIS_UP, u64::from(up));
    }

    /// A connection was accepted.
    pub fn connection_opened(self) {
        self.add(ACCEPTED, 1);
        self.add(CONNECTIONS, 1);
    }

    /// A connection ended.
    pub fn connection_closed(self) {
        self.words[CONNECTIONS].fetch_sub(1, Relaxed);
    }

    /// Connections were cut at the drain's deadline.
    pub fn connections_cut(self, count: u64) {
        self.add(CUT, count);
    }

    /// A request's header has been read.
    pub fn request_started(self) {
        self.add(IN_FLIGHT, 1);
    }

    /// A request was given up before there was a response (the client left).
    pub fn request_abandoned(self) {
        self.words[IN_FLIGHT].fetch_sub(1, Relaxed);
    }

    /// A response is ready: its status, the bytes of its body if known, and microseconds since the request's header.
    pub fn request_done(self, status: u16, bytes: u64, latency_us: u64) {
        self.words[IN_FLIGHT].fetch_sub(1, Relaxed);
        let class = usize::from(status / 100);
        self.add(STATUS + if class < 6 { class } else { 0 }, 1);
        self.add(LATENCY + latency::bucket(latency_us), 1);
        self.add(LATENCY_SUM_US, latency_us);
        self.add(BYTES, bytes);
    }

    /// A page view was counted in a session.
    pub fn viewed(self) {
        self.add(VIEWS, 1);
    }

    /// A request was denied by a rate limit.
    pub fn limited(self) {
        self.add(LIMITED, 1);
    }

    /// A request was refused because Redis is away.
    pub fn unavailable(self) {
        self.add(UNAVAILABLE, 1);
    }

    /// Whether a worker ever sat here.
    pub(super) fn was_used(self) -> bool {
        self.read(STARTS) > 0
    }

    /// A plain copy.
    pub fn snapshot(self, slot: usize) -> SlotSnapshot {
        SlotSnapshot {
            slot,
            state: self.state(),
            pid: u32::try_from(self.read(PID)).unwrap_or(0),
            generation: self.read(GENERATION),
            started_ms: self.read(STARTED_MS),
            heartbeat_ms: self.read(HEARTBEAT_MS),
            starts: self.read(STARTS),
            crashes: self.read(CRASHES),
            memory_bytes: self.read(MEMORY),
            cpu_us: self.read(CPU_US),
            redis_up: self.read(REDIS_UP) != 0,
            connections: self.read(CONNECTIONS),
            in_flight: self.read(IN_FLIGHT),
            accepted: self.read(ACCEPTED),
            cut: self.read(CUT),
            bytes: self.read(BYTES),
            views: self.read(VIEWS),
            limited: self.read(LIMITED),
            unavailable: self.read(UNAVAILABLE),
            responses: std::array::from_fn(|class| self.read(STATUS + class)),
            latency_sum_us: self.read(LATENCY_SUM_US),
            latency: std::array::from_fn(|bucket| self.read(LATENCY + bucket)),
        }
    }
}
