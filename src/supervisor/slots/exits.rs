//! Who ended, who said what, and what that means for a slot.

use std::fs::File;
use std::io;
use std::io::Read;
use std::time::Duration;

use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::{CellState, DrainOrder};
use crate::supervisor::Supervisor;
use crate::supervisor::effects::WorkerEvent;
use crate::supervisor::slots::backoff::WorkerDeath;
use crate::supervisor::slots::plan::{DesiredState, EXIT_GRACE, KillReason};
use crate::supervisor::slots::slot::{SlotListening, WorkerHandle, WorkerPhase};
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::signal::Signal;
use crate::sys::{backtrace, clock, process, random};
use crate::telemetry;

/// Longest line a worker may say.
const LINE_MAX: usize = 8 * 1024;

/// Longest backtrace that is kept.
const BACKTRACE_MAX: usize = 64 * 1024;

/// The pipe on which a worker says how it is getting on.
#[derive(Debug)]
pub(in crate::supervisor) struct StatusPipe {
    /// Read end; none when the worker has closed its own.
    pub(in crate::supervisor) pipe: Option<File>,
    /// What came and was not yet taken, bounded.
    pub(in crate::supervisor) text: String,
    /// Where it stands, as far as it has told.
    pub(in crate::supervisor) frames: String,
}

impl StatusPipe {
    pub(in crate::supervisor) fn new(pipe: File) -> Self {
        Self { pipe: Some(pipe), text: String::new(), frames: String::new() }
    }

    /// Reads what there is and takes the next whole line.
    fn next_line(&mut self) -> Option<String> {
        if !self.text.contains('\n') {
            self.fill();
        }
        let Some(end) = self.text.find('\n') else {
            if self.text.len() > LINE_MAX {
                // What it says makes no sense, and would only wake the loop for ever.
                self.pipe = None;
            }
            return None;
        };
        let rest = self.text.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.text, rest);
        line.truncate(end);
        Some(line)
    }

    fn add_frame(&mut self, line: &str) {
        if self.frames.len() + line.len() < BACKTRACE_MAX {
            self.frames.push('\n');
            self.frames.push_str(line);
        }
    }

    fn fill(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut chunk = [0; 1024];
        let open = loop {
            match pipe.read(&mut chunk) {
                Ok(0) => break false,
                Ok(len) => self.text.push_str(&String::from_utf8_lossy(&chunk[..len])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error.kind() == io::ErrorKind::WouldBlock,
            }
            // The rest is read when this is taken.
            if self.text.len() > LINE_MAX {
                break true;
            }
        };
        if !open {
            // Its pipe would only wake the loop for ever.
            self.pipe = None;
        }
    }
}

/// A worker that ended: how, and what it was doing.
struct WorkerExit {
    worker: WorkerHandle,
    exit: ExitStatus,
    /// What it said about its failure.
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
            let slot = self.slots.iter_mut().position(|slot| slot.worker_mut(pid).is_some());
            if let Some(slot) = slot {
                self.on_worker_exit(slot, pid, exit, now);
            } else if self.private_redis.as_ref().is_some_and(|private| private.pid == Some(pid)) {
                self.on_private_redis_exit(pid, exit, now);
            } else if !self.on_preflight_exit(pid, exit) {
                tracing::debug!(pid = pid.as_raw(), cause = %exit, "reaped an orphan");
            }
        }
        Ok(())
    }

    fn on_worker_exit(&mut self, index: usize, pid: Pid, exit: ExitStatus, now: Duration) {
        let boot_failure = self.receive_messages(index, pid);
        self.status_pipes.remove(&pid);
        let slot = &mut self.slots[index];
        let Some(place) = slot.workers.iter().position(|worker| worker.pid == pid) else { return };
        let worker = slot.workers.remove(place);
        self.scoreboard.cell(index, worker.cell).clear();
        telemetry::report_missing_lines();
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
        // Nobody comes any more who would take what arrives here.
        if self.desired_state != DesiredState::Running && self.slots[index].workers.is_empty() {
            self.close_listeners(index);
        }
        self.publish_state(index);
    }

    /// It was told to leave.
    fn on_expected_exit(&mut self, index: usize, end: &WorkerExit) {
        let (pid, exit, reason) = (end.worker.pid.as_raw(), end.exit, end.exit_reason());
        let incident = WorkerEvent { kind: "worker_exited", slot: index, pid: end.worker.pid };
        let what = format!("exited ({reason}): {exit}");
        self.record_worker_exit(incident, end.worker.generation, reason, &what);
        if exit == ExitStatus::Code(0) {
            tracing::info!(slot = index, pid, cause = %exit, %reason, "worker exited");
        } else {
            tracing::warn!(slot = index, pid, cause = %exit, %reason, "worker crashed while draining: {exit}");
        }
    }

    /// Nobody had told it to.
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
            self.last_failure.clone_from(&cause);
        }
        let slot = &mut self.slots[index];
        // A generation that is taken back says nothing about the slot.
        let delay =
            if condemned { Duration::ZERO } else { slot.backoff.delay_after(death, random::jitter()) };
        slot.backoff_until = (!delay.is_zero()).then_some(now + delay);
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        match self.desired_state {
            DesiredState::Running if reason == ExitReason::Operator => {
                tracing::info!(slot = index, pid, delay_ms, %reason, "worker exited without an order")
            }
            DesiredState::Running => {
                tracing::warn!(slot = index, pid, %cause, delay_ms, %reason, "worker crashed: {cause}")
            }
            DesiredState::Stopping | DesiredState::Killing => {
                tracing::info!(slot = index, pid, %cause, %reason, "worker exited: {cause}")
            }
        }
        let incident = WorkerEvent { kind: "worker_crashed", slot: index, pid: end.worker.pid };
        self.record_worker_exit(
            incident,
            end.worker.generation,
            reason,
            &format!("crashed ({reason}): {cause}"),
        );
        if death == WorkerDeath::BeforeReady {
            self.on_restart_failed(index, &cause);
        }
        if back && death == WorkerDeath::BeforeReady {
            self.report_rollback_failure(index, &cause);
        }
        if condemned {
            self.roll_back(format!("the new worker in slot {index} failed: {cause}"));
        }
    }

    /// Reads what the workers have said.
    pub(in crate::supervisor) fn read_status_pipes(&mut self) {
        let slots = self.slots.iter().enumerate();
        let pids: Vec<_> = slots
            .flat_map(|(slot, state)| state.workers.iter().map(move |worker| (slot, worker.pid)))
            .collect();
        for (slot, pid) in pids {
            if let Some(failure) = self.receive_messages(slot, pid) {
                // It is about to end; its reason is taken up then.
                self.status_pipes.entry(pid).and_modify(|report| report.text = format!("failed {failure}\n"));
            }
        }
    }

    /// Takes a worker's lines; returns why it failed, if it said so.
    fn receive_messages(&mut self, slot: usize, pid: Pid) -> Option<String> {
        while let Some(line) = self.status_pipes.get_mut(&pid).and_then(StatusPipe::next_line) {
            match line.as_str() {
                "ready" => self.on_ready(slot, pid),
                "leaving" => self.on_draining(slot, pid),
                "closed" => self.on_queue_drained(slot, pid),
                backtrace::END_LINE => self.log_backtrace(slot, pid),
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

    fn on_ready(&mut self, slot: usize, pid: Pid) {
        let Some(worker) = self.slots[slot].worker_mut(pid) else { return };
        if !worker.is_booting() {
            return;
        }
        worker.phase = WorkerPhase::Ready { since: clock::monotonic() };
        self.scoreboard.cell(slot, worker.cell).set_state(CellState::Ready);
        let generation = worker.generation;
        self.slots[slot].was_ready = true;
        self.ever_ready = true;
        self.publish_state(slot);
        tracing::info!(slot, pid = pid.as_raw(), generation, "worker ready");
        let what = format!("is ready, generation {generation}");
        self.record_worker_event(WorkerEvent { kind: "worker_ready", slot, pid }, None, &what);
    }

    /// Somebody else has told it to leave: its successor is started at once, not when it has finished.
    fn on_draining(&mut self, slot: usize, pid: Pid) {
        let kill_at = clock::monotonic() + self.settings.drain_timeout + EXIT_GRACE;
        let Some(worker) =
            self.slots[slot].worker_mut(pid).filter(|worker| worker.is_ready() || worker.is_hung())
        else {
            return;
        };
        let reason = ExitReason::Operator;
        worker.phase = WorkerPhase::Draining { kill_at, reason, order: DrainOrder::HandOver, aborted: false };
        self.scoreboard.cell(slot, worker.cell).set_state(CellState::Draining);
        self.publish_state(slot);
        tracing::info!(slot, pid = pid.as_raw(), %reason, "worker draining without an order");
        let incident = WorkerEvent { kind: "worker_draining", slot, pid };
        self.record_worker_event(incident, Some(reason), "drains without an order");
    }

    /// It has told where it stands.
    fn log_backtrace(&mut self, slot: usize, pid: Pid) {
        let Some(report) = self.status_pipes.get_mut(&pid) else { return };
        let backtrace = std::mem::take(&mut report.frames);
        tracing::warn!(slot, pid = pid.as_raw(), backtrace, "backtrace of the hung worker");
    }

    /// A worker that was to let the slot's queue run dry has done so. The word of one that left the slot before it was
    /// opened again is about another queue: taken, it would close one in which connections wait.
    fn on_queue_drained(&mut self, slot: usize, pid: Pid) {
        let slot_state = &mut self.slots[slot];
        let was_ordered = slot_state.worker_mut(pid).is_some_and(|worker| worker.is_retiring_slot());
        if was_ordered && slot_state.listening == SlotListening::Retiring {
            self.close_listeners(slot);
        }
    }
}
