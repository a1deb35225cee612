//! The status of the fleet, with what only the supervisor knows.

use std::time::Duration;

use crate::listener::SlotListeners;
use crate::status::build::StatusFacts;
use crate::status::document;
use crate::status::document::{InstanceState, InstanceStatus};
use crate::supervisor::Supervisor;
use crate::supervisor::deployment::rollout::RolloutProgress;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::slots::slot::SlotListening;
use crate::sys::clock;

impl Supervisor<'_> {
    /// The fleet as it is now.
    pub(in crate::supervisor) fn status(&self) -> InstanceStatus {
        let now = clock::monotonic();
        let snapshot = self.scoreboard.snapshot();
        let bounds = self.settings.monitor.scaling;
        let extra = StatusFacts {
            unix_ms: ms(clock::wall_clock()),
            monotonic_ms: ms(now),
            build: self.host.build().to_owned(),
            builds: Some(self.deployment.builds().clone()),
            state: self.instance_state(),
            rollout: self.rollout_status(now),
            last_rollout: self.deployment.last().cloned(),
            workers: document::WorkerTotals {
                configured: Some(self.slots.configured),
                target: self.slots.desired,
                min: Some(bounds.map_or(self.slots.desired, |scaling| scaling.min)),
                max: Some(bounds.map_or(self.slots.desired, |scaling| scaling.max)),
                autoscale: self.monitor.scaling_decision.clone(),
                ready: 0,
            },
            private_redis_pid: self
                .private_redis
                .as_ref()
                .and_then(|private| Some(private.pid?.as_raw().unsigned_abs())),
            slots: self.slot_openness(),
            rates: self.reporting.rate_window.rates(now, &snapshot),
        };
        InstanceStatus::from_snapshot(&snapshot, &extra)
    }

    fn instance_state(&self) -> InstanceState {
        match self.lifecycle.desired_state {
            DesiredState::Stopping | DesiredState::Killing => InstanceState::Stopping,
            DesiredState::Running if self.deployment.rollout().is_some() => InstanceState::RollingOut,
            DesiredState::Running if self.lifecycle.announced => InstanceState::Serving,
            DesiredState::Running => InstanceState::Starting,
        }
    }

    fn rollout_status(&self, now: Duration) -> Option<document::RolloutStatus> {
        let rollout = self.deployment.rollout()?;
        let total = self.slots.open_count();
        let (done, total) =
            match self.deployment.progress(&self.slots.entries, self.settings.canary_period, now)? {
                RolloutProgress::InProgress { completed: done, total, .. } => (done, total),
                RolloutProgress::Completed | RolloutProgress::RolledBack => (total, total),
            };
        let ago = now.saturating_sub(rollout.started);
        Some(document::RolloutStatus {
            kind: rollout.kind.into(),
            generation: self.deployment.generation(),
            done,
            total,
            started_ms: ms(clock::wall_clock().saturating_sub(ago)),
        })
    }

    /// Of each slot, whether new connections may come, and how many wait.
    fn slot_openness(&self) -> Vec<(bool, Option<u64>)> {
        let openness = |index: usize| {
            let slot = &self.slots.entries[index];
            let open = slot.listening == SlotListening::Open
                && self.slots.steered.get(index).copied().unwrap_or(true);
            let waiting = self.slots.sockets[index].as_ref().and_then(SlotListeners::queued_connections);
            (open, waiting)
        };
        (0..self.slots.entries.len()).map(openness).collect()
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
