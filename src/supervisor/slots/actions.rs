//! What becomes of a slot by the plan, one action at a time.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::{CellState, DrainOrder};
use crate::supervisor::effects::{Effect, event_now};
use crate::supervisor::slots::backoff::WorkerDeath;
use crate::supervisor::slots::context::SlotContext;
use crate::supervisor::slots::health::request_checks;
use crate::supervisor::slots::plan::{DesiredState, KillReason, SlotAction};
use crate::supervisor::slots::slot::{SlotListening, WorkerHandle, WorkerPhase};
use crate::supervisor::slots::spawn::SpawnRequest;
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::supervisor::slots::table::SlotTable;
use crate::sys::process::Pid;
use crate::sys::signal::Signal;
use crate::sys::{clock, random};

/// How long a killed worker is waited for when the fleet ends.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

impl SlotTable {
    /// Does one thing. Forks and the end of the fleet are the driver's.
    pub(in crate::supervisor) fn apply(
        &mut self,
        action: SlotAction,
        fleet: &SlotContext<'_>,
    ) -> Vec<Effect> {
        match action {
            SlotAction::Promote { slot } => self.promote(slot, fleet),
            SlotAction::Drain { slot, pid, kill_at, order, reason } => {
                let phase = WorkerPhase::Draining { kill_at, reason, order, aborted: false };
                return self.drain((slot, pid), phase, order, reason, fleet);
            }
            SlotAction::Abort { slot, pid, kill_at } => return self.abort((slot, pid), kill_at, fleet),
            SlotAction::Kill { slot, pid, cause } => return self.kill((slot, pid), cause, fleet),
            SlotAction::CloseListeners { slot } => return self.close_listeners(slot).into_iter().collect(),
            SlotAction::Remove { slot } => {
                self.entries.truncate(slot);
                self.sockets.truncate(slot);
            }
            SlotAction::Spawn { .. } | SlotAction::ReportBootFailure | SlotAction::Finish => {}
        }
        Vec::new()
    }

    fn promote(&mut self, slot: usize, fleet: &SlotContext<'_>) {
        self.entries[slot].generation = fleet.generation;
        self.publish_state(fleet.scoreboard, slot);
        tracing::debug!(slot, generation = fleet.generation, "slot has the new generation");
    }

    fn drain(
        &mut self,
        (slot, pid): (usize, Pid),
        phase: WorkerPhase,
        order: DrainOrder,
        reason: ExitReason,
        fleet: &SlotContext<'_>,
    ) -> Vec<Effect> {
        let Some(worker) = self.entries[slot].worker_mut(pid) else { return Vec::new() };
        worker.phase = phase;
        let cell = fleet.scoreboard.cell(slot, worker.cell);
        cell.set_drain_order(order);
        cell.set_state(CellState::Draining);
        self.publish_state(fleet.scoreboard, slot);
        tracing::info!(slot, pid = pid.as_raw(), %reason, "worker draining");
        let what = format!("drains ({reason})");
        vec![
            Effect::Signal(pid, Signal::SIGTERM),
            self.worker_event(EventKind::WorkerDraining, (slot, pid), Some(reason), &what),
        ]
    }

    fn abort(&mut self, (slot, pid): (usize, Pid), at: Duration, fleet: &SlotContext<'_>) -> Vec<Effect> {
        if let Some(worker) = self.entries[slot].worker_mut(pid)
            && let WorkerPhase::Draining { kill_at, aborted, .. } = &mut worker.phase
        {
            (*kill_at, *aborted) = (at.min(*kill_at), true);
            fleet.scoreboard.cell(slot, worker.cell).set_drain_order(DrainOrder::Abort);
        }
        tracing::warn!(slot, pid = pid.as_raw(), "aborting worker: too many draining workers");
        let what = "is aborted: too many draining workers";
        vec![
            Effect::Signal(pid, Signal::SIGTERM),
            self.worker_event(EventKind::WorkerAborted, (slot, pid), None, what),
        ]
    }

    pub(in crate::supervisor) fn kill(
        &mut self,
        (slot, pid): (usize, Pid),
        cause: KillReason,
        fleet: &SlotContext<'_>,
    ) -> Vec<Effect> {
        let mut effects = vec![Effect::Signal(pid, Signal::SIGKILL)];
        let Some(worker) = self.entries[slot].worker_mut(pid) else { return effects };
        worker.phase = WorkerPhase::Killed { cause, give_up_at: fleet.now + KILL_TIMEOUT };
        fleet.scoreboard.cell(slot, worker.cell).set_state(CellState::Killed);
        self.killed += usize::from(fleet.desired_state != DesiredState::Killing);
        self.publish_state(fleet.scoreboard, slot);
        tracing::warn!(slot, pid = pid.as_raw(), %cause, "worker killed: {cause}");
        let (kind, what) = (EventKind::WorkerKilled, format!("is killed: {cause}"));
        effects.push(self.worker_event(kind, (slot, pid), Some(cause.exit_reason()), &what));
        effects
    }

    /// Ends listening in a slot that gets no worker any more.
    pub(in crate::supervisor) fn close_listeners(&mut self, slot: usize) -> Option<Effect> {
        self.entries[slot].listening = SlotListening::Retired;
        // Once is enough.
        self.sockets[slot].take()?.close();
        tracing::info!(slot, "slot retired");
        let event = event_now(EventKind::SlotRetired, format!("slot {slot} has retired"));
        Some(Effect::Record(event.slot(slot)))
    }

    /// Closes the listeners of slots without a worker: no worker would accept what comes there.
    pub(in crate::supervisor) fn close_empty_slots(&mut self) -> Vec<Effect> {
        let empty: Vec<_> =
            (0..self.entries.len()).filter(|slot| self.entries[*slot].workers.is_empty()).collect();
        empty.into_iter().filter_map(|slot| self.close_listeners(slot)).collect()
    }

    /// What a new worker of this slot is made of, if the slot has room for one.
    pub(in crate::supervisor) fn spawn_request<'a>(
        &'a self,
        slot: usize,
        generation: u64,
        lifeline: &'a OwnedFd,
        fleet: &SlotContext<'_>,
    ) -> Option<SpawnRequest<'a>> {
        let cell = self.entries[slot].free_cell()?;
        let listeners = self.sockets[slot].as_ref()?;
        let now_ms = u64::try_from(clock::wall_clock().as_millis()).unwrap_or(0);
        fleet.scoreboard.cell(slot, cell).reset(generation, now_ms);
        let shared_queue = self.shared_queue.as_ref();
        Some(SpawnRequest { slot, cell, generation, listeners, shared_queue, lifeline })
    }

    /// A worker was forked into this slot and cell, or could not be.
    pub(in crate::supervisor) fn on_spawned(
        &mut self,
        (index, cell): (usize, usize),
        generation: u64,
        spawned: io::Result<(Pid, OwnedFd)>,
        fleet: &SlotContext<'_>,
    ) -> Vec<Effect> {
        let is_first = self.is_first_of_rollout(index, generation, fleet);
        let slot = &mut self.entries[index];
        let row = fleet.scoreboard.cell(index, cell);
        let mut effects = Vec::new();
        match spawned {
            Ok((pid, pipe)) => {
                let deadline = fleet.now + fleet.settings.boot_timeout;
                slot.workers.push(WorkerHandle {
                    pid,
                    generation,
                    cell,
                    phase: WorkerPhase::Booting { deadline },
                    started: fleet.now,
                    replace_reason: None,
                });
                slot.backoff_until = None;
                self.status_pipes.insert(pid, StatusPipe::new(File::from(pipe)));
                row.set_pid(pid.as_raw().unsigned_abs());
                if is_first {
                    // Set before it is READY, so that it checks at once.
                    request_checks(row, deadline);
                }
                tracing::info!(slot = index, pid = pid.as_raw(), generation, "worker started");
                let what = format!("is started, generation {generation}");
                effects.push(self.worker_event(EventKind::WorkerStarted, (index, pid), None, &what));
                effects.push(Effect::SaveWorkerList);
            }
            Err(error) => {
                let delay = slot.backoff.delay_after(WorkerDeath::BeforeReady, random::jitter());
                slot.backoff_until = Some(fleet.now + delay);
                row.clear();
                self.last_failure = format!("cannot fork: {error}");
                tracing::error!(slot = index, %error, "cannot fork a worker");
                // A rollout that cannot start a worker would wait for ever; what serves goes on serving.
                if fleet.rolling_out.as_ref().is_some_and(|rollout| rollout.to == generation) {
                    let reason = format!("no new worker can be started in slot {index}: {error}");
                    effects.push(Effect::RollBack(reason));
                }
            }
        }
        self.publish_state(fleet.scoreboard, index);
        effects
    }
}
