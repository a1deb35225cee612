//! What to do next: (slots, target, now) → actions; pure.
//!
//! Crash, stop, reload, upgrade, restart, recycling and scale only change the slots or the target. There is no second
//! path. One rule replaces workers: one that is not *fresh* (another generation is wanted in its slot, or it is to retire)
//! gets a successor beside it when it is its turn, and leaves once the successor serves.

mod kill_reason;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use kill_reason::KillReason;

use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::DrainOrder;
use crate::supervisor::slots::slot::{Slot, SlotListening, WorkerHandle, WorkerPhase};
use crate::sys::process::Pid;

/// Deaths before READY of every slot after which a fleet that never served gives up.
const BOOT_ATTEMPTS: u32 = 2;

/// A worker's time to leave after its own deadline, before it is killed.
pub const EXIT_GRACE: Duration = Duration::from_secs(2);

/// What the fleet is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DesiredState {
    /// Every slot serves.
    Running,
    /// Every worker drains, then the fleet ends.
    Stopping,
    /// Every worker is killed, then the fleet ends.
    Killing,
}

/// What the planner decides on.
#[derive(Debug)]
pub struct PlanInput<'a> {
    /// What the fleet is to become.
    pub desired_state: DesiredState,
    /// Every slot.
    pub slots: &'a [Slot],
    /// The generation every slot is to have.
    pub generation: u64,
    /// The oldest generation that this program can still start workers of.
    pub oldest_generation: u64,
    /// Why workers of other generations are replaced.
    pub replace_reason: ExitReason,
    /// The first slot of a rollout, whose new worker must survive its probation before its old one leaves.
    pub canary_slot: Option<usize>,
    /// Whether any worker of this fleet was ever READY.
    pub ever_ready: bool,
    /// How long a new generation's first worker is watched.
    pub canary_period: Duration,
    /// Until when it is held besides, because its checks are not known yet.
    pub canary_held_until: Option<Duration>,
    /// How long a worker may drain.
    pub drain_timeout: Duration,
    /// Most leaving workers of a slot.
    pub max_draining_workers: usize,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotAction {
    /// Fork a worker into a slot.
    Spawn {
        /// The slot.
        slot: usize,
        /// The generation it is of.
        generation: u64,
    },
    /// The slot's new generation serves: it is the slot's own from now on.
    Promote {
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
        /// What it does with its slot.
        order: DrainOrder,
        /// Why it leaves.
        reason: ExitReason,
    },
    /// Ask a leaving worker to cut what it still has.
    Abort {
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
        cause: KillReason,
    },
    /// Close the listeners of a retiring slot whose workers cannot.
    CloseListeners {
        /// The slot.
        slot: usize,
    },
    /// The last slot has retired.
    Remove {
        /// The slot.
        slot: usize,
    },
    /// No slot could ever be brought up: end the fleet.
    ReportBootFailure,
    /// Every worker is gone, as wanted.
    Finish,
}

/// What to do now, and when to ask again if nothing happens until then.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<SlotAction>,
    /// Time of the next deadline.
    pub wake_at: Option<Duration>,
}

/// Decides what to do.
pub fn plan(view: &PlanInput<'_>, now: Duration) -> Plan {
    let mut plan = Plan { actions: Vec::new(), wake_at: None };
    for (index, slot) in view.slots.iter().enumerate() {
        enforce_deadlines(index, slot, now, &mut plan);
    }
    match view.desired_state {
        DesiredState::Running => plan_running(view, now, &mut plan),
        DesiredState::Stopping | DesiredState::Killing => plan_stop(view, now, &mut plan),
    }
    plan
}

impl Plan {
    fn wake_no_later_than(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Acts when `at` has come, else wakes up then.
    fn act_at(&mut self, at: Duration, now: Duration, action: SlotAction) {
        if at <= now { self.actions.push(action) } else { self.wake_no_later_than(at) }
    }
}

/// Kills workers whose deadline has passed.
fn enforce_deadlines(slot: usize, state: &Slot, now: Duration, plan: &mut Plan) {
    for worker in &state.workers {
        let mut kill = |at, cause| plan.act_at(at, now, SlotAction::Kill { slot, pid: worker.pid, cause });
        match worker.phase {
            WorkerPhase::Booting { deadline } => kill(deadline, KillReason::BootTimeout),
            WorkerPhase::Draining { kill_at, .. } => kill(kill_at, KillReason::DrainTimeout),
            // Whether one that hangs is lost is judged by the time it could have used, and not by the clock.
            WorkerPhase::Ready { .. } | WorkerPhase::Hung { .. } | WorkerPhase::Killed { .. } => {}
        }
    }
}

fn plan_running(view: &PlanInput<'_>, now: Duration, plan: &mut Plan) {
    // No worker ever served and every slot was tried: no more workers are started, and those still booting are waited for.
    let tried = |slot: &Slot| slot.backoff.early_deaths() >= BOOT_ATTEMPTS;
    let hopeless = !view.ever_ready && view.slots.iter().all(tried);
    if hopeless {
        if view.slots.iter().all(|slot| slot.workers.is_empty()) {
            plan.actions.push(SlotAction::ReportBootFailure);
        }
        return;
    }
    for (index, slot) in view.slots.iter().enumerate() {
        match slot.listening {
            SlotListening::Open => fill_slot(view, index, now, plan),
            SlotListening::Retiring => retire_slot(view, index, now, plan),
            SlotListening::Retired => drain_recovered(view, index, now, plan),
        }
        enforce_drain_limit(view, index, now, plan);
    }
    start_replacement(view, now, plan);
    if let Some((slot, last)) = view.slots.iter().enumerate().next_back()
        && last.listening == SlotListening::Retired
        && last.workers.is_empty()
    {
        plan.actions.push(SlotAction::Remove { slot });
    }
}

impl PlanInput<'_> {
    /// The slot whose turn it is to get the wanted generation: slots do so one after another.
    fn next_slot_to_roll(&self) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| slot.listening == SlotListening::Open && slot.generation != self.generation)
    }

    /// The generation of the next worker of a slot that has none.
    fn next_generation(&self, index: usize) -> u64 {
        let own = self.slots[index].generation;
        // One that is taken back is started nowhere any more.
        let known = (self.oldest_generation..=self.generation).contains(&own);
        if !known || self.next_slot_to_roll() == Some(index) { self.generation } else { own }
    }

    /// Whether the worker is the one a rollout has just brought into this slot.
    fn is_rollout_candidate(&self, index: usize, worker: &WorkerHandle) -> bool {
        let lives = worker.is_ready() || worker.is_booting();
        lives && self.next_slot_to_roll() == Some(index) && worker.generation == self.generation
    }
}

/// Keeps a worker in the slot, and sends those home whose successor serves.
fn fill_slot(view: &PlanInput<'_>, index: usize, now: Duration, plan: &mut Plan) {
    let slot = &view.slots[index];
    if !slot.workers.iter().any(|worker| worker.is_ready() || worker.is_booting()) {
        spawn(view, index, view.next_generation(index), now, plan);
        return;
    }
    let candidate = slot.workers.iter().find(|worker| view.is_rollout_candidate(index, worker));
    if let Some(WorkerHandle { phase: WorkerPhase::Ready { since }, .. }) = candidate {
        let proven_at = match view.canary_slot == Some(index) {
            true => view.canary_held_until.unwrap_or_default().max(*since + view.canary_period),
            false => *since,
        };
        plan.act_at(proven_at, now, SlotAction::Promote { slot: index });
    }
    let Some(fresh) = slot.current_worker() else { return };
    for worker in &slot.workers {
        let stays = worker.pid == fresh.pid || view.is_rollout_candidate(index, worker);
        if !stays && (worker.is_ready() || worker.is_booting()) {
            let reason = worker.replace_reason.unwrap_or(view.replace_reason);
            drain(view, index, worker, DrainOrder::HandOver, reason, now, plan);
        }
    }
}

/// Lets a retiring slot's queue run dry: its worker is ordered to, and without one a worker is started for it.
fn retire_slot(view: &PlanInput<'_>, index: usize, now: Duration, plan: &mut Plan) {
    let slot = &view.slots[index];
    let mut attended = false;
    for worker in &slot.workers {
        match worker.phase {
            WorkerPhase::Ready { .. } => {
                attended = true;
                drain(view, index, worker, DrainOrder::Retire, ExitReason::Scale, now, plan);
            }
            WorkerPhase::Booting { .. } | WorkerPhase::Draining { order: DrainOrder::Retire, .. } => {
                attended = true
            }
            WorkerPhase::Hung { .. } | WorkerPhase::Draining { .. } | WorkerPhase::Killed { .. } => {}
        }
    }
    if !attended {
        match slot.backoff.early_deaths() {
            0..BOOT_ATTEMPTS => spawn(view, index, view.next_generation(index), now, plan),
            _ => plan.actions.push(SlotAction::CloseListeners { slot: index }),
        }
    }
}

/// Sends a worker home that comes back from a hang and finds its slot retired.
fn drain_recovered(view: &PlanInput<'_>, index: usize, now: Duration, plan: &mut Plan) {
    for worker in view.slots[index].workers.iter().filter(|worker| worker.is_ready()) {
        drain(view, index, worker, DrainOrder::Retire, ExitReason::Scale, now, plan);
    }
}

/// Bounds the draining workers of a slot: the oldest is aborted.
fn enforce_drain_limit(view: &PlanInput<'_>, index: usize, now: Duration, plan: &mut Plan) {
    let leaving: Vec<_> = view.slots[index].workers.iter().filter(|worker| worker.is_draining()).collect();
    let uncut =
        |worker: &&&WorkerHandle| matches!(worker.phase, WorkerPhase::Draining { aborted: false, .. });
    for worker in leaving.iter().take(leaving.len().saturating_sub(view.max_draining_workers)).filter(uncut) {
        plan.actions.push(SlotAction::Abort { slot: index, pid: worker.pid, kill_at: now + EXIT_GRACE });
    }
}

/// Starts one successor: at any moment at most one worker of the fleet is being replaced of free will.
fn start_replacement(view: &PlanInput<'_>, now: Duration, plan: &mut Plan) {
    let cursor = view.next_slot_to_roll();
    let taken = view.slots.iter().enumerate().any(|(index, slot)| {
        let waits = |worker: &WorkerHandle| worker.is_booting() || view.is_rollout_candidate(index, worker);
        slot.is_serving() && slot.workers.iter().any(waits)
    });
    if taken {
        return;
    }
    if let Some(index) = cursor {
        // A slot without a worker gets one anyway.
        if view.slots[index].is_serving() {
            spawn(view, index, view.generation, now, plan);
        }
        return;
    }
    let stale = |slot: &Slot| {
        slot.listening == SlotListening::Open && slot.is_serving() && slot.current_worker().is_none()
    };
    let due = |slot: &Slot| slot.backoff_until.unwrap_or(now);
    let waiting = view.slots.iter().enumerate().filter(|(_, slot)| stale(slot));
    // One whose successor failed waits for its delay, and does not hold up the others.
    if let Some((index, _)) = waiting.min_by_key(|(index, slot)| (due(slot).max(now), *index)) {
        spawn(view, index, view.next_generation(index), now, plan);
    }
}

fn spawn(view: &PlanInput<'_>, index: usize, generation: u64, now: Duration, plan: &mut Plan) {
    let slot = &view.slots[index];
    let at = slot.backoff_until.unwrap_or(now);
    if slot.free_cell().is_some() {
        plan.act_at(at, now, SlotAction::Spawn { slot: index, generation });
    } else if let Some(oldest) = slot.workers.iter().find(|worker| worker.is_hung())
        && !slot.workers.iter().any(|worker| matches!(worker.phase, WorkerPhase::Killed { .. }))
    {
        // A slot in which every spare hangs has no room for another one: it serves rather than waits.
        plan.act_at(at, now, SlotAction::Kill { slot: index, pid: oldest.pid, cause: KillReason::Hang });
    }
    // Else one of the leaving has to go first; its end wakes the loop.
}

fn drain(
    view: &PlanInput<'_>,
    slot: usize,
    worker: &WorkerHandle,
    order: DrainOrder,
    reason: ExitReason,
    now: Duration,
    plan: &mut Plan,
) {
    push_drain(slot, worker, order, reason, now + view.drain_timeout + EXIT_GRACE, plan);
}

fn push_drain(
    slot: usize,
    worker: &WorkerHandle,
    order: DrainOrder,
    reason: ExitReason,
    kill_at: Duration,
    plan: &mut Plan,
) {
    plan.actions.push(SlotAction::Drain { slot, pid: worker.pid, kill_at, order, reason });
    plan.wake_no_later_than(kill_at);
}

fn plan_stop(view: &PlanInput<'_>, now: Duration, plan: &mut Plan) {
    let at_once = view.desired_state == DesiredState::Killing;
    for (slot, state) in view.slots.iter().enumerate() {
        for worker in &state.workers {
            match worker.phase {
                WorkerPhase::Killed { give_up_at: forget_at, .. } if forget_at > now => {
                    plan.wake_no_later_than(forget_at)
                }
                WorkerPhase::Killed { .. } => {}
                _ if at_once => {
                    plan.actions.push(SlotAction::Kill { slot, pid: worker.pid, cause: KillReason::StopNow });
                }
                WorkerPhase::Booting { .. } | WorkerPhase::Ready { .. } => {
                    drain(view, slot, worker, DrainOrder::Stop, ExitReason::Stop, now, plan);
                }
                WorkerPhase::Hung { kill_at: lost, .. } => {
                    let full = now + view.drain_timeout + EXIT_GRACE;
                    let kill_at = lost.map_or(full, |lost| lost.max(now + EXIT_GRACE).min(full));
                    push_drain(slot, worker, DrainOrder::Stop, ExitReason::Stop, kill_at, plan);
                }
                WorkerPhase::Draining { .. } => {}
            }
        }
    }
    let gone = |worker: &WorkerHandle| matches!(worker.phase, WorkerPhase::Killed { give_up_at, .. } if give_up_at <= now);
    if view.slots.iter().all(|slot| slot.workers.iter().all(gone)) {
        plan.actions.push(SlotAction::Finish);
    }
}
