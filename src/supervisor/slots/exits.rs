//! Exits and messages of workers, and what they mean for their slot.

use std::io;
use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::{CellState, DrainOrder};
use crate::supervisor::Supervisor;
use crate::supervisor::effects::WorkerEvent;
use crate::supervisor::slots::backoff::WorkerDeath;
use crate::supervisor::slots::plan::{DesiredState, EXIT_GRACE, KillReason};
use crate::supervisor::slots::slot::{SlotListening, WorkerHandle, WorkerPhase};
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::signal::Signal;
use crate::sys::{backtrace, clock, process, random};
use crate::{logging, units};

/// A worker that ended: how, and what it was doing.
struct WorkerExit {
    worker: WorkerHandle,
    exit: ExitStatus,
    /// The failure it reported.
    boot_failure: Option<String>,
    /// Whether the kernel killed it for want of memory.
    out_of_memory: bool,
}

impl WorkerExit {
    /// The reason it is counted under.
    fn exit_reason(&self) -> ExitReason {
        match (self.worker.phase, self.exit) {
            _ if self.boot_failure.is_some() => ExitReason::Boot,
            (WorkerPhase::Killed { cause, .. }, _) => cause.exit_reason(),
            (WorkerPhase::Hung { .. }, _) => ExitReason::Hang,
            (WorkerPhase::Draining { reason, .. }, ExitStatus::Code(0)) => reason,
            (WorkerPhase::Ready { .. }, ExitStatus::Code(0)) => ExitReason::Operator,
            (_, ExitStatus::Code(_)) => ExitReason::ExitCode,
            (_, ExitStatus::Signal(_)) if self.out_of_memory => ExitReason::OutOfMemory,
            (_, ExitStatus::Signal(_) | ExitStatus::RealtimeSignal(_)) => ExitReason::Signal,
        }
    }

    /// Its event, and the event's predicate: what counts as a crash is called one, with or without an order to leave.
    fn event(&self) -> (EventKind, &'static str) {
        match self.exit_reason().is_failure() {
            true => (EventKind::WorkerCrashed, "crashed"),
            false => (EventKind::WorkerExited, "exited"),
        }
    }

    /// The same in words.
    fn describe(&self) -> String {
        match (&self.boot_failure, self.worker.phase) {
            (Some(failure), _) => failure.clone(),
            (None, WorkerPhase::Killed { cause, .. }) => cause.to_string(),
            (None, _) if self.out_of_memory => "the kernel killed it for want of memory".to_owned(),
            (None, _) => self.exit.to_string(),
        }
    }
}

impl Supervisor<'_> {
    /// Takes every child that has ended: workers, the private Redis, and the orphans of a PID 1.
    pub(in crate::supervisor) fn reap(&mut self) -> io::Result<()> {
        while let Some(pid) = process::next_exited()? {
            // Before its number is free: what it left behind has its group's.
            self.kill_preflight_group(pid);
            let Some(exit) = process::reap(pid)? else { return Ok(()) };
            let now = clock::monotonic();
            let slot = self.slots.entries.iter_mut().position(|slot| slot.worker_mut(pid).is_some());
            if let Some(slot) = slot {
                self.on_worker_exit(slot, pid, exit, now);
            } else if self.private_redis.as_ref().is_some_and(|private| private.pid == Some(pid)) {
                self.on_private_redis_exit(pid, exit, now);
            } else if process::companion() == Some(pid) {
                process::set_companion(None);
                tracing::warn!(
                    pid = pid.as_raw(), cause = %exit,
                    "files are no longer watched (--watch): the process that watches them ended: {exit}"
                );
            } else if !self.on_preflight_exit(pid, exit) {
                tracing::debug!(pid = pid.as_raw(), cause = %exit, "reaped an orphan");
            }
        }
        Ok(())
    }

    fn on_worker_exit(&mut self, index: usize, pid: Pid, exit: ExitStatus, now: Duration) {
        let boot_failure = self.receive_messages(index, pid);
        self.slots.status_pipes.remove(&pid);
        let slot = &mut self.slots.entries[index];
        let Some(place) = slot.workers.iter().position(|worker| worker.pid == pid) else { return };
        let worker = slot.workers.remove(place);
        self.scoreboard.cell(index, worker.cell).clear();
        logging::report_missing_lines();
        let killed = exit == ExitStatus::Signal(Signal::SIGKILL)
            && !matches!(worker.phase, WorkerPhase::Killed { .. });
        let out_of_memory = killed && self.monitor.account_memory_kill();
        let end = WorkerExit { worker, exit, boot_failure, out_of_memory };
        let reason = end.exit_reason();
        self.scoreboard.row(index).record_exit(reason);
        match end.worker.phase {
            WorkerPhase::Draining { .. } | WorkerPhase::Killed { cause: KillReason::DrainTimeout, .. } => {
                self.on_expected_exit(index, &end)
            }
            _ => self.on_crash(index, &end, now),
        }
        // No worker comes any more that would accept what arrives here.
        if self.lifecycle.desired_state != DesiredState::Running
            && self.slots.entries[index].workers.is_empty()
        {
            self.close_listeners(index);
        }
        self.slots.publish_state(self.scoreboard, index);
    }

    /// It had an order to drain, or was killed after one.
    fn on_expected_exit(&mut self, index: usize, end: &WorkerExit) {
        let (pid, exit, reason) = (end.worker.pid.as_raw(), end.exit, end.exit_reason());
        let (kind, ended) = end.event();
        let incident = WorkerEvent { kind, slot: index, pid: end.worker.pid };
        let what = format!("{ended} ({reason}): {exit}");
        self.record_worker_exit(incident, end.worker.generation, reason, &what);
        if exit == ExitStatus::Code(0) {
            tracing::info!(slot = index, pid, cause = %exit, %reason, "worker exited");
        } else {
            tracing::warn!(slot = index, pid, cause = %exit, %reason, "worker crashed while draining: {exit}");
        }
    }

    /// It had no order.
    fn on_crash(&mut self, index: usize, end: &WorkerExit, now: Duration) {
        let (cause, reason) = (end.describe(), end.exit_reason());
        let pid = end.worker.pid.as_raw();
        let back =
            self.deployment.rollback().is_some_and(|(rollout, _)| rollout.from == end.worker.generation);
        let condemned = self.deployment.is_failed_by(&end.worker, self.settings.canary_period, now);
        let death = match end.worker.phase {
            WorkerPhase::Ready { since } => WorkerDeath::AfterServing(now.saturating_sub(since)),
            WorkerPhase::Hung { .. }
            | WorkerPhase::Killed { cause: KillReason::Hang | KillReason::Memory, .. } => {
                WorkerDeath::AfterServing(now.saturating_sub(end.worker.started))
            }
            _ if end.worker.replace_reason.is_some() => {
                WorkerDeath::AfterServing(now.saturating_sub(end.worker.started))
            }
            _ => WorkerDeath::BeforeReady,
        };
        if death == WorkerDeath::BeforeReady {
            self.lifecycle.last_failure.clone_from(&cause);
        }
        let delay_seconds = self.set_backoff(index, death, condemned, now);
        match self.lifecycle.desired_state {
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
        let (kind, ended) = end.event();
        let incident = WorkerEvent { kind, slot: index, pid: end.worker.pid };
        self.record_worker_exit(
            incident,
            end.worker.generation,
            reason,
            &format!("{ended} ({reason}): {cause}"),
        );
        if death == WorkerDeath::BeforeReady {
            self.on_restart_failed(index, &cause);
        }
        if back && death == WorkerDeath::BeforeReady {
            self.report_rollback_failure(index, &cause);
        }
        if condemned {
            self.roll_back(&format!("the new worker in slot {index} failed: {cause}"));
        }
    }

    /// Has a slot wait before its next worker is started, as long as follows from this death: in seconds, for the log.
    fn set_backoff(&mut self, index: usize, death: WorkerDeath, condemned: bool, now: Duration) -> f64 {
        let slot = &mut self.slots.entries[index];
        // The failure is the generation's that is rolled back, not the slot's.
        let delay =
            if condemned { Duration::ZERO } else { slot.backoff.delay_after(death, random::jitter()) };
        slot.backoff_until = (!delay.is_zero()).then_some(now + delay);
        units::rounded_seconds(delay)
    }

    /// Reads the messages of all workers.
    pub(in crate::supervisor) fn read_status_pipes(&mut self) {
        let slots = self.slots.entries.iter().enumerate();
        let pids: Vec<_> = slots
            .flat_map(|(slot, state)| state.workers.iter().map(move |worker| (slot, worker.pid)))
            .collect();
        for (slot, pid) in pids {
            if let Some(failure) = self.receive_messages(slot, pid) {
                // It is about to end; its reason is taken up then.
                self.slots
                    .status_pipes
                    .entry(pid)
                    .and_modify(|report| report.text = format!("failed {failure}\n"));
            }
        }
    }

    /// Takes a worker's messages; why it failed to boot, if it reports that.
    fn receive_messages(&mut self, slot: usize, pid: Pid) -> Option<String> {
        while let Some(line) = self.slots.status_pipes.get_mut(&pid).and_then(StatusPipe::next_line) {
            match line.as_str() {
                "ready" => self.on_ready(slot, pid),
                "leaving" => self.on_draining(slot, pid),
                "failing" => self.on_failing(slot, pid),
                "closed" => self.on_queue_drained(slot, pid),
                backtrace::END_LINE => self.log_backtrace(slot, pid),
                other => match (other.strip_prefix("failed "), other.strip_prefix(backtrace::FRAME_PREFIX)) {
                    (Some(reason), _) => return Some(reason.to_owned()),
                    (None, Some(frame)) => {
                        self.slots.status_pipes.entry(pid).and_modify(|report| report.add_frame(frame));
                    }
                    (None, None) => {
                        tracing::debug!(slot, pid = pid.as_raw(), "unknown worker message: {other:?}")
                    }
                },
            }
        }
        None
    }

    fn on_ready(&mut self, slot: usize, pid: Pid) {
        let Some(worker) = self.slots.entries[slot].worker_mut(pid) else { return };
        if !worker.is_booting() {
            return;
        }
        worker.phase = WorkerPhase::Ready { since: clock::monotonic() };
        self.scoreboard.cell(slot, worker.cell).set_state(CellState::Ready);
        let generation = worker.generation;
        self.slots.entries[slot].was_ready = true;
        self.lifecycle.ever_ready = true;
        self.slots.publish_state(self.scoreboard, slot);
        tracing::info!(slot, pid = pid.as_raw(), generation, "worker ready");
        let what = format!("is ready, generation {generation}");
        self.record_worker_event(WorkerEvent { kind: EventKind::WorkerReady, slot, pid }, None, &what);
    }

    /// It drains without an order of this process: its successor is started at once, not when it has finished.
    fn on_draining(&mut self, slot: usize, pid: Pid) {
        let reason = ExitReason::Operator;
        if self.drain_unordered(slot, pid, reason, clock::monotonic()).is_none() {
            return;
        }
        tracing::info!(slot, pid = pid.as_raw(), %reason, "worker draining without an order");
        let incident = WorkerEvent { kind: EventKind::WorkerDraining, slot, pid };
        self.record_worker_event(incident, Some(reason), "drains without an order");
    }

    /// Background work of its application panicked, so that it drains: a crash that finishes its requests.
    fn on_failing(&mut self, slot: usize, pid: Pid) {
        let (now, reason) = (clock::monotonic(), ExitReason::ExitCode);
        let Some(before) = self.drain_unordered(slot, pid, reason, now) else { return };
        let condemned = self.deployment.is_failed_by(&before, self.settings.canary_period, now);
        let served = match before.phase {
            WorkerPhase::Ready { since } => now.saturating_sub(since),
            _ => now.saturating_sub(before.started),
        };
        let delay_seconds = self.set_backoff(slot, WorkerDeath::AfterServing(served), condemned, now);
        let cause = "background work of the application panicked";
        tracing::warn!(slot, pid = pid.as_raw(), cause, delay_seconds, %reason, "worker failed, draining: {cause}");
        let incident = WorkerEvent { kind: EventKind::WorkerDraining, slot, pid };
        self.record_worker_event(incident, Some(reason), &format!("drains: {cause}"));
        if condemned {
            self.roll_back(&format!("the new worker in slot {slot} failed: {cause}"));
        }
    }

    /// Takes a worker that serves for one that leaves; as it was before, unless it does not serve.
    fn drain_unordered(
        &mut self,
        slot: usize,
        pid: Pid,
        reason: ExitReason,
        now: Duration,
    ) -> Option<WorkerHandle> {
        let kill_at = now + self.settings.drain_timeout + EXIT_GRACE;
        let worker = self.slots.entries[slot].worker_mut(pid);
        let worker = worker.filter(|worker| worker.is_ready() || worker.is_hung())?;
        let before = worker.clone();
        worker.phase = WorkerPhase::Draining { kill_at, reason, order: DrainOrder::HandOver, aborted: false };
        self.scoreboard.cell(slot, before.cell).set_state(CellState::Draining);
        self.slots.publish_state(self.scoreboard, slot);
        Some(before)
    }

    /// Its backtrace is complete.
    fn log_backtrace(&mut self, slot: usize, pid: Pid) {
        let Some(report) = self.slots.status_pipes.get_mut(&pid) else { return };
        let backtrace = std::mem::take(&mut report.frames);
        tracing::warn!(slot, pid = pid.as_raw(), backtrace, "backtrace of the hung worker");
    }

    /// A worker that was to let the slot's queue run dry has done so. A message of one that left the slot before it was
    /// opened again is about another queue: obeyed, it would close one in which connections wait.
    fn on_queue_drained(&mut self, slot: usize, pid: Pid) {
        let slot_state = &mut self.slots.entries[slot];
        let was_ordered = slot_state.worker_mut(pid).is_some_and(|worker| worker.is_retiring_slot());
        if was_ordered && slot_state.listening == SlotListening::Retiring {
            self.close_listeners(slot);
        }
    }
}
