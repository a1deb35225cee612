//! Clocks, read only at the edges; cores take the time as a value.

use std::time::Duration;

use nix::time::ClockId;

/// The monotonic clock, the same in every process of the machine; `clock_gettime(2)`.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Unix time; only for people to read, because it can step.
pub fn unix() -> Duration {
    read(ClockId::CLOCK_REALTIME)
}

/// CPU time this process has used.
pub fn cpu() -> Duration {
    read(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

fn read(clock: ClockId) -> Duration {
    // These clocks exist on every Linux; a failure would mean another kernel.
    nix::time::clock_gettime(clock).map(Duration::from).unwrap_or_default()
}
