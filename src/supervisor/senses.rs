//! What the supervisor sees of its workers once a second, or more often when one is silent, and what it does about it.
//!
//! The judgments are the pure modules' (`vigil`, `recycle`, `autoscale`); here their figures are gathered and their
//! verdicts become a worker's stage, its retirement or another number of slots. The plan does the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::control::status::Decision;
use crate::scoreboard::Reason;
use crate::scoreboard::cell::Progress;
use crate::scoreboard::snapshot::WorkerSnapshot;
use crate::supervisor::Supervisor;
use crate::supervisor::autoscale;
use crate::supervisor::autoscale::Autoscaler;
use crate::supervisor::autoscale::Busy;
use crate::supervisor::autoscale::Load;
use crate::supervisor::history::Incident;
use crate::supervisor::history::happened;
use crate::supervisor::history::unix_ms;
use crate::supervisor::plan::Cause;
use crate::supervisor::plan::Target;
use crate::supervisor::recycle;
use crate::supervisor::slot::Occupant;
use crate::supervisor::slot::Seat;
use crate::supervisor::slot::Slot;
use crate::supervisor::slot::Stage;
use crate::supervisor::vigil;
use crate::supervisor::vigil::Patience;
use crate::sys::pressure::Pressure;
use crate::sys::proc;
use crate::sys::proc::Pid;
use crate::sys::queue;

/// Time between two looks while no worker is watched for hangs.
const LOOK: Duration = Duration::from_secs(1);

/// The same where memory is bounded: a worker that takes it fast must not have a second to do so.
const LOOK_AT_MEMORY: Duration = Duration::from_millis(500);

/// What the supervisor looks after besides crashes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Care {
    /// A worker that is silent for this long gets a spare beside it; zero: never.
    pub hang_timeout: Duration,
    /// One that is silent for this long is killed; zero: never.
    pub hang_kill: Duration,
    /// When workers are renewed.
    pub limits: recycle::Limits,
    /// How the load changes the number of workers; none: it does not.
    pub scaling: Option<autoscale::Settings>,
    /// Whether that is only said.
    pub dry_run: bool,
}

impl Care {
    fn any(&self) -> bool {
        !self.hang_timeout.is_zero() || self.limits.any() || self.scaling.is_some()
    }

    pub(super) fn patience(&self) -> Option<Patience> {
        Patience::new(self.hang_timeout, self.hang_kill)
    }

    /// Time until the next look: a silent worker is looked at closely, and so is the load where it decides.
    fn pause(&self, somebody_is_silent: bool) -> Duration {
        let rest = match self.limits.on_memory() {
            true => LOOK_AT_MEMORY,
            false => self.patience().map_or(LOOK, Patience::look_at_rest),
        };
        if somebody_is_silent || self.scaling.is_some() { rest.min(vigil::LOOK_CLOSELY) } else { rest }
    }
}

/// What is remembered between two looks.
#[derive(Debug)]
pub(super) struct Senses {
    /// When the next look is due.
    due: Duration,
    pub(super) watches: BTreeMap<Pid, Watch>,
    autoscaler: Option<Autoscaler>,
    /// What a dry run said last.
    advised: usize,
    pressure: Pressure,
    /// Since when some worker has been silent, and how long tasks had waited for a CPU by then.
    silence: Option<(Duration, Duration)>,
    /// Processes of this control group that the kernel has killed for memory, as far as each is accounted for.
    memory_kills: Option<u64>,
}

/// One worker.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) vigil: vigil::Watch,
    recycle: recycle::Watch,
    /// Whether it may hang, so that new connections go elsewhere.
    pub(super) suspect: bool,
}

/// A worker that serves, as one look finds it.
pub(super) struct Seen {
    pub(super) slot: usize,
    pub(super) pid: Pid,
    pub(super) since: Duration,
    /// Whether it is known to hang.
    pub(super) hung: bool,
    /// Whether it is to retire already.
    retires: bool,
    pub(super) progress: Progress,
    figures: WorkerSnapshot,
}

impl Seen {
    /// Its last sign of life; becoming READY is one.
    pub(super) fn beat(&self) -> Duration {
        Duration::from_millis(self.figures.heartbeat_ms).max(self.since)
    }
}

impl Senses {
    pub(super) fn new() -> Self {
        let pressure = Pressure::find();
        Self {
            due: Duration::ZERO,
            watches: BTreeMap::new(),
            autoscaler: None,
            advised: 0,
            memory_kills: pressure.memory_kills(),
            pressure,
            silence: None,
        }
    }

    /// The share of the time since workers fell silent in which some task of the machine, or of the control group,
    /// waited for a CPU: for people who read why somebody was thought to hang.
    pub(super) fn cpu_pressure(&mut self, now: Duration) -> Option<f64> {
        let waited = self.pressure.cpu_waiting()?;
        let (since, before) = *self.silence.get_or_insert((now, waited));
        let passed = now.saturating_sub(since).as_secs_f64();
        (passed > 0.0).then(|| waited.saturating_sub(before).as_secs_f64() / passed)
    }

    /// Whether new connections had better not go to this slot: whoever sits there may hang.
    pub(super) fn avoids(&self, slot: &Slot) -> bool {
        let is_suspect = |pid: Pid| self.watches.get(&pid).is_some_and(|watch| watch.suspect);
        let mut serving = slot.workers.iter().filter(|worker| worker.is_ready()).peekable();
        match serving.peek() {
            Some(_) => serving.all(|worker| is_suspect(worker.pid)),
            None => slot.workers.iter().any(Occupant::is_hung),
        }
    }

    /// The load is watched for a whole window before the next decision.
    pub(super) fn forget_scaling(&mut self) {
        self.autoscaler = None;
    }

    /// Whether the kernel has killed one more process of this control group for want of memory than was asked about:
    /// one kill explains one death.
    pub(super) fn memory_killed(&mut self) -> bool {
        let Some((known, killed)) = self.memory_kills.as_mut().zip(self.pressure.memory_kills()) else {
            return false;
        };
        let more = killed > *known;
        *known += u64::from(more);
        more
    }
}

impl Supervisor<'_> {
    /// Looks at every worker that serves, if it is time; when it is time again, if there is anything to look after.
    pub(super) fn look(&mut self, now: Duration) -> Option<Duration> {
        let somebody_hangs = || self.slots.iter().any(|slot| slot.workers.iter().any(Occupant::is_hung));
        if self.target != Target::Serve || !(self.settings.care.any() || somebody_hangs()) {
            self.senses.watches.clear();
            return None;
        }
        if now >= self.senses.due {
            let seen = self.serving();
            self.senses.watches.retain(|pid, _| seen.iter().any(|worker| worker.pid == *pid));
            if !seen.iter().any(|worker| vigil::is_overdue(worker.beat(), now)) {
                self.senses.silence = None;
            } else if self.senses.silence.is_none() {
                self.senses.cpu_pressure(now);
            }
            for worker in &seen {
                self.watch(worker, now);
                self.recycle(worker, now);
            }
            self.autoscale(&seen, now);
            let silent = self.senses.watches.values().any(|watch| watch.vigil.is_silent());
            self.senses.due = now + self.settings.care.pause(silent);
        }
        Some(self.senses.due)
    }

    fn serving(&self) -> Vec<Seen> {
        let mut seen = Vec::with_capacity(self.slots.len());
        for (slot, state) in self.slots.iter().enumerate() {
            for worker in &state.workers {
                let (Stage::Ready { since } | Stage::Hung { since, .. }) = worker.stage else { continue };
                let Some(figures) = self.scoreboard.cell(slot, worker.cell).snapshot() else { continue };
                let progress = self.scoreboard.cell(slot, worker.cell).progress();
                let (pid, hung, retires) = (worker.pid, worker.is_hung(), worker.retire.is_some());
                seen.push(Seen { slot, pid, since, hung, retires, progress, figures });
            }
        }
        seen
    }

    pub(super) fn remembered(&mut self, worker: &Seen) -> &mut Watch {
        self.senses.watches.entry(worker.pid).or_insert_with(|| Watch {
            vigil: vigil::Watch::default(),
            recycle: recycle::Watch::new(worker.slot, worker.pid.as_raw().unsigned_abs()),
            suspect: false,
        })
    }

    /// Has it done enough, or does it hold too much?
    fn recycle(&mut self, worker: &Seen, now: Duration) {
        let limits = self.settings.care.limits;
        let occupant = self.slots[worker.slot].worker(worker.pid);
        if !limits.any() || occupant.is_none_or(|occupant| !occupant.is_ready() && !occupant.is_hung()) {
            return;
        }
        let watch = &mut self.remembered(worker).recycle;
        let mut verdict = watch.work(&limits, worker.figures.requests, now.saturating_sub(worker.since));
        // A worker that is stuck while it takes memory does not tell: it is looked at from outside.
        if watch.wants_memory(&limits, now)
            && let Some(held) = held(worker.pid, &limits)
        {
            let memory = watch.memory(&limits, held, now);
            if matches!(memory, recycle::Verdict::Kill(_)) || verdict == recycle::Verdict::Stay {
                verdict = memory;
            }
        }
        let (slot, pid) = (worker.slot, worker.pid.as_raw());
        match verdict {
            recycle::Verdict::Stay => {}
            recycle::Verdict::Futile(cause) => {
                tracing::warn!(slot, pid, "workers.memory_soft is too low: {cause}, though it is new");
            }
            // One change at a time: what a rollout brings in has to prove itself first.
            recycle::Verdict::Retire(_) if worker.retires || self.rollout.is_some() => {}
            recycle::Verdict::Retire(cause) => {
                let reason = reason_of(cause);
                if let Some(occupant) = self.slots[slot].worker(worker.pid) {
                    occupant.retire = Some(reason);
                }
                tracing::info!(slot, pid, %reason, "worker is to be renewed: {cause}");
                let incident = Incident { kind: "worker_retires", slot, pid: worker.pid };
                self.note_worker(incident, Some(reason), &format!("is to be renewed: {cause}"));
            }
            recycle::Verdict::Kill(cause) => {
                tracing::warn!(slot, pid, reason = %reason_of(cause), "worker is killed: {cause}");
                self.kill(slot, worker.pid, Cause::Memory, now);
            }
        }
    }

    /// Does the load want another number of workers?
    fn autoscale(&mut self, seen: &[Seen], now: Duration) {
        let Some(mut settings) = self.settings.care.scaling else {
            self.senses.autoscaler = None;
            return;
        };
        // More than the table has room for cannot be had until the fleet is started anew.
        settings.max = settings.max.min(self.scoreboard.capacity());
        settings.min = settings.min.min(settings.max);
        // A rollout has two workers in one slot; what they do says little about the load.
        if self.rollout.is_some() || !self.announced {
            return;
        }
        let load = self.load(seen, now);
        let autoscaler = match &mut self.senses.autoscaler {
            Some(autoscaler) if autoscaler.settings() == settings => autoscaler,
            other => other.insert(Autoscaler::new(settings)),
        };
        let Some(autoscale::Decision { target, reason }) = autoscaler.look(&load, now) else { return };
        let from = self.wanted;
        self.decided = Some(Decision { target, reason: reason.clone(), at_ms: unix_ms() });
        if self.settings.care.dry_run {
            let advised = std::mem::replace(&mut self.senses.advised, target);
            if advised != target && target != from {
                tracing::info!(from, to = target, %reason, "autoscaling would go from {from} to {target} workers: {reason}");
            }
        } else if target == from {
            tracing::debug!(workers = from, %reason, "autoscaling keeps {from} workers: {reason}");
        } else {
            tracing::info!(from, to = target, %reason, "autoscaling goes from {from} to {target} workers: {reason}");
            self.note(happened("autoscaled", format!("from {from} to {target} workers: {reason}")));
            if let Err(refusal) = self.scale_to(target) {
                tracing::warn!(reason = %refusal, "not scaled: {refusal}");
                // It begins a new window, and does not ask again at the next look.
                self.senses.autoscaler = None;
            }
        }
    }

    fn load(&self, seen: &[Seen], now: Duration) -> Load {
        // A slot with a hung worker is its spare's: one worker a slot.
        let open = |worker: &&Seen| self.slots[worker.slot].seat == Seat::Open && !worker.hung;
        let busy = |worker: &Seen| Busy {
            worker: u64::from(worker.pid.as_raw().unsigned_abs()),
            busy: Duration::from_micros(worker.figures.busy_us),
            silent: vigil::is_overdue(worker.beat(), now),
        };
        Load {
            target: self.wanted,
            workers: seen.iter().filter(open).map(busy).collect(),
            backlog: (0..self.slots.len()).map(|slot| self.waiting(slot)).sum(),
        }
    }

    /// Visitors' connections that wait on a slot.
    pub(super) fn waiting(&self, slot: usize) -> u32 {
        let listeners = self.sockets.get(slot).and_then(Option::as_ref);
        let public = listeners.map_or(&[][..], |listeners| &listeners.public);
        public.iter().filter_map(|listener| queue::of(listener).ok()).map(|queue| queue.waiting).sum()
    }
}

/// Private memory of a process; where even all of its memory is far from the limits, that: it costs less to find out.
fn held(pid: Pid, limits: &recycle::Limits) -> Option<u64> {
    let resident = proc::resident_memory_of(pid)?;
    if limits.is_near(resident) { proc::private_memory_of(pid) } else { Some(resident) }
}

fn reason_of(cause: recycle::Cause) -> Reason {
    match cause {
        recycle::Cause::Requests(_) => Reason::Requests,
        recycle::Cause::Age(_) => Reason::Age,
        recycle::Cause::Memory { .. } => Reason::Memory,
    }
}
