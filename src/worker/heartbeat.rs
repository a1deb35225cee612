//! The worker's sign of life in its slot's row, from the very loop that serves requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::runtime::RuntimeMetrics;
use tokio::time::MissedTickBehavior;

use crate::broadcast::Hub;
use crate::redis::Health;
use crate::redis::Redis;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Cell;
use crate::sys::proc;
use crate::sys::time;

/// Time between two beats.
const BEAT: Duration = Duration::from_millis(250);

/// Beats between two looks at the memory: reading it costs some 100 µs.
const MEMORY_EVERY: u32 = 8;

/// Beats for ever.
pub(super) async fn beat(
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
    redis: Redis,
    broadcasts: Hub,
) {
    let mut interval = tokio::time::interval(BEAT);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let runtime = Handle::current().metrics();
    let mut memory = 0;
    let (mut opened, mut told) = ([0; 2], [0; 5]);
    for count in 0_u32.. {
        if count % MEMORY_EVERY == 0 {
            memory = proc::private_memory().unwrap_or(memory);
        }
        note_redis(&scoreboard, slot, cell, &redis);
        opened = note_lanes(&scoreboard, slot, cell, &redis, opened);
        let now_ms = u64::try_from(time::monotonic().as_millis()).unwrap_or(u64::MAX);
        let cpu_us = u64::try_from(time::cpu().as_micros()).unwrap_or(u64::MAX);
        told = note_broadcasts(scoreboard.cell(slot, cell), &broadcasts, told);
        scoreboard.cell(slot, cell).beat(now_ms, memory, cpu_us, busy_us(&runtime));
        interval.tick().await;
    }
}

/// Time the event loop was at work and not waiting, microseconds.
fn busy_us(runtime: &RuntimeMetrics) -> u64 {
    u64::try_from(runtime.worker_total_busy_duration(0).as_micros()).unwrap_or(u64::MAX)
}

/// Writes where the breakers stand, and what has been added to how often they `opened`; returns that.
fn note_lanes(
    scoreboard: &Scoreboard,
    slot: usize,
    cell: usize,
    redis: &Redis,
    opened: [u64; 2],
) -> [u64; 2] {
    let lanes = redis.lanes();
    let now = [lanes.reads.opened, lanes.writes.opened];
    let more = [now[0].saturating_sub(opened[0]), now[1].saturating_sub(opened[1])];
    scoreboard.cell(slot, cell).set_redis_lanes([lanes.reads.position, lanes.writes.position], more);
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
