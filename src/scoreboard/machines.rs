//! How many machines the fleet has, for workers that have to know it while Redis is away.

use std::sync::atomic::Ordering::Relaxed;

use crate::scoreboard::Scoreboard;

/// Word of the head.
const HEAD_INSTANCES: usize = 14;

impl Scoreboard {
    /// Machines that share the fleet's limits, this one included; 1 where none was ever heard of.
    pub fn instance_count(&self) -> u64 {
        self.head(HEAD_INSTANCES).load(Relaxed).max(1)
    }

    /// Written by the worker that speaks for the machine, whenever Redis says how many there are.
    pub fn set_instance_count(&self, instances: u64) {
        self.head(HEAD_INSTANCES).store(instances, Relaxed);
    }
}
