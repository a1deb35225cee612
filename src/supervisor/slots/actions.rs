//! Carries out the plan, one action at a time.

use std::fs::File;
use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::{CellState, DrainOrder};
use crate::supervisor::effects::{WorkerEvent, event_now};
use crate::supervisor::slots::backoff::WorkerDeath;
use crate::supervisor::slots::plan::{DesiredState, KillReason, SlotAction};
use crate::supervisor::slots::slot::{SlotListening, WorkerHandle, WorkerPhase};
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::supervisor::slots::{send_signal, spawn};
use crate::supervisor::{Supervisor, SupervisorExit};
use crate::sys::process::Pid;
use crate::sys::signal::Signal;
use crate::sys::{clock, random};

/// How long a killed worker is waited for when the fleet ends.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

impl Supervisor<'_> {
    /// Does one thing; an outcome ends the loop.
    pub(in crate::supervisor) fn apply_action(
        &mut self,
        action: SlotAction,
        now: Duration,
    ) -> Option<SupervisorExit> {
        match action {
            SlotAction::Spawn { slot, generation } => self.spawn(slot, generation, now),
            SlotAction::Promote { slot } => self.promote(slot),
            SlotAction::Drain { slot, pid, kill_at, order, reason } => {
                self.drain(slot, pid, kill_at, order, reason);
            }
            SlotAction::Abort { slot, pid, kill_at: at } => {
                if let Some(worker) = self.slots.entries[slot].worker_mut(pid)
                    && let WorkerPhase::Draining { kill_at, aborted: cut, .. } = &mut worker.phase
                {
                    (*kill_at, *cut) = (at.min(*kill_at), true);
                    self.scoreboard.cell(slot, worker.cell).set_drain_order(DrainOrder::Abort);
                }
                send_signal(pid, Signal::SIGTERM);
                tracing::warn!(slot, pid = pid.as_raw(), "aborting worker: too many draining workers");
                let incident = WorkerEvent { kind: EventKind::WorkerAborted, slot, pid };
                self.record_worker_event(incident, None, "is aborted: too many draining workers");
            }
            SlotAction::Kill { slot, pid, cause } => self.kill(slot, pid, cause, now),
            SlotAction::CloseListeners { slot } => self.close_listeners(slot),
            SlotAction::Remove { slot } => {
                self.slots.entries.truncate(slot);
                self.slots.sockets.truncate(slot);
            }
            SlotAction::ReportBootFailure => {
                return Some(SupervisorExit::BootFailed { reason: self.lifecycle.last_failure.clone() });
            }
            SlotAction::Finish => return Some(SupervisorExit::Stopped { killed: self.lifecycle.killed }),
        }
        None
    }

    fn promote(&mut self, slot: usize) {
        self.slots.entries[slot].generation = self.deployment.generation();
        self.slots.publish_state(self.scoreboard, slot);
        tracing::debug!(slot, generation = self.deployment.generation(), "slot has the new generation");
    }

    fn drain(&mut self, slot: usize, pid: Pid, kill_at: Duration, order: DrainOrder, reason: ExitReason) {
        // New connections are kept off a slot that ends before its worker begins to leave.
        self.steer();
        let Some(worker) = self.slots.entries[slot].worker_mut(pid) else { return };
        worker.phase = WorkerPhase::Draining { kill_at, reason, order, aborted: false };
        let cell = self.scoreboard.cell(slot, worker.cell);
        cell.set_drain_order(order);
        cell.set_state(CellState::Draining);
        send_signal(pid, Signal::SIGTERM);
        self.slots.publish_state(self.scoreboard, slot);
        tracing::info!(slot, pid = pid.as_raw(), %reason, "worker draining");
        let incident = WorkerEvent { kind: EventKind::WorkerDraining, slot, pid };
        self.record_worker_event(incident, Some(reason), &format!("drains ({reason})"));
    }

    pub(in crate::supervisor) fn kill(&mut self, slot: usize, pid: Pid, cause: KillReason, now: Duration) {
        send_signal(pid, Signal::SIGKILL);
        let Some(worker) = self.slots.entries[slot].worker_mut(pid) else { return };
        worker.phase = WorkerPhase::Killed { cause, give_up_at: now + KILL_TIMEOUT };
        self.scoreboard.cell(slot, worker.cell).set_state(CellState::Killed);
        self.lifecycle.killed += usize::from(self.lifecycle.desired_state != DesiredState::Killing);
        self.slots.publish_state(self.scoreboard, slot);
        tracing::warn!(slot, pid = pid.as_raw(), %cause, "worker killed: {cause}");
        let incident = WorkerEvent { kind: EventKind::WorkerKilled, slot, pid };
        self.record_worker_event(incident, Some(cause.exit_reason()), &format!("is killed: {cause}"));
    }

    /// Ends listening in a slot that gets no worker any more.
    pub(in crate::supervisor) fn close_listeners(&mut self, slot: usize) {
        self.slots.entries[slot].listening = SlotListening::Retired;
        // Once is enough.
        let Some(listeners) = self.slots.sockets[slot].take() else { return };
        listeners.close();
        tracing::info!(slot, "slot retired");
        self.record_event(event_now(EventKind::SlotRetired, format!("slot {slot} has retired")).slot(slot));
    }

    fn spawn(&mut self, index: usize, generation: u64, now: Duration) {
        let (slot, listeners) = (&mut self.slots.entries[index], &self.slots.sockets[index]);
        let (Some(number), Some(own)) = (slot.free_cell(), listeners) else { return };
        let changed = self.slots.addresses_change.listeners_for(index, generation, own);
        let listeners = changed.as_ref().unwrap_or(own);
        let cell = self.scoreboard.cell(index, number);
        cell.reset(generation, u64::try_from(clock::wall_clock().as_millis()).unwrap_or(0));
        let host = &*self.host;
        let (shared, lifeline) = (self.slots.shared_queue.as_ref(), &self.lifecycle.lifeline);
        let given = spawn::SpawnRequest {
            slot: index,
            cell: number,
            generation,
            listeners,
            shared_queue: shared,
            lifeline,
        };
        match spawn::spawn(&given, host) {
            Ok((pid, pipe)) => {
                slot.workers.push(WorkerHandle {
                    pid,
                    generation,
                    cell: number,
                    phase: WorkerPhase::Booting { deadline: now + self.settings.boot_timeout },
                    started: now,
                    replace_reason: None,
                });
                slot.backoff_until = None;
                self.slots.status_pipes.insert(pid, StatusPipe::new(File::from(pipe)));
                cell.set_pid(pid.as_raw().unsigned_abs());
                tracing::info!(slot = index, pid = pid.as_raw(), generation, "worker started");
                let incident = WorkerEvent { kind: EventKind::WorkerStarted, slot: index, pid };
                self.record_worker_event(incident, None, &format!("is started, generation {generation}"));
                self.save_worker_list();
            }
            Err(error) => {
                let delay = slot.backoff.delay_after(WorkerDeath::BeforeReady, random::jitter());
                slot.backoff_until = Some(now + delay);
                cell.clear();
                self.lifecycle.last_failure = format!("cannot fork: {error}");
                tracing::error!(slot = index, %error, "cannot fork a worker");
                // A rollout that cannot start a worker would wait for ever; what serves goes on serving.
                if self.deployment.rolling_out_to() == Some(generation) {
                    self.roll_back(&format!("no new worker can be started in slot {index}: {error}"));
                }
            }
        }
        self.slots.publish_state(self.scoreboard, index);
    }
}
