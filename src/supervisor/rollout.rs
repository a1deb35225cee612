//! A new generation on its way through the slots, one after another; pure.

use std::time::Duration;

use crate::scoreboard::Reason;
use crate::supervisor::plan::Cause;
use crate::supervisor::slot::Occupant;
use crate::supervisor::slot::Seat;
use crate::supervisor::slot::Slot;
use crate::supervisor::slot::Stage;

/// What is new about the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Its configuration.
    Reload,
    /// Its program.
    Upgrade,
}

impl Kind {
    /// The verb's name, for sentences.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
        }
    }

    /// The kind of the event of its beginning.
    pub fn began(self) -> &'static str {
        match self {
            Self::Reload => "reload_began",
            Self::Upgrade => "upgrade_began",
        }
    }

    /// The kind of the event of its good end.
    pub fn ended(self) -> &'static str {
        match self {
            Self::Reload => "reload_done",
            Self::Upgrade => "upgrade_done",
        }
    }

    /// Why workers of another generation are replaced.
    pub fn reason(self) -> Reason {
        match self {
            Self::Reload => Reason::Reload,
            Self::Upgrade => Reason::Upgrade,
        }
    }
}

/// Which way it goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    /// To the new generation.
    Forward,
    /// Back to the old one: a new worker failed.
    Back {
        /// How.
        reason: String,
    },
}

/// One generation on its way.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rollout {
    /// What is new about it.
    pub kind: Kind,
    /// The generation that served before.
    pub from: u64,
    /// The new one.
    pub to: u64,
    /// Which way it goes.
    pub course: Course,
    /// When it began.
    pub started: Duration,
}

/// How far it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// This many slots of all have the wanted generation.
    UnderWay {
        /// Slots that have it.
        done: usize,
        /// All slots.
        total: usize,
        /// When the last probation ends, if only that is waited for.
        settled_at: Option<Duration>,
    },
    /// Every slot serves with the new generation.
    Done,
    /// Every slot has the old generation again.
    TakenBack,
}

impl Rollout {
    /// The generation that is wanted now.
    pub fn wanted(&self) -> u64 {
        match self.course {
            Course::Forward => self.to,
            Course::Back { .. } => self.from,
        }
    }

    /// The slot whose new worker has to survive its probation before its old one leaves: the first, as long as no slot
    /// has the new generation. The old generation has proven itself and needs none.
    pub fn canary(&self, slots: &[Slot]) -> Option<usize> {
        let tried = slots.iter().any(|slot| slot.seat == Seat::Open && slot.generation == self.to);
        match self.course {
            Course::Forward if !tried => slots.iter().position(|slot| slot.seat == Seat::Open),
            Course::Forward | Course::Back { .. } => None,
        }
    }

    /// Whether the end of this worker means that the new generation is no good.
    pub fn condemns(&self, worker: &Occupant, probation: Duration, now: Duration) -> bool {
        let young = match worker.stage {
            Stage::Killed { cause: Cause::DrainTimeout, .. } => false,
            Stage::Booting { .. } | Stage::Killed { .. } | Stage::Hung { .. } => true,
            Stage::Ready { since } => now < since + probation,
            Stage::Draining { .. } => false,
        };
        self.course == Course::Forward && worker.generation == self.to && young
    }

    /// How far it got.
    pub fn standing(&self, slots: &[Slot], probation: Duration, now: Duration) -> Standing {
        let open: Vec<_> = slots.iter().filter(|slot| slot.seat == Seat::Open).collect();
        let wanted = self.wanted();
        let has = |slot: &&&Slot| slot.generation == wanted;
        let (done, total) = (open.iter().filter(has).count(), open.len());
        let mut standing = Standing::UnderWay { done, total, settled_at: None };
        let serves = |of: &dyn Fn(&Occupant) -> bool| {
            let serves = |worker: &Occupant| of(worker) && (worker.is_ready() || worker.is_booting());
            open.iter().any(|slot| slot.workers.iter().any(serves))
        };
        match &self.course {
            // Until it is told to leave, an old worker accepts: a client that has read the verdict would still meet it.
            Course::Forward if serves(&|worker| worker.generation != self.to) => {}
            Course::Forward if done == total && open.iter().all(|slot| slot.fresh().is_some()) => {
                let since = open.iter().filter_map(|slot| match slot.fresh()?.stage {
                    Stage::Ready { since } => Some(since),
                    _ => None,
                });
                let settled_at = since.max().map_or(now, |since| since + probation);
                standing = if settled_at <= now {
                    Standing::Done
                } else {
                    Standing::UnderWay { done, total, settled_at: Some(settled_at) }
                };
            }
            Course::Back { .. } if done == total && !serves(&|worker| worker.generation == self.to) => {
                standing = Standing::TakenBack;
            }
            Course::Forward | Course::Back { .. } => {}
        }
        standing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::proc::Pid;

    const NOW: Duration = Duration::from_secs(100);
    const PROBATION: Duration = Duration::from_secs(1);

    fn slot(generation: u64, workers: &[(u64, Stage)]) -> Slot {
        let occupant = |(cell, (generation, stage)): (usize, &(u64, Stage))| Occupant {
            pid: Pid::from_raw(10 + cell as i32),
            generation: *generation,
            cell,
            stage: *stage,
            started: NOW,
            retire: None,
        };
        Slot { workers: workers.iter().enumerate().map(occupant).collect(), ..Slot::new(generation) }
    }

    fn ready(seconds: u64) -> Stage {
        Stage::Ready { since: Duration::from_secs(seconds) }
    }

    fn rollout(course: Course) -> Rollout {
        Rollout { kind: Kind::Reload, from: 1, to: 2, course, started: NOW }
    }

    #[test]
    fn it_is_done_when_every_slot_serves_and_the_last_worker_has_settled() {
        let forward = rollout(Course::Forward);
        let half = [slot(2, &[(2, ready(90))]), slot(1, &[(1, ready(50)), (2, ready(99))])];
        assert_eq!(forward.canary(&half), None);
        let standing = forward.standing(&half, PROBATION, NOW);
        assert_eq!(standing, Standing::UnderWay { done: 1, total: 2, settled_at: None });
        let young = [slot(2, &[(2, ready(90))]), slot(2, &[(2, ready(100))])];
        let settled_at = Some(NOW + PROBATION);
        let standing = forward.standing(&young, PROBATION, NOW);
        assert_eq!(standing, Standing::UnderWay { done: 2, total: 2, settled_at });
        assert_eq!(forward.standing(&young, PROBATION, NOW + PROBATION), Standing::Done);
        let alone = [slot(2, &[(1, ready(50)), (2, ready(90))])];
        let standing = forward.standing(&alone, PROBATION, NOW);
        let waits = Standing::UnderWay { done: 1, total: 1, settled_at: None };
        assert_eq!(standing, waits, "the old worker of the only slot is not told to leave yet");
    }

    #[test]
    fn the_first_slot_is_the_canary_until_it_has_the_new_generation() {
        let slots = [slot(1, &[(1, ready(50))]), slot(1, &[(1, ready(50))])];
        assert_eq!(rollout(Course::Forward).canary(&slots), Some(0));
        assert_eq!(rollout(Course::Back { reason: String::new() }).canary(&slots), None);
    }

    #[test]
    fn only_a_young_worker_of_the_new_generation_condemns_it() {
        let forward = rollout(Course::Forward);
        let one = |generation, stage| slot(1, &[(generation, stage)]).workers[0].clone();
        assert!(forward.condemns(&one(2, Stage::Booting { deadline: NOW }), PROBATION, NOW));
        assert!(forward.condemns(&one(2, ready(100)), PROBATION, NOW));
        assert!(!forward.condemns(&one(2, ready(90)), PROBATION, NOW));
        assert!(!forward.condemns(&one(1, ready(100)), PROBATION, NOW));
        let back = rollout(Course::Back { reason: String::new() });
        assert!(!back.condemns(&one(2, ready(100)), PROBATION, NOW));
    }

    #[test]
    fn it_is_taken_back_when_no_new_worker_serves_any_more() {
        let back = rollout(Course::Back { reason: "it died".into() });
        let lingering = [slot(1, &[(1, ready(50)), (2, ready(99))])];
        assert!(matches!(back.standing(&lingering, PROBATION, NOW), Standing::UnderWay { .. }));
        assert_eq!(back.standing(&[slot(1, &[(1, ready(50))])], PROBATION, NOW), Standing::TakenBack);
    }
}
