//! How many machines the fleet has, for workers that have to know it while Redis is away.

use std::sync::atomic::Ordering::Relaxed;

use crate::scoreboard::Scoreboard;

/// Word of the head.
const MACHINES: usize = 14;

impl Scoreboard {
    /// Machines that share the fleet's limits, this one included; 1 where none was ever heard of.
    pub fn machines(&self) -> u64 {
        self.head(MACHINES).load(Relaxed).max(1)
    }

    /// Written by the worker that speaks for the machine, whenever Redis says how many there are.
    pub fn set_machines(&self, machines: u64) {
        self.head(MACHINES).store(machines, Relaxed);
    }
}
