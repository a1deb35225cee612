//! Exits and messages of workers, and what they mean for their slot.

use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::control::protocol::CommandResult;
use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::{CellState, DrainOrder};
use crate::supervisor::effects::{Effect, WorkerEvent};
use crate::supervisor::slots::backoff::WorkerDeath;
use crate::supervisor::slots::context::SlotContext;
use crate::supervisor::slots::plan::{DesiredState, EXIT_GRACE, KillReason};
use crate::supervisor::slots::slot::{SlotListening, WorkerHandle, WorkerPhase};
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::supervisor::slots::table::SlotTable;
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::{backtrace, random};
use crate::units;

/// What the kernel and the worker itself say of its end.
#[derive(Debug)]
pub(in crate::supervisor) struct ExitReport {
    pub(in crate::supervisor) exit: ExitStatus,
    /// The failure it reported.
    pub(in crate::supervisor) boot_failure: Option<String>,
    /// Whether the kernel killed it for want of memory.
    pub(in crate::supervisor) out_of_memory: bool,
}

/// A worker that ended: how, and what it was doing.
struct WorkerExit {
    worker: WorkerHandle,
    report: ExitReport,
}

impl WorkerExit {
    /// The reason it is counted under.
    fn exit_reason(&self) -> ExitReason {
        match (self.worker.phase, self.report.exit) {
            _ if self.report.boot_failure.is_some() => ExitReason::Boot,
            (WorkerPhase::Killed { cause, .. }, _) => cause.exit_reason(),
            (WorkerPhase::Hung { .. }, _) => ExitReason::Hang,
            (WorkerPhase::Draining { reason, .. }, ExitStatus::Code(0)) => reason,
            (WorkerPhase::Ready { .. }, ExitStatus::Code(0)) => ExitReason::Operator,
            (_, ExitStatus::Code(_)) => ExitReason::ExitCode,
            (_, ExitStatus::Signal(_)) if self.report.out_of_memory => ExitReason::OutOfMemory,
            (_, ExitStatus::Signal(_) | ExitStatus::RealtimeSignal(_)) => ExitReason::Signal,
        }
    }

    /// Its event: what counts as a crash is called one, with or without an order to leave.
    fn record(&self, slot: usize, cause: &str) -> Effect {
        let reason = self.exit_reason();
        let (kind, ended) = match reason.is_failure() {
            true => (EventKind::WorkerCrashed, "crashed"),
            false => (EventKind::WorkerExited, "exited"),
        };
        let incident = WorkerEvent { kind, slot, pid: self.worker.pid };
        let what = format!("{ended} ({reason}): {cause}");
        Effect::Record(incident.into_event(Some(self.worker.generation), Some(reason), &what))
    }

    /// The same in words.
    fn describe(&self) -> String {
        match (&self.report.boot_failure, self.worker.phase) {
            (Some(failure), _) => failure.clone(),
            (None, WorkerPhase::Killed { cause, .. }) => cause.to_string(),
            (None, _) if self.report.out_of_memory => "the kernel killed it for want of memory".to_owned(),
            (None, _) => self.report.exit.to_string(),
        }
    }
}

impl SlotTable {
    /// The slot in which this worker is.
    pub(in crate::supervisor) fn slot_of(&mut self, pid: Pid) -> Option<usize> {
        self.entries.iter_mut().position(|slot| slot.worker_mut(pid).is_some())
    }

    /// The event of something that happened to a worker that is in its slot.
    pub(super) fn worker_event(
        &mut self,
        kind: EventKind,
        (slot, pid): (usize, Pid),
        reason: Option<ExitReason>,
        what: &str,
    ) -> Effect {
        let generation = self.entries[slot].worker_mut(pid).map(|worker| worker.generation);
        Effect::Record(WorkerEvent { kind, slot, pid }.into_event(generation, reason, what))
    }

    /// A worker has ended; its messages were taken before.
    pub(in crate::supervisor) fn on_exit(
        &mut self,
        (index, pid): (usize, Pid),
        report: ExitReport,
        fleet: &SlotContext<'_>,
    ) -> Vec<Effect> {
        self.status_pipes.remove(&pid);
        let slot = &mut self.entries[index];
        let Some(place) = slot.workers.iter().position(|worker| worker.pid == pid) else { return Vec::new() };
        let worker = slot.workers.remove(place);
        fleet.scoreboard.cell(index, worker.cell).clear();
        let end = WorkerExit { worker, report };
        fleet.scoreboard.row(index).record_exit(end.exit_reason());
        let mut effects = match end.worker.phase {
            WorkerPhase::Draining { .. } | WorkerPhase::Killed { cause: KillReason::DrainTimeout, .. } => {
                on_expected_exit(index, &end)
            }
            _ => self.on_crash(index, &end, fleet),
        };
        // No worker comes any more that would accept what arrives here.
        if fleet.desired_state != DesiredState::Running && self.entries[index].workers.is_empty() {
            effects.extend(self.close_listeners(index));
        }
        self.publish_state(fleet.scoreboard, index);
        effects
    }

    /// It had no order.
    fn on_crash(&mut self, index: usize, end: &WorkerExit, fleet: &SlotContext<'_>) -> Vec<Effect> {
        let (cause, reason) = (end.describe(), end.exit_reason());
        let (pid, generation) = (end.worker.pid.as_raw(), end.worker.generation);
        let condemned = fleet.is_failed_by(&end.worker);
        let death = match end.worker.phase {
            WorkerPhase::Ready { since } => WorkerDeath::AfterServing(fleet.now.saturating_sub(since)),
            WorkerPhase::Hung { .. }
            | WorkerPhase::Killed { cause: KillReason::Hang | KillReason::Memory, .. } => {
                WorkerDeath::AfterServing(fleet.now.saturating_sub(end.worker.started))
            }
            _ if end.worker.replace_reason.is_some() => {
                WorkerDeath::AfterServing(fleet.now.saturating_sub(end.worker.started))
            }
            _ => WorkerDeath::BeforeReady,
        };
        if death == WorkerDeath::BeforeReady {
            self.last_failure.clone_from(&cause);
        }
        let delay_seconds = self.set_backoff(index, death, condemned, fleet);
        match fleet.desired_state {
            DesiredState::Running if reason == ExitReason::Operator => {
                tracing::info!(slot = index, pid, delay_seconds, %reason, "worker exited without an order")
            }
            DesiredState::Running => {
                tracing::warn!(slot = index, pid, %cause, delay_seconds, %reason, "worker crashed: {cause}")
            }
            DesiredState::Stopping | DesiredState::Killing => {
                tracing::info!(slot = index, pid, %cause, %reason, "worker exited: {cause}")
            }
        }
        let mut effects = vec![end.record(index, &cause)];
        if death == WorkerDeath::BeforeReady {
            effects.push(self.on_replacement_failed(index, &cause));
            if fleet.rolling_back_to == Some(generation) {
                effects.push(Effect::RollbackFailed { slot: index, cause: cause.clone() });
            }
        }
        if condemned {
            effects.push(Effect::RollBack(format!("the new worker in slot {index} failed: {cause}")));
        }
        effects
    }

    /// A successor failed: its command fails, and the old worker stays.
    fn on_replacement_failed(&mut self, index: usize, cause: &str) -> Effect {
        let mut kept = None;
        let replaced = |worker: &&mut WorkerHandle| worker.replace_reason == Some(ExitReason::Operator);
        for worker in self.entries[index].workers.iter_mut().filter(replaced) {
            worker.replace_reason = None;
            kept = Some(worker.pid);
        }
        let rest = match kept.map(Pid::as_raw) {
            Some(pid) => format!("the old worker, pid {pid}, stays"),
            None => "it is retried".to_owned(),
        };
        let result = CommandResult::failed(format!("the new worker of slot {index} failed: {cause}; {rest}"));
        Effect::FailReplacement(index, result)
    }

    /// Has a slot wait before its next worker is started, as long as follows from this death: in seconds, for the log.
    fn set_backoff(
        &mut self,
        index: usize,
        death: WorkerDeath,
        condemned: bool,
        fleet: &SlotContext<'_>,
    ) -> f64 {
        let slot = &mut self.entries[index];
        // The failure is the generation's that is rolled back, not the slot's.
        let delay =
            if condemned { Duration::ZERO } else { slot.backoff.delay_after(death, random::jitter()) };
        slot.backoff_until = (!delay.is_zero()).then_some(fleet.now + delay);
        units::rounded_seconds(delay)
    }

    /// Takes the messages of all workers.
    pub(in crate::supervisor) fn read_status_pipes(&mut self, fleet: &SlotContext<'_>) -> Vec<Effect> {
        let slots = self.entries.iter().enumerate();
        let workers: Vec<_> = slots
            .flat_map(|(slot, state)| state.workers.iter().map(move |worker| (slot, worker.pid)))
            .collect();
        let mut effects = Vec::new();
        for worker in workers {
            if let Some(failure) = self.receive_messages(worker, fleet, &mut effects) {
                // It is about to end; its reason is taken up then.
                self.status_pipes
                    .entry(worker.1)
                    .and_modify(|report| report.text = format!("failed {failure}\n"));
            }
        }
        effects
    }

    /// Takes a worker's messages; why it failed to boot, if it reports that.
    pub(in crate::supervisor) fn receive_messages(
        &mut self,
        worker: (usize, Pid),
        fleet: &SlotContext<'_>,
        effects: &mut Vec<Effect>,
    ) -> Option<String> {
        let (slot, pid) = worker;
        while let Some(line) = self.status_pipes.get_mut(&pid).and_then(StatusPipe::next_line) {
            match line.as_str() {
                "ready" => effects.extend(self.on_ready(worker, fleet)),
                "leaving" => effects.extend(self.on_draining(worker, fleet)),
                "failing" => effects.extend(self.on_failing(worker, fleet)),
                "closed" => effects.extend(self.on_queue_drained(worker)),
                backtrace::END_LINE => self.log_backtrace(worker),
                other if self.receive_checks(pid, other, fleet) => {}
                other => match (other.strip_prefix("failed "), other.strip_prefix(backtrace::FRAME_PREFIX)) {
                    (Some(reason), _) => return Some(reason.to_owned()),
                    (None, Some(frame)) => {
                        self.status_pipes.entry(pid).and_modify(|report| report.add_frame(frame));
                    }
                    (None, None) => {
                        tracing::debug!(slot, pid = pid.as_raw(), "unknown worker message: {other:?}")
                    }
                },
            }
        }
        None
    }

    /// Takes what a worker says of the application's checks; whether the line is that.
    fn receive_checks(&mut self, pid: Pid, line: &str, fleet: &SlotContext<'_>) -> bool {
        self.status_pipes.get_mut(&pid).is_some_and(|pipe| pipe.checks.receive(line, fleet.now))
    }

    fn on_ready(&mut self, (slot, pid): (usize, Pid), fleet: &SlotContext<'_>) -> Option<Effect> {
        let worker = self.entries[slot].worker_mut(pid).filter(|worker| worker.is_booting())?;
        worker.phase = WorkerPhase::Ready { since: fleet.now };
        fleet.scoreboard.cell(slot, worker.cell).set_state(CellState::Ready);
        let generation = worker.generation;
        self.entries[slot].was_ready = true;
        self.ever_ready = true;
        self.publish_state(fleet.scoreboard, slot);
        tracing::info!(slot, pid = pid.as_raw(), generation, "worker ready");
        let what = format!("is ready, generation {generation}");
        Some(self.worker_event(EventKind::WorkerReady, (slot, pid), None, &what))
    }

    /// It drains without an order of this process: its successor is started at once, not when it has finished.
    fn on_draining(&mut self, (slot, pid): (usize, Pid), fleet: &SlotContext<'_>) -> Option<Effect> {
        let reason = ExitReason::Operator;
        self.drain_unordered((slot, pid), reason, fleet)?;
        tracing::info!(slot, pid = pid.as_raw(), %reason, "worker draining without an order");
        let what = "drains without an order";
        Some(self.worker_event(EventKind::WorkerDraining, (slot, pid), Some(reason), what))
    }

    /// Background work of its application panicked, so that it drains: a crash that finishes its requests.
    fn on_failing(&mut self, (slot, pid): (usize, Pid), fleet: &SlotContext<'_>) -> Vec<Effect> {
        let reason = ExitReason::ExitCode;
        let Some(before) = self.drain_unordered((slot, pid), reason, fleet) else { return Vec::new() };
        let condemned = fleet.is_failed_by(&before);
        let served = match before.phase {
            WorkerPhase::Ready { since } => fleet.now.saturating_sub(since),
            _ => fleet.now.saturating_sub(before.started),
        };
        let delay_seconds = self.set_backoff(slot, WorkerDeath::AfterServing(served), condemned, fleet);
        let cause = "background work of the application panicked";
        tracing::warn!(slot, pid = pid.as_raw(), cause, delay_seconds, %reason, "worker failed, draining: {cause}");
        let what = format!("drains: {cause}");
        let mut effects =
            vec![self.worker_event(EventKind::WorkerDraining, (slot, pid), Some(reason), &what)];
        if condemned {
            effects.push(Effect::RollBack(format!("the new worker in slot {slot} failed: {cause}")));
        }
        effects
    }

    /// Takes a worker that serves for one that leaves; as it was before, unless it does not serve.
    fn drain_unordered(
        &mut self,
        (slot, pid): (usize, Pid),
        reason: ExitReason,
        fleet: &SlotContext<'_>,
    ) -> Option<WorkerHandle> {
        let kill_at = fleet.now + fleet.settings.drain_timeout + EXIT_GRACE;
        let worker = self.entries[slot].worker_mut(pid);
        let worker = worker.filter(|worker| worker.is_ready() || worker.is_hung())?;
        let before = worker.clone();
        worker.phase = WorkerPhase::Draining { kill_at, reason, order: DrainOrder::HandOver, aborted: false };
        fleet.scoreboard.cell(slot, before.cell).set_state(CellState::Draining);
        self.publish_state(fleet.scoreboard, slot);
        Some(before)
    }

    /// Its backtrace is complete.
    fn log_backtrace(&mut self, (slot, pid): (usize, Pid)) {
        let Some(report) = self.status_pipes.get_mut(&pid) else { return };
        let backtrace = std::mem::take(&mut report.frames);
        tracing::warn!(slot, pid = pid.as_raw(), backtrace, "backtrace of the hung worker");
    }

    /// A worker that was to let the slot's queue run dry has done so. A message of one that left the slot before it was
    /// opened again is about another queue: obeyed, it would close one in which connections wait.
    fn on_queue_drained(&mut self, (slot, pid): (usize, Pid)) -> Option<Effect> {
        let slot_state = &mut self.entries[slot];
        let was_ordered = slot_state.worker_mut(pid).is_some_and(|worker| worker.is_retiring_slot());
        (was_ordered && slot_state.listening == SlotListening::Retiring)
            .then(|| self.close_listeners(slot))
            .flatten()
    }
}

/// It had an order to drain, or was killed after one.
fn on_expected_exit(index: usize, end: &WorkerExit) -> Vec<Effect> {
    let (pid, exit, reason) = (end.worker.pid.as_raw(), end.report.exit, end.exit_reason());
    if exit == ExitStatus::Code(0) {
        tracing::info!(slot = index, pid, cause = %exit, %reason, "worker exited");
    } else {
        tracing::warn!(slot = index, pid, cause = %exit, %reason, "worker crashed while draining: {exit}");
    }
    vec![end.record(index, &exit.to_string())]
}
