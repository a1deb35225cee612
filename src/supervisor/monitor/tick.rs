//! The monitor's turn: what it finds in one sample of every serving worker.

use std::time::Duration;

use crate::status::document::ScalingDecision;
use crate::supervisor::effects::unix_ms;
use crate::supervisor::monitor::autoscaler::{AutoscaleDecision, AutoscaleSettings, Autoscaler, LoadSample};
use crate::supervisor::monitor::hang::{HangDetector, HangSample, HangStatus, Stall};
use crate::supervisor::monitor::recycling::{RecycleDecision, RecycleLimits, RecycleTracker};
use crate::supervisor::monitor::settings::MonitorSettings;
use crate::supervisor::monitor::{HealthMonitor, ServingWorker, WorkerTrackers, hang};
use crate::sys::thread::ThreadSample;

/// What follows from one look at a worker that may hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum HangFinding {
    /// Nothing that was not known.
    Unchanged,
    /// It may hang: new connections go elsewhere.
    Suspect(Stall),
    /// It hangs.
    Hung(Stall),
    /// It hangs and is beyond hope.
    Lost,
    /// It moves again, or its hangs are no longer of interest.
    Recovered,
}

impl HealthMonitor {
    /// Monitors nothing until the next sample.
    pub(in crate::supervisor) fn stop(&mut self) {
        self.trackers.clear();
    }

    /// When the next sample is due.
    pub(in crate::supervisor) fn due(&self) -> Duration {
        self.due
    }

    /// Begins a sample of these workers.
    pub(in crate::supervisor) fn start_sample(&mut self, seen: &[ServingWorker], now: Duration) {
        self.trackers.retain(|pid, _| seen.iter().any(|worker| worker.pid == *pid));
        if !seen.iter().any(|worker| hang::is_overdue(worker.last_heartbeat(), now)) {
            self.silent_since = None;
        } else if self.silent_since.is_none() {
            self.cpu_pressure(now);
        }
    }

    /// Ends it; the next one is earlier when a worker is silent.
    pub(in crate::supervisor) fn finish_sample(&mut self, settings: &MonitorSettings, now: Duration) {
        let silent = self.trackers.values().any(|watch| watch.hang.is_silent());
        self.due = now + settings.tick_interval(silent);
    }

    fn trackers(&mut self, worker: &ServingWorker) -> &mut WorkerTrackers {
        self.trackers.entry(worker.pid).or_insert_with(|| WorkerTrackers {
            hang: HangDetector::default(),
            recycle: RecycleTracker::new(worker.slot, worker.pid.as_raw().unsigned_abs()),
            suspect: false,
        })
    }

    /// Does it hang? `thread`: what its main thread does, asked when that matters.
    pub(in crate::supervisor) fn check_hang(
        &mut self,
        worker: &ServingWorker,
        sample: &HangSample,
        settings: &MonitorSettings,
        now: Duration,
        thread: impl FnOnce() -> Option<ThreadSample>,
    ) -> HangFinding {
        let Some(patience) = settings.hang_thresholds() else {
            // A reload has switched the watch off: one that hangs is a worker like any other again.
            if let Some(watch) = self.trackers.get_mut(&worker.pid) {
                (watch.hang, watch.suspect) = (HangDetector::default(), false);
            }
            return if worker.is_hung { HangFinding::Recovered } else { HangFinding::Unchanged };
        };
        let watch = self.trackers(worker);
        let Some(status) = watch.hang.observe(sample, patience, now, thread) else {
            return HangFinding::Unchanged;
        };
        let was = std::mem::replace(&mut watch.suspect, status != HangStatus::Healthy);
        match status {
            HangStatus::Healthy if worker.is_hung || was => HangFinding::Recovered,
            HangStatus::Lost(_) if worker.is_hung => HangFinding::Lost,
            HangStatus::Hung(stall) | HangStatus::Lost(stall) if !worker.is_hung => HangFinding::Hung(stall),
            HangStatus::Suspect(stall) if !was && !worker.is_hung => HangFinding::Suspect(stall),
            HangStatus::Healthy | HangStatus::Suspect(_) | HangStatus::Hung(_) | HangStatus::Lost(_) => {
                HangFinding::Unchanged
            }
        }
    }

    /// Has it done enough, or does it hold too much? `memory`: what it holds, asked when that matters. `in_rollout`: one
    /// change at a time, what a rollout brings in has to prove itself first.
    pub(in crate::supervisor) fn check_recycling(
        &mut self,
        worker: &ServingWorker,
        limits: &RecycleLimits,
        in_rollout: bool,
        now: Duration,
        memory: impl FnOnce() -> Option<u64>,
    ) -> RecycleDecision {
        let watch = &mut self.trackers(worker).recycle;
        let age = now.saturating_sub(worker.since);
        let mut decision = watch.check_age_and_requests(limits, worker.snapshot.requests, age);
        // A worker that is stuck while it takes memory does not tell: it is looked at from outside.
        if watch.needs_memory_sample(limits, now)
            && let Some(held) = memory()
        {
            let by_memory = watch.check_memory(limits, held, now);
            if matches!(by_memory, RecycleDecision::Kill(_)) || decision == RecycleDecision::Keep {
                decision = by_memory;
            }
        }
        match decision {
            RecycleDecision::Replace(_) if worker.is_retiring || in_rollout => RecycleDecision::Keep,
            other => other,
        }
    }

    /// The number of workers that the load wants, if that is to be changed. `most`: what the fleet has room for.
    pub(in crate::supervisor) fn check_load(
        &mut self,
        load: &LoadSample,
        settings: AutoscaleSettings,
        dry_run: bool,
        now: Duration,
    ) -> Option<AutoscaleDecision> {
        let autoscaler = match &mut self.autoscaler {
            Some(autoscaler) if autoscaler.settings() == settings => autoscaler,
            other => other.insert(Autoscaler::new(settings)),
        };
        let AutoscaleDecision { target, reason } = autoscaler.observe(load, now)?;
        let from = load.target;
        self.scaling_decision = Some(ScalingDecision { target, reason: reason.clone(), at_ms: unix_ms() });
        if dry_run {
            let advised = std::mem::replace(&mut self.last_advice, target);
            if advised != target && target != from {
                tracing::info!(from, to = target, %reason, "autoscaling would go from {from} to {target} workers: {reason}");
            }
            return None;
        }
        if target == from {
            tracing::debug!(workers = from, %reason, "autoscaling keeps {from} workers: {reason}");
            return None;
        }
        tracing::info!(from, to = target, %reason, "autoscaling goes from {from} to {target} workers: {reason}");
        Some(AutoscaleDecision { target, reason })
    }
}
