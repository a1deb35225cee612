//! The worker's sign of life in its slot's row, from the very loop that serves requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::runtime::RuntimeMetrics;
use tokio::time::MissedTickBehavior;

use crate::redis::Health;
use crate::redis::Redis;
use crate::scoreboard::Scoreboard;
use crate::sys::proc;
use crate::sys::time;

/// Time between two beats.
const BEAT: Duration = Duration::from_millis(250);

/// Beats between two looks at the memory: reading it costs some 100 µs.
const MEMORY_EVERY: u32 = 8;

/// Beats for ever.
pub(super) async fn beat(scoreboard: Arc<Scoreboard>, slot: usize, cell: usize, redis: Redis) {
    let mut interval = tokio::time::interval(BEAT);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let runtime = Handle::current().metrics();
    let mut memory = 0;
    for count in 0_u32.. {
        if count % MEMORY_EVERY == 0 {
            memory = proc::private_memory().unwrap_or(memory);
        }
        note_redis(&scoreboard, slot, cell, &redis);
        let now_ms = u64::try_from(time::monotonic().as_millis()).unwrap_or(u64::MAX);
        let cpu_us = u64::try_from(time::cpu().as_micros()).unwrap_or(u64::MAX);
        scoreboard.cell(slot, cell).beat(now_ms, memory, cpu_us, busy_us(&runtime));
        interval.tick().await;
    }
}

/// Time the event loop was at work and not waiting, microseconds.
fn busy_us(runtime: &RuntimeMetrics) -> u64 {
    u64::try_from(runtime.worker_total_busy_duration(0).as_micros()).unwrap_or(u64::MAX)
}

/// Writes whether Redis is there, and once for the fleet that it was reached.
pub(super) fn note_redis(scoreboard: &Scoreboard, slot: usize, cell: usize, redis: &Redis) {
    let up = matches!(redis.health(), Health::Up);
    scoreboard.cell(slot, cell).set_redis_up(up);
    if up && !scoreboard.redis_reached() {
        scoreboard.set_redis_reached();
    }
}
