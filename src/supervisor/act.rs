//! Carries out what the plan says, one action at a time.

use std::fs::File;
use std::time::Duration;

use crate::scoreboard::Reason;
use crate::scoreboard::cell::Order;
use crate::scoreboard::cell::WorkerState;
use crate::supervisor::Outcome;
use crate::supervisor::Supervisor;
use crate::supervisor::backoff::Death;
use crate::supervisor::history::Incident;
use crate::supervisor::history::happened;
use crate::supervisor::plan::Action;
use crate::supervisor::plan::Cause;
use crate::supervisor::plan::Target;
use crate::supervisor::reap::Report;
use crate::supervisor::rollout::Course;
use crate::supervisor::rollout::Rollout;
use crate::supervisor::slot::Occupant;
use crate::supervisor::slot::Seat;
use crate::supervisor::slot::Stage;
use crate::supervisor::spawn;
use crate::sys::proc::Pid;
use crate::sys::random;
use crate::sys::signal;
use crate::sys::signal::Signal;
use crate::sys::time;

/// How long a killed worker is waited for when the fleet ends.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Supervisor<'_> {
    /// Does one thing; an outcome ends the loop.
    pub(super) fn act(&mut self, action: Action, now: Duration) -> Option<Outcome> {
        match action {
            Action::Spawn { slot, generation } => self.spawn(slot, generation, now),
            Action::Promote { slot } => self.promote(slot),
            Action::Drain { slot, pid, kill_at, order, reason } => {
                self.drain(slot, pid, kill_at, order, reason);
            }
            Action::Cut { slot, pid, kill_at: at } => {
                if let Some(worker) = self.slots[slot].worker(pid)
                    && let Stage::Draining { kill_at, cut, .. } = &mut worker.stage
                {
                    (*kill_at, *cut) = (at.min(*kill_at), true);
                    self.scoreboard.cell(slot, worker.cell).set_order(Order::Cut);
                }
                self.send(pid, Signal::SIGTERM);
                tracing::warn!(
                    slot,
                    pid = pid.as_raw(),
                    "worker is told to cut what it still has: too many older workers"
                );
                let incident = Incident { kind: "worker_cut", slot, pid };
                self.note_worker(incident, None, "is to cut what it still has: too many leave");
            }
            Action::Kill { slot, pid, cause } => self.kill(slot, pid, cause, now),
            Action::CloseSeat { slot } => self.close_seat(slot),
            Action::Remove { slot } => {
                self.slots.truncate(slot);
                self.sockets.truncate(slot);
            }
            Action::GiveUp => return Some(Outcome::BootFailed { reason: self.last_failure.clone() }),
            Action::Finish => return Some(Outcome::Stopped { killed: self.killed }),
        }
        None
    }

    pub(super) fn send(&self, pid: Pid, signal: Signal) {
        if let Err(error) = signal::send(pid, signal) {
            tracing::error!(pid = pid.as_raw(), signal = %signal, %error, "cannot signal a worker");
        }
    }

    /// Writes where the slot stands into its row.
    pub(super) fn show(&self, slot: usize) {
        let (state, incumbent) = self.slots[slot].summary();
        self.scoreboard.row(slot).set_state(state, incumbent);
    }

    fn promote(&mut self, slot: usize) {
        self.slots[slot].generation = self.generation;
        self.show(slot);
        tracing::debug!(slot, generation = self.generation, "slot has the new generation");
    }

    fn drain(&mut self, slot: usize, pid: Pid, kill_at: Duration, order: Order, reason: Reason) {
        // New connections are kept off a slot that ends before its worker begins to leave.
        self.steer();
        let Some(worker) = self.slots[slot].worker(pid) else { return };
        worker.stage = Stage::Draining { kill_at, reason, order, cut: false };
        let cell = self.scoreboard.cell(slot, worker.cell);
        cell.set_order(order);
        cell.set_state(WorkerState::Draining);
        self.send(pid, Signal::SIGTERM);
        self.show(slot);
        tracing::info!(slot, pid = pid.as_raw(), %reason, "worker drains");
        let incident = Incident { kind: "worker_drains", slot, pid };
        self.note_worker(incident, Some(reason), &format!("finishes and leaves ({reason})"));
    }

    pub(super) fn kill(&mut self, slot: usize, pid: Pid, cause: Cause, now: Duration) {
        self.send(pid, Signal::SIGKILL);
        let Some(worker) = self.slots[slot].worker(pid) else { return };
        worker.stage = Stage::Killed { cause, forget_at: now + KILL_PATIENCE };
        self.scoreboard.cell(slot, worker.cell).set_state(WorkerState::Killed);
        self.killed += usize::from(self.target != Target::StopNow);
        self.show(slot);
        tracing::warn!(slot, pid = pid.as_raw(), %cause, "worker killed: {cause}");
        let incident = Incident { kind: "worker_killed", slot, pid };
        self.note_worker(incident, Some(cause.reason()), &format!("is killed: {cause}"));
    }

    /// Ends listening in a slot: nobody will sit here any more.
    pub(super) fn close_seat(&mut self, slot: usize) {
        self.slots[slot].seat = Seat::Closed;
        // Once is enough.
        let Some(listeners) = self.sockets[slot].take() else { return };
        listeners.close();
        tracing::info!(slot, "slot closed");
        self.note(happened("slot_closed", format!("slot {slot} has retired")).slot(slot));
    }

    fn spawn(&mut self, index: usize, generation: u64, now: Duration) {
        let (slot, listeners) = (&mut self.slots[index], &self.sockets[index]);
        let (Some(number), Some(listeners)) = (slot.free_cell(), listeners) else { return };
        let cell = self.scoreboard.cell(index, number);
        cell.prepare(generation, u64::try_from(time::unix().as_millis()).unwrap_or(0));
        let host = &*self.host;
        let (shared, lifeline) = (self.shared.as_ref(), &self.lifeline);
        let given = spawn::Given { slot: index, cell: number, generation, listeners, shared, lifeline };
        match spawn::spawn(&given, host) {
            Ok((pid, pipe)) => {
                slot.workers.push(Occupant {
                    pid,
                    generation,
                    cell: number,
                    stage: Stage::Booting { deadline: now + self.settings.boot_timeout },
                    started: now,
                    retire: None,
                });
                slot.rest_until = None;
                self.reports.insert(pid, Report::new(File::from(pipe)));
                cell.seated(pid.as_raw().unsigned_abs());
                tracing::info!(slot = index, pid = pid.as_raw(), generation, "worker started");
                let incident = Incident { kind: "worker_started", slot: index, pid };
                self.note_worker(incident, None, &format!("is started, generation {generation}"));
                self.write_down_workers();
            }
            Err(error) => {
                let delay = slot.backoff.after(Death::BeforeReady, random::jitter());
                slot.rest_until = Some(now + delay);
                cell.vacate();
                self.last_failure = format!("cannot fork: {error}");
                tracing::error!(slot = index, %error, "cannot fork a worker");
                // A rollout that can start nobody would wait for ever; what serves goes on serving.
                let leads_here =
                    |rollout: &Rollout| rollout.course == Course::Forward && rollout.to == generation;
                if self.rollout.as_ref().is_some_and(leads_here) {
                    self.take_back(format!("no new worker can be started in slot {index}: {error}"));
                }
            }
        }
        self.show(index);
    }
}
