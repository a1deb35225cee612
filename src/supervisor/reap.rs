//! Who ended, who said what, and what that means for a slot.

use std::fs::File;
use std::io;
use std::io::Read;
use std::time::Duration;

use crate::scoreboard::Reason;
use crate::scoreboard::cell::Order;
use crate::scoreboard::cell::WorkerState;
use crate::supervisor::Supervisor;
use crate::supervisor::backoff::Death;
use crate::supervisor::history::Incident;
use crate::supervisor::plan::Cause;
use crate::supervisor::plan::LEAVE_MARGIN;
use crate::supervisor::plan::Target;
use crate::supervisor::rollout::Course;
use crate::supervisor::slot::Occupant;
use crate::supervisor::slot::Seat;
use crate::supervisor::slot::Stage;
use crate::sys::backtrace;
use crate::sys::proc;
use crate::sys::proc::Exit;
use crate::sys::proc::Pid;
use crate::sys::random;
use crate::sys::signal::Signal;
use crate::sys::time;
use crate::telemetry;

/// Longest line a worker may say.
const LINE_MAX: usize = 8 * 1024;

/// Longest backtrace that is kept.
const BACKTRACE_MAX: usize = 64 * 1024;

/// The pipe on which a worker says how it is getting on.
#[derive(Debug)]
pub(super) struct Report {
    /// Read end; none when the worker has closed its own.
    pub(super) pipe: Option<File>,
    /// What came and was not yet taken, bounded.
    pub(super) text: String,
    /// Where it stands, as far as it has told.
    pub(super) frames: String,
}

impl Report {
    pub(super) fn new(pipe: File) -> Self {
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
struct End {
    worker: Occupant,
    exit: Exit,
    /// What it said about its failure.
    said: Option<String>,
    /// Whether the kernel killed it for want of memory.
    out_of_memory: bool,
}

impl End {
    /// The reason it is counted under.
    fn reason(&self) -> Reason {
        match (self.worker.stage, self.exit) {
            _ if self.said.is_some() => Reason::Boot,
            (Stage::Killed { cause, .. }, _) => cause.reason(),
            (Stage::Hung { .. }, _) => Reason::Hang,
            (Stage::Draining { reason, .. }, Exit::Code(0)) => reason,
            (Stage::Ready { .. }, Exit::Code(0)) => Reason::Operator,
            (_, Exit::Code(_)) => Reason::ExitCode,
            (_, Exit::Signal(_)) if self.out_of_memory => Reason::OutOfMemory,
            (_, Exit::Signal(_) | Exit::Numbered(_)) => Reason::Signal,
        }
    }

    /// The same in words.
    fn cause(&self) -> String {
        match (&self.said, self.worker.stage) {
            (Some(said), _) => said.clone(),
            (None, Stage::Killed { cause, .. }) => cause.to_string(),
            (None, _) if self.out_of_memory => "the kernel killed it for want of memory".to_owned(),
            (None, _) => self.exit.to_string(),
        }
    }
}

impl Supervisor<'_> {
    /// Takes every child that has ended: workers, the private Redis, and the orphans of a PID 1.
    pub(super) fn reap(&mut self) -> io::Result<()> {
        while let Some(pid) = proc::ended()? {
            // Before its number is free: what it left behind has its group's.
            self.end_trial_group(pid);
            let Some(exit) = proc::reap(pid)? else { return Ok(()) };
            let now = time::monotonic();
            let seat = self.slots.iter_mut().position(|slot| slot.worker(pid).is_some());
            if let Some(slot) = seat {
                self.worker_ended(slot, pid, exit, now);
            } else if self.private.as_ref().is_some_and(|private| private.pid == Some(pid)) {
                self.private_redis_ended(pid, exit, now);
            } else if !self.trial_ended(pid, exit) {
                tracing::debug!(pid = pid.as_raw(), cause = %exit, "reaped an orphan");
            }
        }
        Ok(())
    }

    fn worker_ended(&mut self, index: usize, pid: Pid, exit: Exit, now: Duration) {
        let said = self.hear(index, pid);
        self.reports.remove(&pid);
        let slot = &mut self.slots[index];
        let Some(place) = slot.workers.iter().position(|worker| worker.pid == pid) else { return };
        let worker = slot.workers.remove(place);
        self.scoreboard.cell(index, worker.cell).vacate();
        telemetry::take_over();
        let killed = exit == Exit::Signal(Signal::SIGKILL) && !matches!(worker.stage, Stage::Killed { .. });
        let out_of_memory = killed && self.senses.memory_killed();
        let end = End { worker, exit, said, out_of_memory };
        let reason = end.reason();
        self.scoreboard.row(index).ended(reason);
        match end.worker.stage {
            Stage::Draining { .. } | Stage::Killed { cause: Cause::DrainTimeout, .. } => {
                self.left(index, &end)
            }
            _ => self.died(index, &end, now),
        }
        // Nobody comes any more who would take what arrives here.
        if self.target != Target::Serve && self.slots[index].workers.is_empty() {
            self.close_seat(index);
        }
        self.show(index);
    }

    /// It was told to leave.
    fn left(&mut self, index: usize, end: &End) {
        let (pid, exit, reason) = (end.worker.pid.as_raw(), end.exit, end.reason());
        let incident = Incident { kind: "worker_left", slot: index, pid: end.worker.pid };
        let what = format!("has left ({reason}): {exit}");
        self.note_end(incident, end.worker.generation, reason, &what);
        if exit == Exit::Code(0) {
            tracing::info!(slot = index, pid, cause = %exit, %reason, "worker left");
        } else {
            tracing::warn!(slot = index, pid, cause = %exit, %reason, "worker died in its drain: {exit}");
        }
    }

    /// Nobody had told it to.
    fn died(&mut self, index: usize, end: &End, now: Duration) {
        let (cause, reason) = (end.cause(), end.reason());
        let pid = end.worker.pid.as_raw();
        let back = self.rollout.as_ref().filter(|rollout| rollout.from == end.worker.generation);
        let back = back.is_some_and(|rollout| matches!(rollout.course, Course::Back { .. }));
        let condemned = self
            .rollout
            .as_ref()
            .is_some_and(|rollout| rollout.condemns(&end.worker, self.settings.probation, now));
        let death = match end.worker.stage {
            Stage::Ready { since } => Death::AfterServing(now.saturating_sub(since)),
            Stage::Hung { .. } | Stage::Killed { cause: Cause::Hang | Cause::Memory, .. } => {
                Death::AfterServing(now.saturating_sub(end.worker.started))
            }
            _ if end.worker.retire.is_some() => Death::AfterServing(now.saturating_sub(end.worker.started)),
            _ => Death::BeforeReady,
        };
        if death == Death::BeforeReady {
            self.last_failure.clone_from(&cause);
        }
        let slot = &mut self.slots[index];
        // A generation that is taken back says nothing about the slot.
        let delay = if condemned { Duration::ZERO } else { slot.backoff.after(death, random::jitter()) };
        slot.rest_until = (!delay.is_zero()).then_some(now + delay);
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        match self.target {
            Target::Serve if reason == Reason::Operator => {
                tracing::info!(slot = index, pid, delay_ms, %reason, "worker left, though nobody here told it to")
            }
            Target::Serve => {
                tracing::warn!(slot = index, pid, %cause, delay_ms, %reason, "worker died: {cause}")
            }
            Target::Stop | Target::StopNow => {
                tracing::info!(slot = index, pid, %cause, %reason, "worker ended: {cause}")
            }
        }
        let incident = Incident { kind: "worker_died", slot: index, pid: end.worker.pid };
        self.note_end(incident, end.worker.generation, reason, &format!("died ({reason}): {cause}"));
        if death == Death::BeforeReady {
            self.restart_failed(index, &cause);
        }
        if back && death == Death::BeforeReady {
            self.going_back_failed(index, &cause);
        }
        if condemned {
            self.take_back(format!("the new worker in slot {index} failed: {cause}"));
        }
    }

    /// Reads what the workers have said.
    pub(super) fn read_reports(&mut self) {
        let slots = self.slots.iter().enumerate();
        let pids: Vec<_> = slots
            .flat_map(|(slot, state)| state.workers.iter().map(move |worker| (slot, worker.pid)))
            .collect();
        for (slot, pid) in pids {
            if let Some(said) = self.hear(slot, pid) {
                // It is about to end; its reason is taken up then.
                self.reports.entry(pid).and_modify(|report| report.text = format!("failed {said}\n"));
            }
        }
    }

    /// Takes a worker's lines; returns why it failed, if it said so.
    fn hear(&mut self, slot: usize, pid: Pid) -> Option<String> {
        while let Some(line) = self.reports.get_mut(&pid).and_then(Report::next_line) {
            match line.as_str() {
                "ready" => self.ready(slot, pid),
                "leaving" => self.leaving(slot, pid),
                "closed" => self.closed(slot, pid),
                backtrace::END => self.stands(slot, pid),
                other => match (other.strip_prefix("failed "), other.strip_prefix(backtrace::FRAME)) {
                    (Some(reason), _) => return Some(reason.to_owned()),
                    (None, Some(frame)) => {
                        self.reports.entry(pid).and_modify(|report| report.add_frame(frame));
                    }
                    (None, None) => tracing::debug!(slot, pid = pid.as_raw(), "a worker said {other:?}"),
                },
            }
        }
        None
    }

    fn ready(&mut self, slot: usize, pid: Pid) {
        let Some(worker) = self.slots[slot].worker(pid) else { return };
        if !worker.is_booting() {
            return;
        }
        worker.stage = Stage::Ready { since: time::monotonic() };
        self.scoreboard.cell(slot, worker.cell).set_state(WorkerState::Ready);
        let generation = worker.generation;
        self.slots[slot].proven = true;
        self.ever_ready = true;
        self.show(slot);
        tracing::info!(slot, pid = pid.as_raw(), generation, "worker ready");
        let what = format!("is ready, generation {generation}");
        self.note_worker(Incident { kind: "worker_ready", slot, pid }, None, &what);
    }

    /// Somebody else has told it to leave: its successor is started at once, not when it has finished.
    fn leaving(&mut self, slot: usize, pid: Pid) {
        let kill_at = time::monotonic() + self.settings.drain_timeout + LEAVE_MARGIN;
        let Some(worker) =
            self.slots[slot].worker(pid).filter(|worker| worker.is_ready() || worker.is_hung())
        else {
            return;
        };
        let reason = Reason::Operator;
        worker.stage = Stage::Draining { kill_at, reason, order: Order::Pass, cut: false };
        self.scoreboard.cell(slot, worker.cell).set_state(WorkerState::Draining);
        self.show(slot);
        tracing::info!(slot, pid = pid.as_raw(), %reason, "worker drains, though nobody here told it to");
        let incident = Incident { kind: "worker_drains", slot, pid };
        self.note_worker(incident, Some(reason), "finishes and leaves, though nobody here told it to");
    }

    /// It has told where it stands.
    fn stands(&mut self, slot: usize, pid: Pid) {
        let Some(report) = self.reports.get_mut(&pid) else { return };
        let backtrace = std::mem::take(&mut report.frames);
        tracing::warn!(slot, pid = pid.as_raw(), backtrace, "this is where the worker stands");
    }

    /// A worker that was to let the slot's queue run dry has done so. The word of one that left the slot before it was
    /// opened again is about another queue: taken, it would close one in which connections wait.
    fn closed(&mut self, slot: usize, pid: Pid) {
        let slot_state = &mut self.slots[slot];
        let was_told = slot_state.worker(pid).is_some_and(|worker| worker.is_closing());
        if was_told && slot_state.seat == Seat::Closing {
            self.close_seat(slot);
        }
    }
}
