//! What the supervisor does about a worker that hangs; `hang` decides which one does.

use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::CellState;
use crate::supervisor::Supervisor;
use crate::supervisor::effects::WorkerEvent;
use crate::supervisor::monitor::hang::{Stall, StallKind};
use crate::supervisor::monitor::{MonitorSettings, ServingWorker, hang};
use crate::supervisor::slots::plan::KillReason;
use crate::supervisor::slots::slot::{WorkerHandle, WorkerPhase};
use crate::sys::{backtrace, thread};

impl Supervisor<'_> {
    /// Does it hang?
    pub(in crate::supervisor) fn check_hang(&mut self, worker: &ServingWorker, now: Duration) {
        let Some(patience) = self.settings.monitor.hang_thresholds() else {
            return self.stop_hang_detection(worker);
        };
        let sample = hang::HangSample {
            last_heartbeat: worker.last_heartbeat(),
            progress: worker.progress,
            accepted: self.scoreboard.row(worker.slot).accepted(),
            queued_connections: self.slots.queued_connections(worker.slot),
        };
        let pid = worker.pid;
        let watch = self.trackers(worker);
        let Some(status) = watch.hang.observe(&sample, patience, now, || thread::main_thread(pid)) else {
            return;
        };
        let was = std::mem::replace(&mut watch.suspect, status != hang::HangStatus::Healthy);
        let (slot, number) = (worker.slot, pid.as_raw());
        match status {
            hang::HangStatus::Healthy if worker.is_hung => self.handle_recovery(worker),
            hang::HangStatus::Healthy if was => {
                tracing::info!(slot, pid = number, "worker recovered");
                self.record_worker_event(
                    WorkerEvent { kind: EventKind::WorkerRecovered, slot, pid },
                    None,
                    "has recovered",
                );
            }
            hang::HangStatus::Healthy => {}
            hang::HangStatus::Lost(_) if worker.is_hung => self.kill(slot, pid, KillReason::Hang, now),
            hang::HangStatus::Hung(stall) | hang::HangStatus::Lost(stall) if !worker.is_hung => {
                self.handle_hang(worker, stall, now);
            }
            hang::HangStatus::Suspect(stall) if !was && !worker.is_hung => {
                // The supervisor steers before it logs, or the line would not be true yet.
                self.steer();
                tracing::info!(slot, pid = number, "worker suspect: steering around its slot: {stall}");
                let text = format!("may hang, steering around its slot: {stall}");
                self.record_worker_event(
                    WorkerEvent { kind: EventKind::WorkerSuspect, slot, pid },
                    None,
                    &text,
                );
            }
            hang::HangStatus::Suspect(_) | hang::HangStatus::Hung(_) | hang::HangStatus::Lost(_) => {}
        }
    }

    /// A reload has switched the watch off: one that hangs is a worker like any other again.
    fn stop_hang_detection(&mut self, worker: &ServingWorker) {
        if let Some(watch) = self.monitor.trackers.get_mut(&worker.pid) {
            (watch.hang, watch.suspect) = (hang::HangDetector::default(), false);
        }
        if worker.is_hung {
            self.handle_recovery(worker);
        }
    }

    /// It stays, with the requests it has: its slot is filled without it, and its backtrace is requested.
    fn handle_hang(&mut self, seen: &ServingWorker, stall: Stall, now: Duration) {
        let (slot, pid) = (seen.slot, seen.pid);
        let reason = ExitReason::Hang;
        let cpu_pressure = self.monitor.cpu_pressure(now).map(|share| format!("{:.0} %", share * 100.0));
        tracing::warn!(slot, pid = pid.as_raw(), %reason, cpu_pressure, "worker hung: {stall}");
        let incident = WorkerEvent { kind: EventKind::WorkerHung, slot, pid };
        self.record_worker_event(incident, Some(reason), &format!("is hung, a spare is started: {stall}"));
        // A stopped process handles no signal.
        if stall.kind != StallKind::Stopped
            && let Err(error) = backtrace::request(pid)
        {
            tracing::debug!(pid = pid.as_raw(), %error, "cannot request the backtrace of a hung worker");
        }
        let MonitorSettings { hang_timeout, hang_kill, .. } = self.settings.monitor;
        let kill_at = (!hang_kill.is_zero()).then(|| now + hang_kill.saturating_sub(hang_timeout));
        let Some(worker) = self.slots.entries[slot].worker_mut(pid) else { return };
        worker.phase = WorkerPhase::Hung { since: seen.since, kill_at };
        let condemned = self.deployment.is_failed_by(worker, Duration::ZERO, now);
        self.scoreboard.cell(slot, worker.cell).set_state(CellState::Hung);
        self.slots.publish_state(self.scoreboard, slot);
        if condemned {
            self.roll_back(&format!("the new worker in slot {slot} hangs: {stall}"));
        }
    }

    /// It serves as before, and its spare takes over from it as any successor does.
    fn handle_recovery(&mut self, seen: &ServingWorker) {
        let (slot, pid) = (seen.slot, seen.pid);
        let lives = |other: &WorkerHandle| other.pid != pid && (other.is_ready() || other.is_booting());
        let has_spare = self.slots.entries[slot].workers.iter().any(lives);
        let Some(worker) = self.slots.entries[slot].worker_mut(pid) else { return };
        worker.phase = WorkerPhase::Ready { since: seen.since };
        if has_spare {
            worker.replace_reason = worker.replace_reason.or(Some(ExitReason::Hang));
        }
        self.scoreboard.cell(slot, worker.cell).set_state(CellState::Ready);
        self.slots.publish_state(self.scoreboard, slot);
        tracing::info!(slot, pid = pid.as_raw(), "worker recovered");
        self.record_worker_event(
            WorkerEvent { kind: EventKind::WorkerRecovered, slot, pid },
            None,
            "has recovered",
        );
    }
}
