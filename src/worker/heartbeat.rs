//! The worker's sign of life in its slot's row, from the very loop that serves requests.
//!
//! It is part of the runtime's root future and no task: a task waits behind all that are queued, which under load are
//! thousands, while the runtime looks at its root future whenever it was woken, at most 61 tasks later.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::runtime::RuntimeMetrics;

use crate::broadcast::Hub;
use crate::redis::Health;
use crate::redis::Redis;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Cell;
use crate::sys::proc;
use crate::sys::time;
use crate::worker::Start;
use crate::worker::ticks;

/// Time between two beats, in ticks: 640 ms. Without one for a second a worker gets no new connections.
pub(super) const BEAT: u32 = 10;

/// Beats between two looks at the memory.
const MEMORY_EVERY: u32 = 4;

/// What a worker writes into its cell from time to time.
pub(super) struct Heartbeat {
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
    redis: Redis,
    broadcasts: Hub,
    memory: u64,
    /// How often the breakers had opened, and what broadcasts had done, when it was last written.
    opened: [u64; 2],
    broadcast: [u64; 5],
    absences: [u64; 2],
}

impl Heartbeat {
    pub(super) fn new(start: &Start, redis: &Redis, broadcasts: &Hub) -> Self {
        Self {
            scoreboard: Arc::clone(&start.scoreboard),
            slot: start.slot,
            cell: start.cell,
            redis: redis.clone(),
            broadcasts: broadcasts.clone(),
            memory: 0,
            opened: [0; 2],
            broadcast: [0; 5],
            absences: [0; 2],
        }
    }

    /// Beats as long as `life` goes on. Must be awaited in the root future, and never in a task.
    pub(super) async fn beside<T>(self, life: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            never = self.beat() => match never {},
            outcome = life => outcome,
        }
    }

    async fn beat(mut self) -> Infallible {
        let mut ticks = ticks::every(BEAT * time::TICK);
        let runtime = Handle::current().metrics();
        let mut count = 0_u32;
        loop {
            if count.is_multiple_of(MEMORY_EVERY) {
                self.memory = proc::anonymous_memory().unwrap_or(self.memory);
            }
            count = count.wrapping_add(1);
            self.write(&runtime);
            ticks.tick().await;
        }
    }

    fn write(&mut self, runtime: &RuntimeMetrics) {
        let cell = self.scoreboard.cell(self.slot, self.cell);
        note_redis(&self.scoreboard, self.slot, self.cell, &self.redis);
        self.opened = note_lanes(cell, &self.redis, self.opened);
        self.broadcast = note_broadcasts(cell, &self.broadcasts, self.broadcast);
        let absences = self.redis.absences();
        let now = [absences.silences, absences.waited];
        let before = std::mem::replace(&mut self.absences, now);
        cell.add_redis_absences(std::array::from_fn(|index| now[index].saturating_sub(before[index])));
        let now_ms = u64::try_from(time::monotonic().as_millis()).unwrap_or(u64::MAX);
        let cpu_us = u64::try_from(time::cpu().as_micros()).unwrap_or(u64::MAX);
        cell.beat(now_ms, self.memory, cpu_us, busy_us(runtime));
    }
}

/// Time the event loop was at work and not waiting, microseconds.
fn busy_us(runtime: &RuntimeMetrics) -> u64 {
    u64::try_from(runtime.worker_total_busy_duration(0).as_micros()).unwrap_or(u64::MAX)
}

/// Writes where the breakers stand, and what has been added to how often they `opened`; returns that.
fn note_lanes(cell: Cell<'_>, redis: &Redis, opened: [u64; 2]) -> [u64; 2] {
    let lanes = redis.lanes();
    let now = [lanes.reads.opened, lanes.writes.opened];
    let more = [now[0].saturating_sub(opened[0]), now[1].saturating_sub(opened[1])];
    cell.set_redis_lanes([lanes.reads.position, lanes.writes.position], more);
    now
}

/// Writes who subscribes, and what broadcasts did beside what was `told`; returns that.
fn note_broadcasts(cell: Cell<'_>, broadcasts: &Hub, told: [u64; 5]) -> [u64; 5] {
    let figures = broadcasts.figures();
    cell.set_subscribers(figures.subscribers);
    let now = [figures.published, figures.delivered, figures.gaps, figures.gaps_read, figures.slow];
    cell.add_broadcasts(std::array::from_fn(|index| now[index].saturating_sub(told[index])));
    now
}

/// Writes whether Redis is there, and once for the fleet that it was reached.
pub(super) fn note_redis(scoreboard: &Scoreboard, slot: usize, cell: usize, redis: &Redis) {
    let up = matches!(redis.health(), Health::Up);
    scoreboard.cell(slot, cell).set_redis_up(up);
    if up && !scoreboard.redis_reached() {
        scoreboard.set_redis_reached();
    }
}
