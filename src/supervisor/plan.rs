//! What to do next: (slots, target, now) → actions; pure.
//!
//! Crash, stop and, later, reload and scale only change the slots or the target. There is no second path.

use std::time::Duration;

use crate::supervisor::slot::Lifecycle;
use crate::sys::proc::Pid;

/// Deaths before READY of every slot after which a fleet that never served gives up.
const BOOT_ATTEMPTS: u32 = 2;

/// A worker's time to leave after its own deadline, before it is killed.
const LEAVE_MARGIN: Duration = Duration::from_secs(2);

/// What the fleet is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Every slot serves.
    Serve,
    /// Every worker drains, then the fleet ends.
    Stop,
    /// Every worker is killed, then the fleet ends.
    StopNow,
}

/// What the planner may look at.
#[derive(Debug)]
pub struct View {
    /// What the fleet is to become.
    pub target: Target,
    /// Every slot: where it stands and its early deaths in a row.
    pub slots: Vec<(Lifecycle, u32)>,
    /// Whether any worker of this fleet was ever READY.
    pub ever_ready: bool,
    /// How long a worker may drain.
    pub drain_timeout: Duration,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Fork a worker into a slot.
    Spawn {
        /// The slot.
        slot: usize,
    },
    /// Ask a worker to finish and leave.
    Drain {
        /// Its slot.
        slot: usize,
        /// The worker.
        pid: Pid,
        /// When it is killed if it has not left.
        kill_at: Duration,
    },
    /// Kill a worker.
    Kill {
        /// Its slot.
        slot: usize,
        /// The worker.
        pid: Pid,
        /// Why.
        cause: Cause,
    },
    /// No slot could ever be brought up: end the fleet.
    GiveUp,
    /// Every worker is gone, as wanted.
    Finish,
}

/// Why a worker is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was not READY in time.
    BootTimeout,
    /// It did not leave in time.
    DrainTimeout,
    /// The operator said at once.
    StopNow,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BootTimeout => "not ready within workers.boot_timeout",
            Self::DrainTimeout => "still there after drain.timeout",
            Self::StopNow => "stop at once",
        })
    }
}

/// What to do now, and when to ask again if nothing happens until then.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// Time of the next deadline.
    pub wake_at: Option<Duration>,
}

/// Decides what to do.
pub fn plan(view: &View, now: Duration) -> Plan {
    let mut plan = Plan { actions: Vec::new(), wake_at: None };
    match view.target {
        Target::Serve => serve(view, now, &mut plan),
        Target::Stop | Target::StopNow => stop(view, now, &mut plan),
    }
    plan
}

impl Plan {
    fn wake_at(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Acts when `at` has come, else wakes up then.
    fn at(&mut self, at: Duration, now: Duration, action: Action) {
        if at <= now { self.actions.push(action) } else { self.wake_at(at) }
    }
}

fn serve(view: &View, now: Duration, plan: &mut Plan) {
    // No worker ever served and every slot was tried: nobody more is started, and those still booting are waited for.
    let hopeless = !view.ever_ready && view.slots.iter().all(|(_, deaths)| *deaths >= BOOT_ATTEMPTS);
    if hopeless && view.slots.iter().all(|(lifecycle, _)| lifecycle.pid().is_none()) {
        plan.actions.push(Action::GiveUp);
        return;
    }
    for (slot, (lifecycle, _)) in view.slots.iter().enumerate() {
        match *lifecycle {
            Lifecycle::Empty | Lifecycle::BackedOff { .. } if hopeless => {}
            Lifecycle::Empty => plan.actions.push(Action::Spawn { slot }),
            Lifecycle::BackedOff { until } => plan.at(until, now, Action::Spawn { slot }),
            Lifecycle::Booting { pid, deadline } => {
                plan.at(deadline, now, Action::Kill { slot, pid, cause: Cause::BootTimeout });
            }
            Lifecycle::Draining { pid, kill_at } => {
                plan.at(kill_at, now, Action::Kill { slot, pid, cause: Cause::DrainTimeout });
            }
            Lifecycle::Ready { .. } | Lifecycle::Killed { .. } => {}
        }
    }
}

fn stop(view: &View, now: Duration, plan: &mut Plan) {
    let at_once = view.target == Target::StopNow;
    for (slot, (lifecycle, _)) in view.slots.iter().enumerate() {
        match *lifecycle {
            Lifecycle::Empty | Lifecycle::BackedOff { .. } => {}
            Lifecycle::Killed { forget_at, .. } if forget_at > now => plan.wake_at(forget_at),
            Lifecycle::Killed { .. } => {}
            Lifecycle::Booting { pid, .. }
            | Lifecycle::Ready { pid, .. }
            | Lifecycle::Draining { pid, .. }
                if at_once =>
            {
                plan.actions.push(Action::Kill { slot, pid, cause: Cause::StopNow });
            }
            Lifecycle::Booting { pid, .. } | Lifecycle::Ready { pid, .. } => {
                let kill_at = now + view.drain_timeout + LEAVE_MARGIN;
                plan.actions.push(Action::Drain { slot, pid, kill_at });
                plan.wake_at(kill_at);
            }
            Lifecycle::Draining { pid, kill_at } => {
                plan.at(kill_at, now, Action::Kill { slot, pid, cause: Cause::DrainTimeout });
            }
        }
    }
    let gone = |lifecycle: &Lifecycle| match *lifecycle {
        Lifecycle::Killed { forget_at, .. } => forget_at <= now,
        other => other.pid().is_none(),
    };
    if view.slots.iter().all(|(lifecycle, _)| gone(lifecycle)) {
        plan.actions.push(Action::Finish);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const LATER: Duration = Duration::from_secs(101);

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number)
    }

    fn ready(number: i32) -> (Lifecycle, u32) {
        (Lifecycle::Ready { pid: pid(number), since: NOW }, 0)
    }

    fn view(target: Target, slots: Vec<(Lifecycle, u32)>) -> View {
        View { target, slots, ever_ready: true, drain_timeout: Duration::from_secs(30) }
    }

    #[test]
    fn an_empty_slot_is_filled_and_a_ready_one_left_alone() {
        let plan = plan(&view(Target::Serve, vec![ready(1), (Lifecycle::Empty, 0)]), NOW);
        assert_eq!(plan, Plan { actions: vec![Action::Spawn { slot: 1 }], wake_at: None });
    }

    #[test]
    fn a_backed_off_slot_waits_and_the_others_do_not() {
        let slots = vec![(Lifecycle::BackedOff { until: LATER }, 5), (Lifecycle::Empty, 0)];
        let first = plan(&view(Target::Serve, slots.clone()), NOW);
        assert_eq!(first, Plan { actions: vec![Action::Spawn { slot: 1 }], wake_at: Some(LATER) });
        let second = plan(&view(Target::Serve, slots), LATER);
        assert_eq!(second.actions, [Action::Spawn { slot: 0 }, Action::Spawn { slot: 1 }]);
    }

    #[test]
    fn one_slot_that_never_boots_does_not_end_the_fleet() {
        let looping = (Lifecycle::BackedOff { until: LATER }, 50);
        let mut view = view(Target::Serve, vec![looping, ready(1)]);
        view.ever_ready = true;
        assert!(!plan(&view, NOW).actions.contains(&Action::GiveUp));
        view.ever_ready = false;
        view.slots[1] = (Lifecycle::Booting { pid: pid(2), deadline: LATER }, 1);
        assert!(!plan(&view, NOW).actions.contains(&Action::GiveUp));
    }

    #[test]
    fn a_fleet_of_which_no_slot_ever_boots_gives_up() {
        let mut view = view(Target::Serve, vec![(Lifecycle::BackedOff { until: LATER }, 2); 3]);
        view.ever_ready = false;
        assert_eq!(plan(&view, NOW).actions, [Action::GiveUp]);
        view.slots[2].1 = 1;
        assert!(plan(&view, NOW).actions.is_empty());
        // One that still boots for the third time is waited for, and nobody is started meanwhile.
        view.slots[1].0 = Lifecycle::Booting { pid: pid(9), deadline: LATER };
        view.slots[2] = (Lifecycle::Empty, 2);
        assert_eq!(plan(&view, NOW), Plan { actions: vec![], wake_at: Some(LATER) });
        view.slots[1].0 = Lifecycle::BackedOff { until: LATER };
        view.slots[2].0 = Lifecycle::BackedOff { until: LATER };
        view.slots[2].1 = 2;
        view.ever_ready = true;
        assert!(plan(&view, NOW).actions.is_empty());
    }

    #[test]
    fn a_worker_that_is_not_ready_in_time_is_killed() {
        let booting = (Lifecycle::Booting { pid: pid(7), deadline: LATER }, 0);
        let waiting = plan(&view(Target::Serve, vec![booting]), NOW);
        assert_eq!(waiting, Plan { actions: vec![], wake_at: Some(LATER) });
        let late = plan(&view(Target::Serve, vec![booting]), LATER);
        assert_eq!(late.actions, [Action::Kill { slot: 0, pid: pid(7), cause: Cause::BootTimeout }]);
    }

    #[test]
    fn stopping_drains_then_kills_then_finishes() {
        let first =
            plan(&view(Target::Stop, vec![ready(1), (Lifecycle::BackedOff { until: LATER }, 3)]), NOW);
        let kill_at = NOW + Duration::from_secs(32);
        assert_eq!(first.actions, [Action::Drain { slot: 0, pid: pid(1), kill_at }]);
        let draining = (Lifecycle::Draining { pid: pid(1), kill_at }, 0);
        assert_eq!(
            plan(&view(Target::Stop, vec![draining]), LATER),
            Plan { actions: vec![], wake_at: Some(kill_at) }
        );
        let late = plan(&view(Target::Stop, vec![draining]), kill_at);
        assert_eq!(late.actions, [Action::Kill { slot: 0, pid: pid(1), cause: Cause::DrainTimeout }]);
        let killed = (Lifecycle::Killed { pid: pid(1), cause: Cause::DrainTimeout, forget_at: LATER }, 0);
        assert!(plan(&view(Target::Stop, vec![killed]), NOW).actions.is_empty());
        assert_eq!(plan(&view(Target::Stop, vec![killed]), LATER).actions, [Action::Finish]);
        assert_eq!(plan(&view(Target::Stop, vec![(Lifecycle::Empty, 0)]), NOW).actions, [Action::Finish]);
    }

    #[test]
    fn stopping_at_once_kills_whatever_lives() {
        let slots =
            vec![ready(1), (Lifecycle::Booting { pid: pid(2), deadline: LATER }, 0), (Lifecycle::Empty, 0)];
        let kill = |slot, number| Action::Kill { slot, pid: pid(number), cause: Cause::StopNow };
        assert_eq!(plan(&view(Target::StopNow, slots), NOW).actions, [kill(0, 1), kill(1, 2)]);
    }
}
