//! What only the supervisor knows of the fleet, for `status` and `top`.

pub(in crate::supervisor) mod stats;

use std::time::Duration;

use crate::listener::SlotListeners;
use crate::status::build::SupervisorFacts;
use crate::status::document;
use crate::status::document::{InstanceState, InstanceStatus};
use crate::supervisor::Supervisor;
use crate::supervisor::deployment::rollout::{DeploymentKind, Rollout, RolloutDirection, RolloutProgress};
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::slots::slot::SlotListening;
use crate::sys::clock;

/// How much earlier a sample is taken when the loop is awake anyway: at rest it wakes up once a second, and not twice.
const SAMPLE_TOLERANCE: Duration = Duration::from_millis(100);

impl Supervisor<'_> {
    /// The fleet as it is now.
    pub(super) fn status(&self) -> InstanceStatus {
        let now = clock::monotonic();
        let snapshot = self.scoreboard.snapshot();
        let extra = SupervisorFacts {
            unix_ms: ms(clock::wall_clock()),
            monotonic_ms: ms(now),
            build: self.host.build().to_owned(),
            builds: self.builds.clone(),
            state: self.instance_state(),
            rollout: self.rollout.as_ref().map(|rollout| self.rollout_status(rollout, now)),
            last_rollout: self.last_rollout.clone(),
            workers: document::WorkerTotals {
                configured: self.configured_workers,
                target: self.desired_slots,
                min: self.settings.monitor.scaling.map_or(self.desired_slots, |scaling| scaling.min),
                max: self.settings.monitor.scaling.map_or(self.desired_slots, |scaling| scaling.max),
                autoscale: self.scaling_decision.clone(),
                ready: 0,
            },
            private_redis_pid: self
                .private_redis
                .as_ref()
                .and_then(|private| Some(private.pid?.as_raw().unsigned_abs())),
            slots: self.slot_openness(),
            rates: self.rate_window.rates(now, &snapshot),
        };
        InstanceStatus::from_snapshot(&snapshot, &extra)
    }

    fn instance_state(&self) -> InstanceState {
        match self.desired_state {
            DesiredState::Stopping | DesiredState::Killing => InstanceState::Stopping,
            DesiredState::Running if self.rollout.is_some() => InstanceState::RollingOut,
            DesiredState::Running if self.announced => InstanceState::Serving,
            DesiredState::Running => InstanceState::Starting,
        }
    }

    fn rollout_status(&self, rollout: &Rollout, now: Duration) -> document::RolloutStatus {
        let total = self.open_slot_count();
        let (done, total) = match rollout.progress(&self.slots, self.settings.canary_period, now) {
            RolloutProgress::InProgress { completed: done, total, .. } => (done, total),
            RolloutProgress::Completed | RolloutProgress::RolledBack => (total, total),
        };
        let ago = now.saturating_sub(rollout.started);
        document::RolloutStatus {
            kind: rollout_kind(rollout.kind),
            generation: rollout.desired_generation(),
            done,
            total,
            started_ms: ms(clock::wall_clock().saturating_sub(ago)),
        }
    }

    /// Of each slot, whether new connections may come, and how many wait.
    fn slot_openness(&self) -> Vec<(bool, Option<u64>)> {
        let openness = |index: usize| {
            let slot = &self.slots[index];
            let open = slot.listening == SlotListening::Open
                && self.steered_slots.get(index).copied().unwrap_or(true);
            let waiting = self.sockets[index].as_ref().and_then(SlotListeners::queued_connections);
            (open, waiting)
        };
        (0..self.slots.len()).map(openness).collect()
    }

    /// Remembers how a rollout ended.
    pub(super) fn record_finished(&mut self, rollout: &Rollout) {
        let (outcome, reason) = match &rollout.direction {
            RolloutDirection::Forward => (document::RolloutOutcome::Done, None),
            RolloutDirection::RollingBack { reason } => {
                (document::RolloutOutcome::RolledBack, Some(reason.clone()))
            }
        };
        let finished_ms = ms(clock::wall_clock());
        let kind = rollout_kind(rollout.kind);
        let generation = rollout.to;
        self.last_rollout =
            Some(document::FinishedRollout { kind, generation, outcome, reason, finished_ms });
    }

    /// Takes the samples that rates are made of, once a second; when the next one is due.
    pub(super) fn sample_rates(&mut self, now: Duration) -> Option<Duration> {
        if self.rate_window.next_sample_at().is_none_or(|at| at <= now + SAMPLE_TOLERANCE) {
            self.rate_window.record(now, &self.scoreboard.snapshot());
        }
        self.rate_window.next_sample_at()
    }
}

fn rollout_kind(kind: DeploymentKind) -> document::RolloutKind {
    match kind {
        DeploymentKind::Reload => document::RolloutKind::Reload,
        DeploymentKind::Upgrade => document::RolloutKind::Upgrade,
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
