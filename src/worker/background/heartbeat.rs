//! The worker's heartbeat in its cell, from the event loop that serves requests.
//!
//! It is part of the runtime's root future and no task: a task waits behind all that are queued, which under load are
//! thousands, while the runtime looks at its root future whenever it was woken, at most 61 tasks later.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeMetrics};

use crate::broadcasts::BroadcastHub;
use crate::redis::{RedisClient, RedisStatus};
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::WorkerCell;
use crate::sys::{clock, process};
use crate::worker::interval;
use crate::worker::options::WorkerOptions;

/// Time between two heartbeats, in ticks: 640 ms. Without one for a second a worker gets no new connections.
pub(in crate::worker) const HEARTBEAT_TICKS: u32 = 10;

/// Heartbeats between two samples of the memory.
const MEMORY_EVERY: u32 = 4;

/// What a worker writes into its cell from time to time.
pub(in crate::worker) struct HeartbeatWriter {
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
    redis: RedisClient,
    broadcasts: BroadcastHub,
    memory_bytes: u64,
    /// How often the breakers had opened, and what broadcasts had done, when it was last written.
    breaker_opens: [u64; 2],
    broadcast_totals: [u64; 5],
    absences: [u64; 2],
}

impl HeartbeatWriter {
    pub(in crate::worker) fn new(
        options: &WorkerOptions,
        redis: &RedisClient,
        broadcasts: &BroadcastHub,
    ) -> Self {
        Self {
            scoreboard: Arc::clone(&options.scoreboard),
            slot: options.slot,
            cell: options.cell,
            redis: redis.clone(),
            broadcasts: broadcasts.clone(),
            memory_bytes: 0,
            breaker_opens: [0; 2],
            broadcast_totals: [0; 5],
            absences: [0; 2],
        }
    }

    /// Runs as long as `life` goes on. Must be awaited in the root future, and never in a task.
    pub(in crate::worker) async fn run_beside<T>(self, life: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            never = self.run() => match never {},
            outcome = life => outcome,
        }
    }

    async fn run(mut self) -> Infallible {
        let mut ticks = interval::aligned_interval(HEARTBEAT_TICKS * clock::TICK);
        let runtime = Handle::current().metrics();
        let mut count = 0_u32;
        loop {
            if count.is_multiple_of(MEMORY_EVERY) {
                self.memory_bytes = process::anonymous_memory().unwrap_or(self.memory_bytes);
            }
            count = count.wrapping_add(1);
            self.record(&runtime);
            ticks.tick().await;
        }
    }

    fn record(&mut self, runtime: &RuntimeMetrics) {
        let cell = self.scoreboard.cell(self.slot, self.cell);
        record_redis(&self.scoreboard, self.slot, self.cell, &self.redis);
        self.breaker_opens = record_breakers(cell, &self.redis, self.breaker_opens);
        self.broadcast_totals = record_broadcasts(cell, &self.broadcasts, self.broadcast_totals);
        let absences = self.redis.outage_stats();
        let now = [absences.silences, absences.waited];
        let before = std::mem::replace(&mut self.absences, now);
        cell.add_redis_absences(std::array::from_fn(|index| now[index].saturating_sub(before[index])));
        let now_ms = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX);
        let cpu_us = u64::try_from(clock::cpu_time().as_micros()).unwrap_or(u64::MAX);
        cell.record_heartbeat(now_ms, self.memory_bytes, cpu_us, busy_us(runtime));
    }
}

/// Time the event loop was at work and not waiting, microseconds.
fn busy_us(runtime: &RuntimeMetrics) -> u64 {
    u64::try_from(runtime.worker_total_busy_duration(0).as_micros()).unwrap_or(u64::MAX)
}

/// Writes where the breakers stand, and what has been added to how often they `opened`; returns that.
fn record_breakers(cell: WorkerCell<'_>, redis: &RedisClient, opened: [u64; 2]) -> [u64; 2] {
    let lanes = redis.breaker_states();
    let now = [lanes.reads.open_count, lanes.writes.open_count];
    let more = [now[0].saturating_sub(opened[0]), now[1].saturating_sub(opened[1])];
    cell.set_breakers([lanes.reads.state, lanes.writes.state], more);
    now
}

/// Writes the number of subscribers, and what broadcasts did beyond what was `reported`; returns the new totals.
fn record_broadcasts(cell: WorkerCell<'_>, broadcasts: &BroadcastHub, reported: [u64; 5]) -> [u64; 5] {
    let figures = broadcasts.totals();
    cell.set_subscribers(figures.subscribers);
    let now = [figures.published, figures.delivered, figures.gaps, figures.catch_up_reads, figures.lagged];
    cell.add_broadcast_totals(std::array::from_fn(|index| now[index].saturating_sub(reported[index])));
    now
}

/// Writes whether Redis is there, and once for the fleet that it was reached.
pub(in crate::worker) fn record_redis(
    scoreboard: &Scoreboard,
    slot: usize,
    cell: usize,
    redis: &RedisClient,
) {
    let up = matches!(redis.status(), RedisStatus::Up);
    scoreboard.cell(slot, cell).set_redis_up(up);
    if up && !scoreboard.redis_ever_connected() {
        scoreboard.set_redis_ever_connected();
    }
}
