//! How many workers a configuration means on this machine.

use crate::config::settings::{Config, WorkerCount, WorkersConfig};
use crate::sys::cpu;

/// The number of slots to begin with.
pub fn initial_slots(config: &Config) -> usize {
    config.workers.autoscale.slot_bounds(configured_workers(&config.workers)).1
}

/// The number of workers as configured, or as the cores allow.
pub(super) fn configured_workers(workers: &WorkersConfig) -> usize {
    match workers.count {
        WorkerCount::Auto => cpu::available_cores(),
        WorkerCount::Fixed(count) => count,
    }
}
