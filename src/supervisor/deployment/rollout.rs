//! A new generation on its way through the slots, one after another; pure.

use std::time::Duration;

use crate::scoreboard::ExitReason;
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
    pub fn started_event(self) -> &'static str {
        match self {
            Self::Reload => "reload_began",
            Self::Upgrade => "upgrade_began",
        }
    }

    /// The kind of the event of its good end.
    pub fn completed_event(self) -> &'static str {
        match self {
            Self::Reload => "reload_done",
            Self::Upgrade => "upgrade_done",
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

/// Which way it goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutDirection {
    /// To the new generation.
    Forward,
    /// Back to the old one: a new worker failed.
    #[serde(rename = "back")]
    RollingBack {
        /// How.
        reason: String,
    },
}

/// One generation on its way.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rollout {
    /// What is new about it.
    pub kind: DeploymentKind,
    /// The generation that served before.
    pub from: u64,
    /// The new one.
    pub to: u64,
    /// Which way it goes.
    #[serde(rename = "course")]
    pub direction: RolloutDirection,
    /// When it began.
    pub started: Duration,
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
    /// The generation that is wanted now.
    pub fn desired_generation(&self) -> u64 {
        match self.direction {
            RolloutDirection::Forward => self.to,
            RolloutDirection::RollingBack { .. } => self.from,
        }
    }

    /// The slot whose new worker has to survive its probation before its old one leaves: the first, as long as no slot
    /// has the new generation. The old generation has proven itself and needs none.
    pub fn canary_slot(&self, slots: &[Slot]) -> Option<usize> {
        let tried =
            slots.iter().any(|slot| slot.listening == SlotListening::Open && slot.generation == self.to);
        match self.direction {
            RolloutDirection::Forward if !tried => {
                slots.iter().position(|slot| slot.listening == SlotListening::Open)
            }
            RolloutDirection::Forward | RolloutDirection::RollingBack { .. } => None,
        }
    }

    /// Whether the end of this worker means that the new generation is no good.
    pub fn is_failed_by(&self, worker: &WorkerHandle, probation: Duration, now: Duration) -> bool {
        let young = match worker.phase {
            WorkerPhase::Killed { cause: KillReason::DrainTimeout, .. } => false,
            WorkerPhase::Booting { .. } | WorkerPhase::Killed { .. } | WorkerPhase::Hung { .. } => true,
            WorkerPhase::Ready { since } => now < since + probation,
            WorkerPhase::Draining { .. } => false,
        };
        self.direction == RolloutDirection::Forward && worker.generation == self.to && young
    }

    /// How far it got.
    pub fn progress(&self, slots: &[Slot], probation: Duration, now: Duration) -> RolloutProgress {
        let open: Vec<_> = slots.iter().filter(|slot| slot.listening == SlotListening::Open).collect();
        let desired = self.desired_generation();
        let has = |slot: &&&Slot| slot.generation == desired;
        let (done, total) = (open.iter().filter(has).count(), open.len());
        let mut progress = RolloutProgress::InProgress { completed: done, total, stable_at: None };
        let serves = |of: &dyn Fn(&WorkerHandle) -> bool| {
            let serves = |worker: &WorkerHandle| of(worker) && (worker.is_ready() || worker.is_booting());
            open.iter().any(|slot| slot.workers.iter().any(serves))
        };
        match &self.direction {
            // Until it is told to leave, an old worker accepts: a client that has read the verdict would still meet it.
            RolloutDirection::Forward if serves(&|worker| worker.generation != self.to) => {}
            RolloutDirection::Forward
                if done == total && open.iter().all(|slot| slot.current_worker().is_some()) =>
            {
                let since = open.iter().filter_map(|slot| match slot.current_worker()?.phase {
                    WorkerPhase::Ready { since } => Some(since),
                    _ => None,
                });
                let stable_at = since.max().map_or(now, |since| since + probation);
                progress = if stable_at <= now {
                    RolloutProgress::Completed
                } else {
                    RolloutProgress::InProgress { completed: done, total, stable_at: Some(stable_at) }
                };
            }
            RolloutDirection::RollingBack { .. }
                if done == total && !serves(&|worker| worker.generation == self.to) =>
            {
                progress = RolloutProgress::RolledBack;
            }
            RolloutDirection::Forward | RolloutDirection::RollingBack { .. } => {}
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::Pid;

    const NOW: Duration = Duration::from_secs(100);
    const PROBATION: Duration = Duration::from_secs(1);

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

    fn rollout(direction: RolloutDirection) -> Rollout {
        Rollout { kind: DeploymentKind::Reload, from: 1, to: 2, direction, started: NOW }
    }

    #[test]
    fn it_is_completed_when_every_slot_serves_and_the_last_worker_is_stable() {
        let forward = rollout(RolloutDirection::Forward);
        let half = [slot(2, &[(2, ready(90))]), slot(1, &[(1, ready(50)), (2, ready(99))])];
        assert_eq!(forward.canary_slot(&half), None);
        let progress = forward.progress(&half, PROBATION, NOW);
        assert_eq!(progress, RolloutProgress::InProgress { completed: 1, total: 2, stable_at: None });
        let young = [slot(2, &[(2, ready(90))]), slot(2, &[(2, ready(100))])];
        let stable_at = Some(NOW + PROBATION);
        let progress = forward.progress(&young, PROBATION, NOW);
        assert_eq!(progress, RolloutProgress::InProgress { completed: 2, total: 2, stable_at });
        assert_eq!(forward.progress(&young, PROBATION, NOW + PROBATION), RolloutProgress::Completed);
        let alone = [slot(2, &[(1, ready(50)), (2, ready(90))])];
        let progress = forward.progress(&alone, PROBATION, NOW);
        let waits = RolloutProgress::InProgress { completed: 1, total: 1, stable_at: None };
        assert_eq!(progress, waits, "the old worker of the only slot is not told to leave yet");
    }

    #[test]
    fn the_first_slot_is_the_canary_until_it_has_the_new_generation() {
        let slots = [slot(1, &[(1, ready(50))]), slot(1, &[(1, ready(50))])];
        assert_eq!(rollout(RolloutDirection::Forward).canary_slot(&slots), Some(0));
        assert_eq!(
            rollout(RolloutDirection::RollingBack { reason: String::new() }).canary_slot(&slots),
            None
        );
    }

    #[test]
    fn only_a_young_worker_of_the_new_generation_condemns_it() {
        let forward = rollout(RolloutDirection::Forward);
        let one = |generation, stage| slot(1, &[(generation, stage)]).workers[0].clone();
        assert!(forward.is_failed_by(&one(2, WorkerPhase::Booting { deadline: NOW }), PROBATION, NOW));
        assert!(forward.is_failed_by(&one(2, ready(100)), PROBATION, NOW));
        assert!(!forward.is_failed_by(&one(2, ready(90)), PROBATION, NOW));
        assert!(!forward.is_failed_by(&one(1, ready(100)), PROBATION, NOW));
        let back = rollout(RolloutDirection::RollingBack { reason: String::new() });
        assert!(!back.is_failed_by(&one(2, ready(100)), PROBATION, NOW));
    }

    #[test]
    fn it_is_taken_back_when_no_new_worker_serves_any_more() {
        let back = rollout(RolloutDirection::RollingBack { reason: "it died".into() });
        let lingering = [slot(1, &[(1, ready(50)), (2, ready(99))])];
        assert!(matches!(back.progress(&lingering, PROBATION, NOW), RolloutProgress::InProgress { .. }));
        assert_eq!(back.progress(&[slot(1, &[(1, ready(50))])], PROBATION, NOW), RolloutProgress::RolledBack);
    }
}
