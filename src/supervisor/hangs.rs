//! What the supervisor does about a worker in which nothing moves; who that is, `vigil` says.

use std::time::Duration;

use crate::scoreboard::Reason;
use crate::scoreboard::cell::WorkerState;
use crate::supervisor::Supervisor;
use crate::supervisor::history::Incident;
use crate::supervisor::plan::Cause;
use crate::supervisor::senses::Care;
use crate::supervisor::senses::Seen;
use crate::supervisor::slot::Occupant;
use crate::supervisor::slot::Stage;
use crate::supervisor::vigil;
use crate::supervisor::vigil::Stall;
use crate::supervisor::vigil::Symptom;
use crate::sys::backtrace;
use crate::sys::task;

impl Supervisor<'_> {
    /// Does it hang?
    pub(super) fn watch(&mut self, worker: &Seen, now: Duration) {
        let Some(patience) = self.settings.care.patience() else { return self.watch_no_more(worker) };
        let sense = vigil::Sense {
            beat: worker.beat(),
            progress: worker.progress,
            accepted: self.scoreboard.row(worker.slot).accepted(),
            waiting: self.waiting(worker.slot),
        };
        let pid = worker.pid;
        let watch = self.remembered(worker);
        let Some(verdict) = watch.vigil.look(&sense, patience, now, || task::first_thread(pid)) else {
            return;
        };
        let was = std::mem::replace(&mut watch.suspect, verdict != vigil::Verdict::Healthy);
        let (slot, number) = (worker.slot, pid.as_raw());
        match verdict {
            vigil::Verdict::Healthy if worker.hung => self.moves_again(worker),
            vigil::Verdict::Healthy if was => {
                tracing::info!(slot, pid = number, "worker answers again");
                self.note_worker(Incident { kind: "worker_answers", slot, pid }, None, "answers again");
            }
            vigil::Verdict::Healthy => {}
            vigil::Verdict::Lost(_) if worker.hung => self.kill(slot, pid, Cause::Hang, now),
            vigil::Verdict::Hung(stall) | vigil::Verdict::Lost(stall) if !worker.hung => {
                self.hangs(worker, stall, now);
            }
            vigil::Verdict::Suspect(stall) if !was && !worker.hung => {
                // The supervisor steers before it logs, or the line would not be true yet.
                self.steer();
                tracing::info!(slot, pid = number, "new connections go to other workers: {stall}");
                let text = format!("may hang, new connections go to others: {stall}");
                self.note_worker(Incident { kind: "worker_suspected", slot, pid }, None, &text);
            }
            vigil::Verdict::Suspect(_) | vigil::Verdict::Hung(_) | vigil::Verdict::Lost(_) => {}
        }
    }

    /// A reload has switched the watch off: one that hangs is a worker like any other again.
    fn watch_no_more(&mut self, worker: &Seen) {
        if let Some(watch) = self.senses.watches.get_mut(&worker.pid) {
            (watch.vigil, watch.suspect) = (vigil::Watch::default(), false);
        }
        if worker.hung {
            self.moves_again(worker);
        }
    }

    /// It stays where it is, and what it has begun with it: its slot is filled without it, and it is asked where it
    /// stands.
    fn hangs(&mut self, seen: &Seen, stall: Stall, now: Duration) {
        let (slot, pid) = (seen.slot, seen.pid);
        let reason = Reason::Hang;
        let cpu_pressure = self.senses.cpu_pressure(now).map(|share| format!("{:.0} %", share * 100.0));
        tracing::warn!(slot, pid = pid.as_raw(), %reason, cpu_pressure, "worker hangs: {stall}");
        let incident = Incident { kind: "worker_hangs", slot, pid };
        self.note_worker(incident, Some(reason), &format!("hangs, a spare is started: {stall}"));
        // Who stands still cannot say anything.
        if stall.symptom != Symptom::Stopped
            && let Err(error) = backtrace::request(pid)
        {
            tracing::debug!(pid = pid.as_raw(), %error, "a hung worker cannot be asked where it stands");
        }
        let Care { hang_timeout, hang_kill, .. } = self.settings.care;
        let kill_at = (!hang_kill.is_zero()).then(|| now + hang_kill.saturating_sub(hang_timeout));
        let Some(worker) = self.slots[slot].worker(pid) else { return };
        worker.stage = Stage::Hung { since: seen.since, kill_at };
        let condemned =
            self.rollout.as_ref().is_some_and(|rollout| rollout.condemns(worker, Duration::ZERO, now));
        self.scoreboard.cell(slot, worker.cell).set_state(WorkerState::Hung);
        self.show(slot);
        if condemned {
            self.take_back(format!("the new worker in slot {slot} hangs: {stall}"));
        }
    }

    /// It serves as before, and its spare takes over from it as any successor does.
    fn moves_again(&mut self, seen: &Seen) {
        let (slot, pid) = (seen.slot, seen.pid);
        let lives = |other: &Occupant| other.pid != pid && (other.is_ready() || other.is_booting());
        let has_spare = self.slots[slot].workers.iter().any(lives);
        let Some(worker) = self.slots[slot].worker(pid) else { return };
        worker.stage = Stage::Ready { since: seen.since };
        if has_spare {
            worker.retire = worker.retire.or(Some(Reason::Hang));
        }
        self.scoreboard.cell(slot, worker.cell).set_state(WorkerState::Ready);
        self.show(slot);
        tracing::info!(slot, pid = pid.as_raw(), "worker answers again");
        self.note_worker(Incident { kind: "worker_answers", slot, pid }, None, "answers again");
    }
}
