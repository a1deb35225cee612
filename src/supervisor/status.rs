//! What only the supervisor knows of the fleet, for `status` and `top`.

use std::time::Duration;

use crate::control::status;
use crate::control::status::FleetState;
use crate::control::status::Status;
use crate::control::survey::Extra;
use crate::listener::SlotListeners;
use crate::supervisor::Supervisor;
use crate::supervisor::plan::Target;
use crate::supervisor::rollout::Course;
use crate::supervisor::rollout::Kind;
use crate::supervisor::rollout::Rollout;
use crate::supervisor::rollout::Standing;
use crate::supervisor::slot::Seat;
use crate::sys::time;

/// How much earlier a sample is taken when the loop is awake anyway: at rest it wakes up once a second, and not twice.
const SAMPLED_EARLY: Duration = Duration::from_millis(100);

impl Supervisor<'_> {
    /// The fleet as it is now.
    pub(super) fn status(&self) -> Status {
        let now = time::monotonic();
        let snapshot = self.scoreboard.snapshot();
        let extra = Extra {
            unix_ms: ms(time::unix()),
            monotonic_ms: ms(now),
            build: self.host.build().to_owned(),
            builds: self.builds.clone(),
            state: self.state(),
            rollout: self.rollout.as_ref().map(|rollout| self.under_way(rollout, now)),
            last_rollout: self.last_rollout.clone(),
            workers: status::Workers {
                configured: self.configured,
                target: self.wanted,
                min: self.settings.care.scaling.map_or(self.wanted, |scaling| scaling.min),
                max: self.settings.care.scaling.map_or(self.wanted, |scaling| scaling.max),
                autoscale: self.decided.clone(),
                ready: 0,
            },
            private_redis_pid: self
                .private
                .as_ref()
                .and_then(|private| Some(private.pid?.as_raw().unsigned_abs())),
            slots: self.doors(),
            rates: self.window.rates(now, &snapshot),
        };
        Status::new(&snapshot, &extra)
    }

    fn state(&self) -> FleetState {
        match self.target {
            Target::Stop | Target::StopNow => FleetState::Stopping,
            Target::Serve if self.rollout.is_some() => FleetState::RollingOut,
            Target::Serve if self.announced => FleetState::Serving,
            Target::Serve => FleetState::Starting,
        }
    }

    fn under_way(&self, rollout: &Rollout, now: Duration) -> status::Rollout {
        let total = self.open_slots();
        let (done, total) = match rollout.standing(&self.slots, self.settings.probation, now) {
            Standing::UnderWay { done, total, .. } => (done, total),
            Standing::Done | Standing::TakenBack => (total, total),
        };
        let ago = now.saturating_sub(rollout.started);
        status::Rollout {
            kind: kind(rollout.kind),
            generation: rollout.wanted(),
            done,
            total,
            started_ms: ms(time::unix().saturating_sub(ago)),
        }
    }

    /// Of each slot, whether new connections may come, and how many wait.
    fn doors(&self) -> Vec<(bool, Option<u64>)> {
        let door = |index: usize| {
            let slot = &self.slots[index];
            let open = slot.seat == Seat::Open && self.steered.get(index).copied().unwrap_or(true);
            let waiting = self.sockets[index].as_ref().and_then(SlotListeners::waiting);
            (open, waiting)
        };
        (0..self.slots.len()).map(door).collect()
    }

    /// Remembers how a rollout ended.
    pub(super) fn remember(&mut self, rollout: &Rollout) {
        let (outcome, reason) = match &rollout.course {
            Course::Forward => (status::RolloutOutcome::Done, None),
            Course::Back { reason } => (status::RolloutOutcome::RolledBack, Some(reason.clone())),
        };
        let ended_ms = ms(time::unix());
        let kind = kind(rollout.kind);
        let generation = rollout.to;
        self.last_rollout = Some(status::Finished { kind, generation, outcome, reason, ended_ms });
    }

    /// Takes the samples that rates are made of, once a second; when the next one is due.
    pub(super) fn sample(&mut self, now: Duration) -> Option<Duration> {
        if self.window.next_at().is_none_or(|at| at <= now + SAMPLED_EARLY) {
            self.window.note(now, &self.scoreboard.snapshot());
        }
        self.window.next_at()
    }
}

fn kind(kind: Kind) -> status::RolloutKind {
    match kind {
        Kind::Reload => status::RolloutKind::Reload,
        Kind::Upgrade => status::RolloutKind::Upgrade,
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
