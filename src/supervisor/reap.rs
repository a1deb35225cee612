//! Who ended, and what that means for its slot.

use std::io;
use std::io::Read;
use std::time::Duration;

use crate::scoreboard::Reason;
use crate::scoreboard::cell::WorkerState;
use crate::scoreboard::row::SlotState;
use crate::supervisor::Supervisor;
use crate::supervisor::backoff::Death;
use crate::supervisor::plan::Target;
use crate::supervisor::slot::Lifecycle;
use crate::supervisor::slot::Report;
use crate::sys::proc;
use crate::sys::proc::Exit;
use crate::sys::proc::Pid;
use crate::sys::time;

/// Longest report a worker may give.
const REPORT_MAX: usize = 8 * 1024;

impl Supervisor<'_> {
    /// Takes every child that has ended: workers, the private Redis, and the orphans of a PID 1.
    pub(super) fn reap(&mut self) -> io::Result<()> {
        while let Some((pid, exit)) = proc::reap()? {
            let now = time::monotonic();
            if let Some(slot) = self.slots.iter().position(|slot| slot.lifecycle.pid() == Some(pid)) {
                self.worker_ended(slot, pid, exit, now);
            } else if self.private.as_ref().is_some_and(|private| private.pid == Some(pid)) {
                self.private_redis_ended(pid, exit, now);
            } else {
                tracing::debug!(pid = pid.as_raw(), cause = %exit, "reaped an orphan");
            }
        }
        Ok(())
    }

    fn worker_ended(&mut self, index: usize, pid: Pid, exit: Exit, now: Duration) {
        self.read_report(index);
        let slot = &mut self.slots[index];
        let said = slot.report.take().map(|report| report.text).unwrap_or_default();
        let said = said.lines().find_map(|line| line.strip_prefix("failed "));
        let reason = match (said, slot.lifecycle) {
            (Some(said), _) => said.to_owned(),
            (None, Lifecycle::Killed { cause, .. }) => cause.to_string(),
            (None, _) => exit.to_string(),
        };
        let row = self.scoreboard.row(index);
        let (death, cause) = match slot.lifecycle {
            Lifecycle::Draining { .. } => {
                slot.lifecycle = Lifecycle::Empty;
                self.scoreboard.cell(index, 0).vacate();
                row.set_state(SlotState::Empty, None);
                if exit == Exit::Code(0) {
                    tracing::info!(slot = index, pid = pid.as_raw(), cause = %exit, "worker left");
                } else {
                    row.ended(reason_of(exit));
                    tracing::warn!(slot = index, pid = pid.as_raw(), cause = %exit, "worker died in its drain: {exit}");
                }
                return;
            }
            Lifecycle::Ready { since, .. } => (Death::AfterServing(now.saturating_sub(since)), reason),
            _ => (Death::BeforeReady, reason),
        };
        // Somebody may tell a single worker to leave; that is no crash, but its slot is filled by the same rules.
        let left = matches!((death, exit), (Death::AfterServing(_), Exit::Code(0)));
        if !left {
            row.ended(reason_of(exit));
        }
        if death == Death::BeforeReady {
            self.last_failure.clone_from(&cause);
        }
        let delay = slot.backoff.after(death, rand::random());
        slot.lifecycle = match delay {
            Duration::ZERO => Lifecycle::Empty,
            delay => Lifecycle::BackedOff { until: now + delay },
        };
        self.scoreboard.cell(index, 0).vacate();
        row.set_state(if delay.is_zero() { SlotState::Empty } else { SlotState::BackedOff }, None);
        let (pid, delay_ms) = (pid.as_raw(), u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        match self.target {
            Target::Serve if left => {
                tracing::info!(slot = index, pid, delay_ms, "worker left, though nobody here told it to")
            }
            Target::Serve => tracing::warn!(slot = index, pid, %cause, delay_ms, "worker died: {cause}"),
            Target::Stop | Target::StopNow => {
                tracing::info!(slot = index, pid, %cause, "worker ended: {cause}")
            }
        }
    }

    /// Reads what the booting workers have said.
    pub(super) fn read_reports(&mut self) {
        for index in 0..self.slots.len() {
            self.read_report(index);
        }
    }

    fn read_report(&mut self, index: usize) {
        let Some(report) = &mut self.slots[index].report else { return };
        let closed = fill(report);
        let ready = report.text.lines().any(|line| line == "ready");
        if closed || ready {
            self.hear(index, ready);
        }
    }

    /// The worker is READY, or has closed its end without saying so and is about to be reaped.
    fn hear(&mut self, index: usize, ready: bool) {
        let slot = &mut self.slots[index];
        if let (true, Lifecycle::Booting { pid, .. }) = (ready, slot.lifecycle) {
            slot.lifecycle = Lifecycle::Ready { pid, since: time::monotonic() };
            slot.report = None;
            self.ever_ready = true;
            self.scoreboard.row(index).set_state(SlotState::Ready, Some(0));
            self.scoreboard.cell(index, 0).set_state(WorkerState::Ready);
            tracing::info!(slot = index, pid = pid.as_raw(), "worker ready");
        } else if let Some(report) = &mut slot.report {
            // Its text is still wanted when the worker is reaped; its pipe would only wake the loop for ever.
            report.pipe = None;
        }
    }
}

fn reason_of(exit: Exit) -> Reason {
    match exit {
        Exit::Code(_) => Reason::ExitCode,
        Exit::Signal(_) => Reason::Signal,
    }
}

/// Reads what there is; true when the worker has closed its end or said too much.
fn fill(report: &mut Report) -> bool {
    let Some(pipe) = &mut report.pipe else { return false };
    let mut chunk = [0; 1024];
    loop {
        match pipe.read(&mut chunk) {
            Ok(0) => return true,
            Ok(len) => report.text.push_str(&String::from_utf8_lossy(&chunk[..len])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
        if report.text.len() > REPORT_MAX {
            return true;
        }
    }
}
