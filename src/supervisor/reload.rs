//! A new configuration on its way through the slots.

use std::path::Path;
use std::time::Duration;

use crate::control::protocol::Verdict;
use crate::supervisor::Refusal;
use crate::supervisor::Reloaded;
use crate::supervisor::Supervisor;
use crate::supervisor::history::happened;
use crate::supervisor::orders::Goal;
use crate::supervisor::plan::Target;
use crate::supervisor::rollout::Course;
use crate::supervisor::rollout::Kind;
use crate::supervisor::rollout::Rollout;
use crate::supervisor::rollout::Standing;
use crate::supervisor::upgrade::Upgrade;
use crate::sys::path;

/// What a rollout took, for people and programs: a path as it is written, and where it led if that is elsewhere.
struct Taken {
    kind: Kind,
    program: String,
    /// None: there is no configuration file.
    file: Option<String>,
    /// Whether the fleet had none before.
    is_new: bool,
}

impl Taken {
    /// Of the generation that a rollout leads to; the one before is still known.
    fn by(supervisor: &Supervisor<'_>, rollout: &Rollout) -> Self {
        let inputs = supervisor.host.inputs(rollout.to);
        let before = match &supervisor.upgrade {
            Upgrade::OnTrial(old) => old.inputs.clone(),
            _ => supervisor.host.inputs(rollout.from),
        };
        let shown = |(written, real): (&Path, &Path)| path::shown(written, real);
        Self {
            kind: rollout.kind,
            program: supervisor.program.shown(),
            file: inputs.read_from().map(shown),
            is_new: before.read_from().is_none(),
        }
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.file {
            Some(file) if self.is_new => write!(f, "it took the file {file}, which was not there before")?,
            Some(file) => write!(f, "it took the file {file}")?,
            None => f.write_str("there is no configuration file")?,
        }
        match self.kind {
            Kind::Reload => write!(f, ", the program is still {}", self.program),
            Kind::Upgrade => write!(f, ", the program is {}", self.program),
        }
    }
}

impl Supervisor<'_> {
    /// A reload is wanted: now, or once after the one that runs, however often it was asked for.
    pub(super) fn want_reload(&mut self) {
        if self.reload_waits {
            return;
        }
        self.reload_waits = true;
        if self.rollout.is_some() {
            tracing::info!("reload waits for the rollout that runs");
        }
    }

    /// Begins the reload that waits, if it can begin.
    pub(super) fn begin_reload(&mut self, now: Duration) {
        let can = self.reload_waits && self.target == Target::Serve && self.ever_ready && self.no_upgrade();
        if !can || !self.give_way() {
            return;
        }
        self.reload_waits = false;
        let to = self.next_generation;
        // Whoever asked by `systemctl reload` waits for both words, also when nothing comes of it.
        self.tell_reloading("reloading", now);
        match self.host.reload(to) {
            Err(refusal) => {
                let (reason, verdict): (_, fn(String) -> Verdict) = match refusal {
                    Refusal::Wrong(reason) => (reason, Verdict::refused),
                    Refusal::Lost(reason) => (reason, Verdict::failed),
                };
                self.tell_ready(&format!("reload refused: {reason}"));
                tracing::error!(%reason, "reload refused, nothing is changed: {reason}");
                self.note(happened("reload_refused", format!("nothing is changed: {reason}")));
                self.settle(&Goal::NextReload, &verdict(format!("nothing is changed: {reason}")));
            }
            Ok(reloaded) => {
                self.reload_has_begun(to);
                tracing::info!(generation = to, changed = reloaded.changed.join(","), "reload begins");
                self.apply(reloaded);
                self.begin_rollout(Kind::Reload, to, now);
            }
        }
    }

    /// Takes the supervisor's part of a configuration, until it is taken back.
    pub(super) fn apply(&mut self, reloaded: Reloaded) {
        for setting in &reloaded.pinned {
            tracing::warn!(setting = %setting.name, "{} is not changed now: {}", setting.name, setting.needs);
        }
        self.before = self.settings;
        self.settings = reloaded.settings;
        self.workers_wanted = reloaded.workers;
        self.pinned = reloaded.pinned;
    }

    /// Sends a new generation on its way.
    pub(super) fn begin_rollout(&mut self, kind: Kind, to: u64, now: Duration) {
        self.next_generation = to + 1;
        let from = self.generation;
        self.generation = to;
        for slot in &mut self.slots {
            // A slot that loops with the old generation gets a new chance.
            (slot.backoff, slot.rest_until) = (crate::supervisor::backoff::Backoff::default(), None);
        }
        let text = format!("{} to generation {to}", kind.name());
        self.note(happened(kind.began(), text).generation(to));
        self.rollout = Some(Rollout { kind, from, to, course: Course::Forward, started: now });
    }

    /// Whether another rollout may begin. One that goes back gives way: it may be that the old generation does not
    /// boot any more, and what comes now is the repair.
    pub(super) fn give_way(&mut self) -> bool {
        let Some(rollout) = &self.rollout else { return true };
        let Course::Back { reason } = &rollout.course else { return false };
        let kind = rollout.kind.name();
        let sentence = format!("{kind} failed: {reason}; what came next was begun before all was taken back");
        let (goal, rollout) = (Goal::Rollout(rollout.to), rollout.clone());
        self.settle(&goal, &Verdict::failed(sentence));
        self.remember(&rollout);
        self.rollout = None;
        true
    }

    /// Going back does not succeed either: whoever waits is told, and it is tried on.
    pub(super) fn going_back_failed(&mut self, slot: usize, cause: &str) {
        let Some(Rollout { kind, to, course: Course::Back { reason }, .. }) = &self.rollout else { return };
        let kind = kind.name();
        let sentence = format!(
            "{kind} failed: {reason}; going back fails too, in slot {slot}: {cause}; it is tried on, and another \
             reload or upgrade may come before"
        );
        let goal = Goal::Rollout(*to);
        tracing::error!(slot, %cause, "{sentence}");
        // Nobody knows whether it will end, so who waits by `systemctl reload` is not kept either.
        self.tell_ready(&sentence);
        self.settle(&goal, &Verdict::failed(sentence));
    }

    /// A new worker failed: back to the old generation.
    pub(super) fn take_back(&mut self, reason: String) {
        if self.target != Target::Serve {
            return;
        }
        let Some(rollout) = &mut self.rollout else { return };
        let kind = rollout.kind.name();
        tracing::warn!(generation = rollout.to, %reason, "{kind} fails, going back: {reason}");
        let event = happened("rollout_failed", format!("{kind} fails, going back: {reason}"));
        let event = event.generation(rollout.to);
        rollout.course = Course::Back { reason };
        self.generation = rollout.from;
        self.settings = self.before;
        self.workers_wanted = None;
        self.note(event);
    }

    /// Looks how far the rollout got and ends it when it is through; when to look again.
    pub(super) fn follow_rollout(&mut self, now: Duration) -> Option<Duration> {
        let rollout = self.rollout.as_ref().filter(|_| self.target == Target::Serve)?;
        match rollout.standing(&self.slots, self.settings.probation, now) {
            Standing::UnderWay { settled_at, .. } => return settled_at,
            Standing::Done => self.rollout_done(now),
            Standing::TakenBack => self.rollout_taken_back(now),
        }
        None
    }

    fn rollout_done(&mut self, now: Duration) {
        let Some(rollout) = self.rollout.take() else { return };
        self.remember(&rollout);
        let taken = Taken::by(self, &rollout);
        self.upgrade_settled();
        let (kind, generation) = (rollout.kind.name(), rollout.to);
        self.scoreboard.set_generation(generation);
        let took_ms = u64::try_from(now.saturating_sub(rollout.started).as_millis()).unwrap_or(u64::MAX);
        let workers = self.open_slots();
        tracing::info!(
            generation,
            workers,
            took_ms,
            file = taken.file,
            program = taken.program,
            "{kind} done: {workers} workers of generation {generation}"
        );
        self.host.keep(&self.generations());
        let seconds = now.saturating_sub(rollout.started).as_secs_f64();
        let mut sentence =
            format!("{kind} done: {workers} workers of generation {generation} in {seconds:.1} s; {taken}");
        for setting in std::mem::take(&mut self.pinned) {
            sentence.push_str(&format!("; {} was not changed: {}", setting.name, setting.needs));
        }
        if let Some(Err(reason)) = self.workers_wanted.take().map(|wanted| self.configure(wanted)) {
            tracing::warn!(%reason, "workers.count cannot be changed: {reason}");
            sentence.push_str(&format!("; workers.count was not changed: {reason}"));
        }
        self.tell_ready(&sentence);
        self.note(happened(rollout.kind.ended(), sentence.clone()).generation(generation));
        let verdict = Verdict::done(sentence).with("generation", generation).with("seconds", seconds);
        let verdict = verdict.with("file", taken.file).with("program", taken.program);
        self.settle(&Goal::Rollout(generation), &verdict);
    }

    /// The configuration names another number of workers.
    fn configure(&mut self, wanted: usize) -> Result<(), String> {
        self.scale_to(wanted)?;
        self.configured = wanted;
        Ok(())
    }

    fn rollout_taken_back(&mut self, now: Duration) {
        let Some(rollout) = self.rollout.take() else { return };
        let Course::Back { reason } = &rollout.course else { return };
        let took_ms = u64::try_from(now.saturating_sub(rollout.started).as_millis()).unwrap_or(u64::MAX);
        self.remember(&rollout);
        let (kind, generation) = (rollout.kind.name(), rollout.from);
        tracing::warn!(
            generation,
            took_ms,
            %reason,
            "{kind} rolled back: {reason}; generation {generation} serves as before"
        );
        let sentence = format!("{kind} rolled back: {reason}; generation {generation} serves as before");
        self.tell_ready(&sentence);
        self.note(happened("rolled_back", sentence.clone()).generation(generation));
        let verdict = Verdict::failed(sentence).with("generation", generation);
        self.settle(&Goal::Rollout(rollout.to), &verdict);
        self.host.keep(&self.generations());
    }

    /// The generations that slots have or want.
    fn generations(&self) -> Vec<u64> {
        self.slots.iter().map(|slot| slot.generation).chain([self.generation]).collect()
    }
}
