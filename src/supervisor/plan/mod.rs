//! What to do next: (slots, target, now) → actions; pure.
//!
//! Crash, stop, reload, upgrade, restart, recycling and scale only change the slots or the target. There is no second
//! path. One rule replaces workers: one that is not *fresh* (another generation is wanted in its slot, or it is to retire)
//! gets a successor beside it when it is its turn, and leaves once the successor serves.

mod cause;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use cause::Cause;

use crate::scoreboard::Reason;
use crate::scoreboard::cell::Order;
use crate::supervisor::slot::Occupant;
use crate::supervisor::slot::Seat;
use crate::supervisor::slot::Slot;
use crate::supervisor::slot::Stage;
use crate::sys::proc::Pid;

/// Deaths before READY of every slot after which a fleet that never served gives up.
const BOOT_ATTEMPTS: u32 = 2;

/// A worker's time to leave after its own deadline, before it is killed.
pub const LEAVE_MARGIN: Duration = Duration::from_secs(2);

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
pub struct View<'a> {
    /// What the fleet is to become.
    pub target: Target,
    /// Every slot.
    pub slots: &'a [Slot],
    /// The generation every slot is to have.
    pub generation: u64,
    /// The oldest generation that this program can still start workers of.
    pub oldest: u64,
    /// Why workers of other generations are replaced.
    pub rollout: Reason,
    /// The first slot of a rollout, whose new worker must survive its probation before its old one leaves.
    pub canary: Option<usize>,
    /// Whether any worker of this fleet was ever READY.
    pub ever_ready: bool,
    /// How long a new generation's first worker is watched.
    pub probation: Duration,
    /// How long a worker may drain.
    pub drain_timeout: Duration,
    /// Most leaving workers of a slot.
    pub leaving: usize,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
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
        /// What it does with its seat.
        order: Order,
        /// Why it leaves.
        reason: Reason,
    },
    /// Ask a leaving worker to cut what it still has.
    Cut {
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
    /// Close the listeners of a retiring slot whose workers cannot.
    CloseSeat {
        /// The slot.
        slot: usize,
    },
    /// The last slot has retired.
    Remove {
        /// The slot.
        slot: usize,
    },
    /// No slot could ever be brought up: end the fleet.
    GiveUp,
    /// Every worker is gone, as wanted.
    Finish,
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
pub fn plan(view: &View<'_>, now: Duration) -> Plan {
    let mut plan = Plan { actions: Vec::new(), wake_at: None };
    for (index, slot) in view.slots.iter().enumerate() {
        deadlines(index, slot, now, &mut plan);
    }
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

/// Kills whoever has had its time.
fn deadlines(slot: usize, state: &Slot, now: Duration, plan: &mut Plan) {
    for worker in &state.workers {
        let mut kill = |at, cause| plan.at(at, now, Action::Kill { slot, pid: worker.pid, cause });
        match worker.stage {
            Stage::Booting { deadline } => kill(deadline, Cause::BootTimeout),
            Stage::Draining { kill_at, .. } => kill(kill_at, Cause::DrainTimeout),
            // Whether one that hangs is lost is judged by the time it could have used, and not by the clock.
            Stage::Ready { .. } | Stage::Hung { .. } | Stage::Killed { .. } => {}
        }
    }
}

fn serve(view: &View<'_>, now: Duration, plan: &mut Plan) {
    // No worker ever served and every slot was tried: nobody more is started, and those still booting are waited for.
    let tried = |slot: &Slot| slot.backoff.early_deaths() >= BOOT_ATTEMPTS;
    let hopeless = !view.ever_ready && view.slots.iter().all(tried);
    if hopeless {
        if view.slots.iter().all(|slot| slot.workers.is_empty()) {
            plan.actions.push(Action::GiveUp);
        }
        return;
    }
    for (index, slot) in view.slots.iter().enumerate() {
        match slot.seat {
            Seat::Open => staff(view, index, now, plan),
            Seat::Closing => close(view, index, now, plan),
            Seat::Closed => release(view, index, now, plan),
        }
        crowd(view, index, now, plan);
    }
    replace(view, now, plan);
    if let Some((slot, last)) = view.slots.iter().enumerate().next_back()
        && last.seat == Seat::Closed
        && last.workers.is_empty()
    {
        plan.actions.push(Action::Remove { slot });
    }
}

impl View<'_> {
    /// The slot whose turn it is to get the wanted generation: slots do so one after another.
    fn cursor(&self) -> Option<usize> {
        self.slots.iter().position(|slot| slot.seat == Seat::Open && slot.generation != self.generation)
    }

    /// The generation of the next worker of a slot that has none.
    fn next_generation(&self, index: usize) -> u64 {
        let own = self.slots[index].generation;
        // One that is taken back is started nowhere any more.
        let known = (self.oldest..=self.generation).contains(&own);
        if !known || self.cursor() == Some(index) { self.generation } else { own }
    }

    /// Whether the worker is the one a rollout has just brought into this slot.
    fn is_candidate(&self, index: usize, worker: &Occupant) -> bool {
        let lives = worker.is_ready() || worker.is_booting();
        lives && self.cursor() == Some(index) && worker.generation == self.generation
    }
}

/// Keeps a worker in the slot, and sends those home whose successor serves.
fn staff(view: &View<'_>, index: usize, now: Duration, plan: &mut Plan) {
    let slot = &view.slots[index];
    if !slot.workers.iter().any(|worker| worker.is_ready() || worker.is_booting()) {
        spawn(view, index, view.next_generation(index), now, plan);
        return;
    }
    let candidate = slot.workers.iter().find(|worker| view.is_candidate(index, worker));
    if let Some(Occupant { stage: Stage::Ready { since }, .. }) = candidate {
        let probation = if view.canary == Some(index) { view.probation } else { Duration::ZERO };
        plan.at(*since + probation, now, Action::Promote { slot: index });
    }
    let Some(fresh) = slot.fresh() else { return };
    for worker in &slot.workers {
        let stays = worker.pid == fresh.pid || view.is_candidate(index, worker);
        if !stays && (worker.is_ready() || worker.is_booting()) {
            let reason = worker.retire.unwrap_or(view.rollout);
            drain(view, index, worker, Order::Pass, reason, now, plan);
        }
    }
}

/// Lets a retiring slot's queue run dry: whoever sits there is told to, and if nobody does, somebody is sent.
fn close(view: &View<'_>, index: usize, now: Duration, plan: &mut Plan) {
    let slot = &view.slots[index];
    let mut attended = false;
    for worker in &slot.workers {
        match worker.stage {
            Stage::Ready { .. } => {
                attended = true;
                drain(view, index, worker, Order::Close, Reason::Scale, now, plan);
            }
            Stage::Booting { .. } | Stage::Draining { order: Order::Close, .. } => attended = true,
            Stage::Hung { .. } | Stage::Draining { .. } | Stage::Killed { .. } => {}
        }
    }
    if !attended {
        match slot.backoff.early_deaths() {
            0..BOOT_ATTEMPTS => spawn(view, index, view.next_generation(index), now, plan),
            _ => plan.actions.push(Action::CloseSeat { slot: index }),
        }
    }
}

/// Sends a worker home that comes back from a hang and finds its slot retired.
fn release(view: &View<'_>, index: usize, now: Duration, plan: &mut Plan) {
    for worker in view.slots[index].workers.iter().filter(|worker| worker.is_ready()) {
        drain(view, index, worker, Order::Close, Reason::Scale, now, plan);
    }
}

/// Bounds the leaving workers of a slot: the oldest is told to cut what it still has.
fn crowd(view: &View<'_>, index: usize, now: Duration, plan: &mut Plan) {
    let leaving: Vec<_> = view.slots[index].workers.iter().filter(|worker| worker.is_draining()).collect();
    let uncut = |worker: &&&Occupant| matches!(worker.stage, Stage::Draining { cut: false, .. });
    for worker in leaving.iter().take(leaving.len().saturating_sub(view.leaving)).filter(uncut) {
        plan.actions.push(Action::Cut { slot: index, pid: worker.pid, kill_at: now + LEAVE_MARGIN });
    }
}

/// Starts one successor: at any moment at most one worker of the fleet is being replaced of free will.
fn replace(view: &View<'_>, now: Duration, plan: &mut Plan) {
    let cursor = view.cursor();
    let taken = view.slots.iter().enumerate().any(|(index, slot)| {
        let waits = |worker: &Occupant| worker.is_booting() || view.is_candidate(index, worker);
        slot.serves() && slot.workers.iter().any(waits)
    });
    if taken {
        return;
    }
    if let Some(index) = cursor {
        // A slot without a worker gets one anyway.
        if view.slots[index].serves() {
            spawn(view, index, view.generation, now, plan);
        }
        return;
    }
    let stale = |slot: &Slot| slot.seat == Seat::Open && slot.serves() && slot.fresh().is_none();
    let due = |slot: &Slot| slot.rest_until.unwrap_or(now);
    let waiting = view.slots.iter().enumerate().filter(|(_, slot)| stale(slot));
    // One whose successor failed waits for its delay, and does not hold up the others.
    if let Some((index, _)) = waiting.min_by_key(|(index, slot)| (due(slot).max(now), *index)) {
        spawn(view, index, view.next_generation(index), now, plan);
    }
}

fn spawn(view: &View<'_>, index: usize, generation: u64, now: Duration, plan: &mut Plan) {
    let slot = &view.slots[index];
    let at = slot.rest_until.unwrap_or(now);
    if slot.free_cell().is_some() {
        plan.at(at, now, Action::Spawn { slot: index, generation });
    } else if let Some(oldest) = slot.workers.iter().find(|worker| worker.is_hung())
        && !slot.workers.iter().any(|worker| matches!(worker.stage, Stage::Killed { .. }))
    {
        // A slot in which every spare hangs has no room for another one: it serves rather than waits.
        plan.at(at, now, Action::Kill { slot: index, pid: oldest.pid, cause: Cause::Hang });
    }
    // Else one of the leaving has to go first; its end wakes the loop.
}

fn drain(
    view: &View<'_>,
    slot: usize,
    worker: &Occupant,
    order: Order,
    reason: Reason,
    now: Duration,
    plan: &mut Plan,
) {
    ask(slot, worker, order, reason, now + view.drain_timeout + LEAVE_MARGIN, plan);
}

fn ask(slot: usize, worker: &Occupant, order: Order, reason: Reason, kill_at: Duration, plan: &mut Plan) {
    plan.actions.push(Action::Drain { slot, pid: worker.pid, kill_at, order, reason });
    plan.wake_at(kill_at);
}

fn stop(view: &View<'_>, now: Duration, plan: &mut Plan) {
    let at_once = view.target == Target::StopNow;
    for (slot, state) in view.slots.iter().enumerate() {
        for worker in &state.workers {
            match worker.stage {
                Stage::Killed { forget_at, .. } if forget_at > now => plan.wake_at(forget_at),
                Stage::Killed { .. } => {}
                _ if at_once => {
                    plan.actions.push(Action::Kill { slot, pid: worker.pid, cause: Cause::StopNow });
                }
                Stage::Booting { .. } | Stage::Ready { .. } => {
                    drain(view, slot, worker, Order::Stop, Reason::Stop, now, plan);
                }
                Stage::Hung { kill_at: lost, .. } => {
                    let full = now + view.drain_timeout + LEAVE_MARGIN;
                    let kill_at = lost.map_or(full, |lost| lost.max(now + LEAVE_MARGIN).min(full));
                    ask(slot, worker, Order::Stop, Reason::Stop, kill_at, plan);
                }
                Stage::Draining { .. } => {}
            }
        }
    }
    let gone =
        |worker: &Occupant| matches!(worker.stage, Stage::Killed { forget_at, .. } if forget_at <= now);
    if view.slots.iter().all(|slot| slot.workers.iter().all(gone)) {
        plan.actions.push(Action::Finish);
    }
}
