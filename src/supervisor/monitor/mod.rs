//! The health of the workers: samples once a second, or more often when one is silent.
//!
//! `hang`, `recycling` and `autoscaler` decide and are pure; `tick` keeps their figures from one sample to the next and says
//! what is new. The driver has that become a worker's phase, its replacement or another number of slots.

pub mod autoscaler;
pub mod hang;
pub mod recycling;
pub mod settings;
#[cfg(test)]
mod tests;
pub(in crate::supervisor) mod tick;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::scoreboard::cell::LoopProgress;
use crate::scoreboard::snapshot::CellSnapshot;
use crate::status::document::ScalingDecision;
use crate::supervisor::monitor::autoscaler::Autoscaler;
pub use crate::supervisor::monitor::settings::MonitorSettings;
use crate::supervisor::slots::slot::{Slot, WorkerHandle};
use crate::sys::pressure::ResourcePressure;
use crate::sys::process::Pid;

/// What is recorded between two samples.
#[derive(Debug)]
pub(super) struct HealthMonitor {
    /// When the next sample is due.
    due: Duration,
    pub(super) trackers: BTreeMap<Pid, WorkerTrackers>,
    autoscaler: Option<Autoscaler>,
    /// What autoscaling decided last.
    pub(super) scaling_decision: Option<ScalingDecision>,
    /// The number a dry run logged last.
    last_advice: usize,
    pressure: ResourcePressure,
    /// Since when some worker has been silent, and how long tasks had waited for a CPU by then.
    silent_since: Option<(Duration, Duration)>,
    /// Processes of this control group that the kernel has killed for memory, as far as each is accounted for.
    memory_kills: Option<u64>,
}

/// One worker.
#[derive(Debug)]
pub(super) struct WorkerTrackers {
    pub(super) hang: hang::HangDetector,
    recycle: recycling::RecycleTracker,
    /// Whether it may hang, so that new connections go elsewhere.
    pub(super) suspect: bool,
}

/// A worker that serves, as one sample finds it.
#[derive(Debug)]
pub(super) struct ServingWorker {
    pub(super) slot: usize,
    pub(super) pid: Pid,
    pub(super) since: Duration,
    /// Whether it is known to hang.
    pub(super) is_hung: bool,
    /// Whether it is to retire already.
    pub(super) is_retiring: bool,
    pub(super) progress: LoopProgress,
    pub(super) snapshot: CellSnapshot,
}

impl ServingWorker {
    /// Its last sign of life; becoming READY is one.
    pub(super) fn last_heartbeat(&self) -> Duration {
        Duration::from_millis(self.snapshot.heartbeat_ms).max(self.since)
    }
}

impl HealthMonitor {
    pub(super) fn new() -> Self {
        let pressure = ResourcePressure::discover();
        Self {
            due: Duration::ZERO,
            trackers: BTreeMap::new(),
            autoscaler: None,
            scaling_decision: None,
            last_advice: 0,
            memory_kills: pressure.oom_kills(),
            pressure,
            silent_since: None,
        }
    }

    /// The share of the time since workers fell silent in which some task of the machine, or of the control group,
    /// waited for a CPU: logged with a hang, for its diagnosis.
    pub(super) fn cpu_pressure(&mut self, now: Duration) -> Option<f64> {
        let waited = self.pressure.cpu_wait()?;
        let (since, before) = *self.silent_since.get_or_insert((now, waited));
        let passed = now.saturating_sub(since).as_secs_f64();
        (passed > 0.0).then(|| waited.saturating_sub(before).as_secs_f64() / passed)
    }

    /// Whether new connections are steered around this slot: its worker may hang.
    pub(super) fn avoids_slot(&self, slot: &Slot) -> bool {
        let is_suspect = |pid: Pid| self.trackers.get(&pid).is_some_and(|watch| watch.suspect);
        let mut serving = slot.workers.iter().filter(|worker| worker.is_ready()).peekable();
        match serving.peek() {
            Some(_) => serving.all(|worker| is_suspect(worker.pid)),
            None => slot.workers.iter().any(WorkerHandle::is_hung),
        }
    }

    /// The load is watched for a whole window before the next decision.
    pub(super) fn reset_autoscaler(&mut self) {
        self.autoscaler = None;
    }

    /// Whether the kernel has killed one more process of this control group for want of memory than was accounted for:
    /// one kill explains one death.
    pub(super) fn account_memory_kill(&mut self) -> bool {
        let Some((known, killed)) = self.memory_kills.as_mut().zip(self.pressure.oom_kills()) else {
            return false;
        };
        let more = killed > *known;
        *known += u64::from(more);
        more
    }
}
