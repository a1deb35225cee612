//! What the monitor sees of the slots' workers, and what becomes of a worker by what it finds.

use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::scoreboard::cell::{CellState, WorkerCell};
use crate::scoreboard::{ExitReason, Scoreboard};
use crate::supervisor::deployment::rollout::Rollout;
use crate::supervisor::effects::Effect;
use crate::supervisor::monitor::autoscaler::{LoadSample, WorkerLoad};
use crate::supervisor::monitor::hang::{HangSample, Stall, StallKind};
use crate::supervisor::monitor::recycling::RecycleCause;
use crate::supervisor::monitor::{ServingWorker, hang};
use crate::supervisor::slots::checks::{CheckDecision, REPORT_TIMEOUT};
use crate::supervisor::slots::context::SlotContext;
use crate::supervisor::slots::slot::{SlotListening, WorkerHandle, WorkerPhase};
use crate::supervisor::slots::table::SlotTable;

/// Has a worker report the application's checks until some time after this.
pub(super) fn request_checks(cell: WorkerCell<'_>, from: Duration) {
    let until = from + 2 * REPORT_TIMEOUT;
    cell.request_checks(u64::try_from(until.as_millis()).unwrap_or(u64::MAX));
}

impl SlotTable {
    /// Whether any worker is known to hang.
    pub(in crate::supervisor) fn any_hung(&self) -> bool {
        self.entries.iter().any(|slot| slot.workers.iter().any(WorkerHandle::is_hung))
    }

    /// Every worker that serves or hangs, with its figures.
    pub(in crate::supervisor) fn serving_workers(&self, scoreboard: &Scoreboard) -> Vec<ServingWorker> {
        let mut seen = Vec::with_capacity(self.entries.len());
        for (slot, state) in self.entries.iter().enumerate() {
            for worker in &state.workers {
                let (WorkerPhase::Ready { since } | WorkerPhase::Hung { since, .. }) = worker.phase else {
                    continue;
                };
                let cell = scoreboard.cell(slot, worker.cell);
                let Some(snapshot) = cell.snapshot() else { continue };
                seen.push(ServingWorker {
                    slot,
                    pid: worker.pid,
                    since,
                    is_hung: worker.is_hung(),
                    is_retiring: worker.replace_reason.is_some(),
                    progress: cell.progress(),
                    snapshot,
                });
            }
        }
        seen
    }

    /// What tells whether a worker hangs.
    pub(in crate::supervisor) fn hang_sample(
        &self,
        worker: &ServingWorker,
        scoreboard: &Scoreboard,
    ) -> HangSample {
        HangSample {
            last_heartbeat: worker.last_heartbeat(),
            progress: worker.progress,
            accepted: scoreboard.row(worker.slot).accepted(),
            queued_connections: self.queued_connections(worker.slot),
        }
    }

    /// The load of the fleet.
    pub(in crate::supervisor) fn load_sample(&self, seen: &[ServingWorker], now: Duration) -> LoadSample {
        // A slot with a hung worker is its spare's: one worker a slot.
        let open = |worker: &&ServingWorker| {
            self.entries[worker.slot].listening == SlotListening::Open && !worker.is_hung
        };
        let busy = |worker: &ServingWorker| WorkerLoad {
            worker: u64::from(worker.pid.as_raw().unsigned_abs()),
            busy: Duration::from_micros(worker.snapshot.busy_us),
            silent: hang::is_overdue(worker.last_heartbeat(), now),
        };
        LoadSample {
            target: self.desired,
            workers: seen.iter().filter(open).map(busy).collect(),
            backlog: (0..self.entries.len()).map(|slot| self.queued_connections(slot)).sum(),
        }
    }

    /// It may hang, and new connections are steered around its slot by now.
    pub(in crate::supervisor) fn on_suspect(&mut self, seen: &ServingWorker, stall: Stall) -> Effect {
        let (slot, pid) = (seen.slot, seen.pid);
        tracing::info!(slot, pid = pid.as_raw(), "worker suspect: steering around its slot: {stall}");
        let what = format!("may hang, steering around its slot: {stall}");
        self.worker_event(EventKind::WorkerSuspect, (slot, pid), None, &what)
    }

    /// It stays, with the requests it has: its slot is filled without it, and its backtrace is requested.
    pub(in crate::supervisor) fn on_hang(
        &mut self,
        seen: &ServingWorker,
        stall: Stall,
        fleet: &SlotContext<'_>,
    ) -> Vec<Effect> {
        let (slot, pid, reason) = (seen.slot, seen.pid, ExitReason::Hang);
        let what = format!("is hung, a spare is started: {stall}");
        let mut effects = vec![self.worker_event(EventKind::WorkerHung, (slot, pid), Some(reason), &what)];
        // A stopped process handles no signal.
        if stall.kind != StallKind::Stopped {
            effects.push(Effect::RequestBacktrace(pid));
        }
        let monitor = fleet.settings.monitor;
        let kill_at = (!monitor.hang_kill.is_zero())
            .then(|| fleet.now + monitor.hang_kill.saturating_sub(monitor.hang_timeout));
        let Some(worker) = self.entries[slot].worker_mut(pid) else { return effects };
        worker.phase = WorkerPhase::Hung { since: seen.since, kill_at };
        if fleet.is_failed_by(worker) {
            effects.push(Effect::RollBack(format!("the new worker in slot {slot} hangs: {stall}")));
        }
        fleet.scoreboard.cell(slot, worker.cell).set_state(CellState::Hung);
        self.publish_state(fleet.scoreboard, slot);
        effects
    }

    /// It serves as before, and its spare, if it has one, takes over from it as any successor does.
    pub(in crate::supervisor) fn on_recovery(
        &mut self,
        seen: &ServingWorker,
        fleet: &SlotContext<'_>,
    ) -> Option<Effect> {
        let (slot, pid) = (seen.slot, seen.pid);
        let lives = |other: &WorkerHandle| other.pid != pid && (other.is_ready() || other.is_booting());
        let has_spare = self.entries[slot].workers.iter().any(lives);
        let worker = self.entries[slot].worker_mut(pid)?;
        if worker.is_hung() {
            worker.phase = WorkerPhase::Ready { since: seen.since };
            if has_spare {
                worker.replace_reason = worker.replace_reason.or(Some(ExitReason::Hang));
            }
            fleet.scoreboard.cell(slot, worker.cell).set_state(CellState::Ready);
            self.publish_state(fleet.scoreboard, slot);
        }
        tracing::info!(slot, pid = pid.as_raw(), "worker recovered");
        Some(self.worker_event(EventKind::WorkerRecovered, (slot, pid), None, "has recovered"))
    }

    /// Whether a worker of this slot and generation is the first of a rollout.
    pub(super) fn is_first_of_rollout(&self, slot: usize, generation: u64, fleet: &SlotContext<'_>) -> bool {
        let first =
            |rollout: &Rollout| rollout.to == generation && rollout.canary_slot(&self.entries) == Some(slot);
        fleet.rolling_out.as_ref().is_some_and(first)
    }

    /// Has the first worker of a rollout, and one of the old generation, report the application's checks: until when the
    /// first one is held by them, or what ends the rollout.
    pub(in crate::supervisor) fn judge_checks(
        &mut self,
        fleet: &SlotContext<'_>,
    ) -> (Option<Duration>, Option<Effect>) {
        let none = (None, None);
        let Some(rollout) = fleet.rolling_out.as_ref().filter(|_| !fleet.settings.canary_period.is_zero())
        else {
            return none;
        };
        let Some(slot) = rollout.canary_slot(&self.entries) else { return none };
        let ready = |slot: usize, generation: u64| {
            let serves = |worker: &&WorkerHandle| worker.generation == generation && worker.is_ready();
            self.entries[slot].workers.iter().rev().find(serves).map(|worker| (slot, worker))
        };
        let Some((_, &WorkerHandle { pid, cell, phase: WorkerPhase::Ready { since }, .. })) =
            ready(slot, rollout.to)
        else {
            return none;
        };
        let mut others = std::iter::once(slot).chain(0..self.entries.len());
        let old = others.find_map(|slot| ready(slot, rollout.from));
        request_checks(fleet.scoreboard.cell(slot, cell), fleet.now);
        if let Some((slot, old)) = old {
            request_checks(fleet.scoreboard.cell(slot, old.cell), fleet.now);
        }
        let reported = |pid| self.status_pipes.get(&pid).map(|pipe| &pipe.checks);
        let Some(new) = reported(pid) else { return none };
        match new.judge(old.and_then(|(_, old)| reported(old.pid)), since, fleet.now) {
            CheckDecision::Undecided(until) => (Some(until), None),
            CheckDecision::Failed(cause) => {
                let reason = format!("the new worker in slot {slot} failed: {cause}");
                (None, Some(Effect::RollBack(reason)))
            }
            CheckDecision::Passed(failures) => {
                if !failures.is_empty()
                    && self.status_pipes.get_mut(&pid).is_some_and(|pipe| pipe.checks.explain())
                {
                    let failures = failures.join("; ");
                    tracing::warn!(
                        slot,
                        failures,
                        "checks fail in the new worker, the rollout goes on: {failures}"
                    );
                }
                none
            }
        }
    }

    /// It has done enough, or holds too much: a successor takes its slot.
    pub(in crate::supervisor) fn on_recycling(
        &mut self,
        seen: &ServingWorker,
        cause: RecycleCause,
    ) -> Effect {
        let (slot, pid, reason) = (seen.slot, seen.pid, cause.exit_reason());
        if let Some(worker) = self.entries[slot].worker_mut(pid) {
            worker.replace_reason = Some(reason);
        }
        tracing::info!(slot, pid = pid.as_raw(), %reason, "recycling worker: {cause}");
        let what = format!("is recycled: {cause}");
        self.worker_event(EventKind::WorkerRecycling, (slot, pid), Some(reason), &what)
    }
}
