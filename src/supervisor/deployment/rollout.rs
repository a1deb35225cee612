//! A new generation on its way through the slots, one after another; pure.

use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::scoreboard::ExitReason;
use crate::status::document::RolloutKind;
use crate::supervisor::slots::plan::KillReason;
use crate::supervisor::slots::slot::{Slot, SlotListening, WorkerHandle, WorkerPhase};

/// What is new about the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentKind {
    /// Its configuration.
    Reload,
    /// Its program.
    Upgrade,
}

impl DeploymentKind {
    /// The verb's name, for sentences.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
        }
    }

    /// The kind of the event of its beginning.
    pub fn started_event(self) -> EventKind {
        match self {
            Self::Reload => EventKind::ReloadStarted,
            Self::Upgrade => EventKind::UpgradeRolloutStarted,
        }
    }

    /// The kind of the event of its good end.
    pub fn completed_event(self) -> EventKind {
        match self {
            Self::Reload => EventKind::ReloadCompleted,
            Self::Upgrade => EventKind::UpgradeCompleted,
        }
    }

    /// Why workers of another generation are replaced.
    pub fn replace_reason(self) -> ExitReason {
        match self {
            Self::Reload => ExitReason::Reload,
            Self::Upgrade => ExitReason::Upgrade,
        }
    }
}

impl From<DeploymentKind> for RolloutKind {
    fn from(kind: DeploymentKind) -> Self {
        match kind {
            DeploymentKind::Reload => Self::Reload,
            DeploymentKind::Upgrade => Self::Upgrade,
        }
    }
}

/// Which way a rollout goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutDirection {
    /// To the new generation.
    Forward,
    /// To the old one, because a worker of the new one failed.
    RollingBack,
}

/// One generation on its way through the slots.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rollout {
    /// What is new about it.
    pub kind: DeploymentKind,
    /// The generation that served before.
    pub from: u64,
    /// The new one.
    pub to: u64,
    /// When it was started.
    pub started: Duration,
}

/// A rollout as a handoff holds it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SavedRollout {
    #[serde(flatten)]
    rollout: Rollout,
    #[serde(rename = "course")]
    direction: SavedDirection,
}

/// Its direction, in the words of the handoff.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedDirection {
    Forward,
    Back { reason: String },
}

impl SavedRollout {
    /// `reason`: why it goes back, if it does.
    pub fn new(rollout: Rollout, reason: Option<String>) -> Self {
        let direction = reason.map_or(SavedDirection::Forward, |reason| SavedDirection::Back { reason });
        Self { rollout, direction }
    }

    /// The rollout, and why it goes back, if it does.
    pub fn into_parts(self) -> (Rollout, Option<String>) {
        match self.direction {
            SavedDirection::Forward => (self.rollout, None),
            SavedDirection::Back { reason } => (self.rollout, Some(reason)),
        }
    }
}

/// How far it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutProgress {
    /// This many slots of all have the wanted generation.
    InProgress {
        /// Slots that have it.
        completed: usize,
        /// All slots.
        total: usize,
        /// When the last probation ends, if only that is waited for.
        stable_at: Option<Duration>,
    },
    /// Every slot serves with the new generation.
    Completed,
    /// Every slot has the old generation again.
    RolledBack,
}

impl Rollout {
    /// The slot whose new worker has to survive the canary period before its old one leaves: the first, as long as no
    /// slot has the new generation. Not for a rollout that goes back: the old generation has served.
    pub fn canary_slot(&self, slots: &[Slot]) -> Option<usize> {
        let open = |slot: &Slot| slot.listening == SlotListening::Open;
        let tried = slots.iter().any(|slot| open(slot) && slot.generation == self.to);
        if tried { None } else { slots.iter().position(open) }
    }

    /// Whether the end of this worker means that the new generation is no good, while it goes forward.
    pub fn is_failed_by(&self, worker: &WorkerHandle, canary_period: Duration, now: Duration) -> bool {
        let young = match worker.phase {
            WorkerPhase::Killed { cause: KillReason::DrainTimeout, .. } => false,
            WorkerPhase::Booting { .. } | WorkerPhase::Killed { .. } | WorkerPhase::Hung { .. } => true,
            WorkerPhase::Ready { since } => now < since + canary_period,
            WorkerPhase::Draining { .. } => false,
        };
        worker.generation == self.to && young
    }

    /// How far it is.
    pub fn progress(
        &self,
        direction: RolloutDirection,
        slots: &[Slot],
        canary_period: Duration,
        now: Duration,
    ) -> RolloutProgress {
        let open: Vec<_> = slots.iter().filter(|slot| slot.listening == SlotListening::Open).collect();
        let desired = match direction {
            RolloutDirection::Forward => self.to,
            RolloutDirection::RollingBack => self.from,
        };
        let has = |slot: &&&Slot| slot.generation == desired;
        let (done, total) = (open.iter().filter(has).count(), open.len());
        let mut progress = RolloutProgress::InProgress { completed: done, total, stable_at: None };
        let serves = |of: &dyn Fn(&WorkerHandle) -> bool| {
            let serves = |worker: &WorkerHandle| of(worker) && (worker.is_ready() || worker.is_booting());
            open.iter().any(|slot| slot.workers.iter().any(serves))
        };
        match direction {
            // Until it drains, an old worker accepts: a client that has read the result would still reach it.
            RolloutDirection::Forward if serves(&|worker| worker.generation != self.to) => {}
            RolloutDirection::Forward
                if done == total && open.iter().all(|slot| slot.current_worker().is_some()) =>
            {
                let since = open.iter().filter_map(|slot| match slot.current_worker()?.phase {
                    WorkerPhase::Ready { since } => Some(since),
                    _ => None,
                });
                let stable_at = since.max().map_or(now, |since| since + canary_period);
                progress = if stable_at <= now {
                    RolloutProgress::Completed
                } else {
                    RolloutProgress::InProgress { completed: done, total, stable_at: Some(stable_at) }
                };
            }
            RolloutDirection::RollingBack
                if done == total && !serves(&|worker| worker.generation == self.to) =>
            {
                progress = RolloutProgress::RolledBack;
            }
            RolloutDirection::Forward | RolloutDirection::RollingBack => {}
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::Pid;

    const NOW: Duration = Duration::from_secs(100);
    const CANARY_PERIOD: Duration = Duration::from_secs(1);
    const FORWARD: RolloutDirection = RolloutDirection::Forward;
    const BACK: RolloutDirection = RolloutDirection::RollingBack;

    fn slot(generation: u64, workers: &[(u64, WorkerPhase)]) -> Slot {
        let occupant = |(cell, (generation, stage)): (usize, &(u64, WorkerPhase))| WorkerHandle {
            pid: Pid::from_raw(10 + cell as i32),
            generation: *generation,
            cell,
            phase: *stage,
            started: NOW,
            replace_reason: None,
        };
        Slot { workers: workers.iter().enumerate().map(occupant).collect(), ..Slot::new(generation) }
    }

    fn ready(seconds: u64) -> WorkerPhase {
        WorkerPhase::Ready { since: Duration::from_secs(seconds) }
    }

    const ROLLOUT: Rollout = Rollout { kind: DeploymentKind::Reload, from: 1, to: 2, started: NOW };

    #[test]
    fn it_is_completed_when_every_slot_serves_and_the_last_worker_is_stable() {
        let half = [slot(2, &[(2, ready(90))]), slot(1, &[(1, ready(50)), (2, ready(99))])];
        assert_eq!(ROLLOUT.canary_slot(&half), None);
        let progress = ROLLOUT.progress(FORWARD, &half, CANARY_PERIOD, NOW);
        assert_eq!(progress, RolloutProgress::InProgress { completed: 1, total: 2, stable_at: None });
        let young = [slot(2, &[(2, ready(90))]), slot(2, &[(2, ready(100))])];
        let stable_at = Some(NOW + CANARY_PERIOD);
        let progress = ROLLOUT.progress(FORWARD, &young, CANARY_PERIOD, NOW);
        assert_eq!(progress, RolloutProgress::InProgress { completed: 2, total: 2, stable_at });
        assert_eq!(
            ROLLOUT.progress(FORWARD, &young, CANARY_PERIOD, NOW + CANARY_PERIOD),
            RolloutProgress::Completed
        );
        let alone = [slot(2, &[(1, ready(50)), (2, ready(90))])];
        let progress = ROLLOUT.progress(FORWARD, &alone, CANARY_PERIOD, NOW);
        let waits = RolloutProgress::InProgress { completed: 1, total: 1, stable_at: None };
        assert_eq!(progress, waits, "the old worker of the only slot is not told to leave yet");
    }

    #[test]
    fn the_first_slot_is_the_canary_until_it_has_the_new_generation() {
        let slots = [slot(1, &[(1, ready(50))]), slot(1, &[(1, ready(50))])];
        assert_eq!(ROLLOUT.canary_slot(&slots), Some(0));
    }

    #[test]
    fn only_a_young_worker_of_the_new_generation_condemns_it() {
        let one = |generation, stage| slot(1, &[(generation, stage)]).workers[0].clone();
        assert!(ROLLOUT.is_failed_by(&one(2, WorkerPhase::Booting { deadline: NOW }), CANARY_PERIOD, NOW));
        assert!(ROLLOUT.is_failed_by(&one(2, ready(100)), CANARY_PERIOD, NOW));
        assert!(!ROLLOUT.is_failed_by(&one(2, ready(90)), CANARY_PERIOD, NOW));
        assert!(!ROLLOUT.is_failed_by(&one(1, ready(100)), CANARY_PERIOD, NOW));
    }

    #[test]
    fn it_is_taken_back_when_no_new_worker_serves_any_more() {
        let lingering = [slot(1, &[(1, ready(50)), (2, ready(99))])];
        assert!(matches!(
            ROLLOUT.progress(BACK, &lingering, CANARY_PERIOD, NOW),
            RolloutProgress::InProgress { .. }
        ));
        assert_eq!(
            ROLLOUT.progress(BACK, &[slot(1, &[(1, ready(50))])], CANARY_PERIOD, NOW),
            RolloutProgress::RolledBack
        );
    }

    #[test]
    fn a_saved_rollout_has_the_form_that_other_releases_read() {
        let json = r#"{"kind":"reload","from":1,"to":2,"course":{"back":{"reason":"it died"}},"started":{"secs":100,"nanos":0}}"#;
        let saved: SavedRollout = serde_json::from_str(json).unwrap();
        assert_eq!(saved.clone().into_parts(), (ROLLOUT, Some("it died".to_owned())));
        let written = serde_json::to_value(&saved).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(json).unwrap());
        let forward = serde_json::to_value(SavedRollout::new(ROLLOUT, None)).unwrap();
        assert_eq!(forward["course"], "forward");
    }
}
