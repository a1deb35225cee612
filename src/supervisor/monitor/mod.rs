//! What the supervisor sees of its workers once a second, or more often when one is silent, and what it does about it.
//!
//! The judgments are the pure modules' (`vigil`, `recycle`, `autoscale`); here their figures are gathered and their
//! verdicts become a worker's stage, its retirement or another number of slots. The plan does the rest.

pub mod autoscaler;
pub mod hang;
pub(in crate::supervisor) mod hang_response;
pub mod recycling;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::LoopProgress;
use crate::scoreboard::snapshot::CellSnapshot;
use crate::status::document::ScalingDecision;
use crate::supervisor::Supervisor;
use crate::supervisor::effects::{WorkerEvent, event_now, unix_ms};
use crate::supervisor::monitor::autoscaler::{Autoscaler, LoadSample, WorkerLoad};
use crate::supervisor::monitor::hang::HangThresholds;
use crate::supervisor::slots::plan::{DesiredState, KillReason};
use crate::supervisor::slots::slot::{Slot, SlotListening, WorkerHandle, WorkerPhase};
use crate::sys::pressure::ResourcePressure;
use crate::sys::process::Pid;
use crate::sys::{process, tcp_socket};

/// Time between two looks while no worker is watched for hangs.
const TICK: Duration = Duration::from_secs(1);

/// The same where memory is bounded: a worker that takes it fast must not have a second to do so.
const MEMORY_TICK: Duration = Duration::from_millis(500);

/// What the supervisor looks after besides crashes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MonitorSettings {
    /// A worker that is silent for this long gets a spare beside it; zero: never.
    pub hang_timeout: Duration,
    /// One that is silent for this long is killed; zero: never.
    pub hang_kill: Duration,
    /// When workers are renewed.
    pub limits: recycling::RecycleLimits,
    /// How the load changes the number of workers; none: it does not.
    pub scaling: Option<autoscaler::AutoscaleSettings>,
    /// Whether that is only said.
    pub dry_run: bool,
}

impl MonitorSettings {
    fn is_enabled(&self) -> bool {
        !self.hang_timeout.is_zero() || self.limits.has_any_limit() || self.scaling.is_some()
    }

    pub(super) fn hang_thresholds(&self) -> Option<HangThresholds> {
        HangThresholds::new(self.hang_timeout, self.hang_kill)
    }

    /// Time until the next look: a silent worker is looked at closely, and so is the load where it decides.
    fn tick_interval(&self, any_silent: bool) -> Duration {
        let rest = match self.limits.has_memory_limit() {
            true => MEMORY_TICK,
            false => self.hang_thresholds().map_or(TICK, HangThresholds::rest_interval),
        };
        if any_silent || self.scaling.is_some() { rest.min(hang::CLOSE_INTERVAL) } else { rest }
    }
}

/// What is remembered between two looks.
#[derive(Debug)]
pub(super) struct HealthMonitor {
    /// When the next look is due.
    due: Duration,
    pub(super) trackers: BTreeMap<Pid, WorkerTrackers>,
    autoscaler: Option<Autoscaler>,
    /// What a dry run said last.
    last_advice: usize,
    pressure: ResourcePressure,
    /// Since when some worker has been silent, and how long tasks had waited for a CPU by then.
    silent_since: Option<(Duration, Duration)>,
    /// Processes of this control group that the kernel has killed for memory, as far as each is accounted for.
    memory_kills: Option<u64>,
}

/// One worker.
#[derive(Debug)]
pub(super) struct WorkerTrackers {
    pub(super) hang: hang::HangDetector,
    recycle: recycling::RecycleTracker,
    /// Whether it may hang, so that new connections go elsewhere.
    pub(super) suspect: bool,
}

/// A worker that serves, as one look finds it.
pub(super) struct ServingWorker {
    pub(super) slot: usize,
    pub(super) pid: Pid,
    pub(super) since: Duration,
    /// Whether it is known to hang.
    pub(super) is_hung: bool,
    /// Whether it is to retire already.
    is_retiring: bool,
    pub(super) progress: LoopProgress,
    snapshot: CellSnapshot,
}

impl ServingWorker {
    /// Its last sign of life; becoming READY is one.
    pub(super) fn last_heartbeat(&self) -> Duration {
        Duration::from_millis(self.snapshot.heartbeat_ms).max(self.since)
    }
}

impl HealthMonitor {
    pub(super) fn new() -> Self {
        let pressure = ResourcePressure::discover();
        Self {
            due: Duration::ZERO,
            trackers: BTreeMap::new(),
            autoscaler: None,
            last_advice: 0,
            memory_kills: pressure.oom_kills(),
            pressure,
            silent_since: None,
        }
    }

    /// The share of the time since workers fell silent in which some task of the machine, or of the control group,
    /// waited for a CPU: for people who read why somebody was thought to hang.
    pub(super) fn cpu_pressure(&mut self, now: Duration) -> Option<f64> {
        let waited = self.pressure.cpu_wait()?;
        let (since, before) = *self.silent_since.get_or_insert((now, waited));
        let passed = now.saturating_sub(since).as_secs_f64();
        (passed > 0.0).then(|| waited.saturating_sub(before).as_secs_f64() / passed)
    }

    /// Whether new connections had better not go to this slot: whoever sits there may hang.
    pub(super) fn avoids_slot(&self, slot: &Slot) -> bool {
        let is_suspect = |pid: Pid| self.trackers.get(&pid).is_some_and(|watch| watch.suspect);
        let mut serving = slot.workers.iter().filter(|worker| worker.is_ready()).peekable();
        match serving.peek() {
            Some(_) => serving.all(|worker| is_suspect(worker.pid)),
            None => slot.workers.iter().any(WorkerHandle::is_hung),
        }
    }

    /// The load is watched for a whole window before the next decision.
    pub(super) fn reset_autoscaler(&mut self) {
        self.autoscaler = None;
    }

    /// Whether the kernel has killed one more process of this control group for want of memory than was asked about:
    /// one kill explains one death.
    pub(super) fn account_memory_kill(&mut self) -> bool {
        let Some((known, killed)) = self.memory_kills.as_mut().zip(self.pressure.oom_kills()) else {
            return false;
        };
        let more = killed > *known;
        *known += u64::from(more);
        more
    }
}

impl Supervisor<'_> {
    /// Looks at every worker that serves, if it is time; when it is time again, if there is anything to look after.
    pub(super) fn monitor_workers(&mut self, now: Duration) -> Option<Duration> {
        let any_hung = || self.slots.iter().any(|slot| slot.workers.iter().any(WorkerHandle::is_hung));
        if self.desired_state != DesiredState::Running || !(self.settings.monitor.is_enabled() || any_hung())
        {
            self.monitor.trackers.clear();
            return None;
        }
        if now >= self.monitor.due {
            let seen = self.serving_workers();
            self.monitor.trackers.retain(|pid, _| seen.iter().any(|worker| worker.pid == *pid));
            if !seen.iter().any(|worker| hang::is_overdue(worker.last_heartbeat(), now)) {
                self.monitor.silent_since = None;
            } else if self.monitor.silent_since.is_none() {
                self.monitor.cpu_pressure(now);
            }
            for worker in &seen {
                self.check_hang(worker, now);
                self.check_recycling(worker, now);
            }
            self.check_load(&seen, now);
            let silent = self.monitor.trackers.values().any(|watch| watch.hang.is_silent());
            self.monitor.due = now + self.settings.monitor.tick_interval(silent);
        }
        Some(self.monitor.due)
    }

    fn serving_workers(&self) -> Vec<ServingWorker> {
        let mut seen = Vec::with_capacity(self.slots.len());
        for (slot, state) in self.slots.iter().enumerate() {
            for worker in &state.workers {
                let (WorkerPhase::Ready { since } | WorkerPhase::Hung { since, .. }) = worker.phase else {
                    continue;
                };
                let Some(figures) = self.scoreboard.cell(slot, worker.cell).snapshot() else { continue };
                let progress = self.scoreboard.cell(slot, worker.cell).progress();
                let (pid, hung, retires) = (worker.pid, worker.is_hung(), worker.replace_reason.is_some());
                seen.push(ServingWorker {
                    slot,
                    pid,
                    since,
                    is_hung: hung,
                    is_retiring: retires,
                    progress,
                    snapshot: figures,
                });
            }
        }
        seen
    }

    pub(super) fn trackers(&mut self, worker: &ServingWorker) -> &mut WorkerTrackers {
        self.monitor.trackers.entry(worker.pid).or_insert_with(|| WorkerTrackers {
            hang: hang::HangDetector::default(),
            recycle: recycling::RecycleTracker::new(worker.slot, worker.pid.as_raw().unsigned_abs()),
            suspect: false,
        })
    }

    /// Has it done enough, or does it hold too much?
    fn check_recycling(&mut self, worker: &ServingWorker, now: Duration) {
        let limits = self.settings.monitor.limits;
        let occupant = self.slots[worker.slot].worker_mut(worker.pid);
        if !limits.has_any_limit()
            || occupant.is_none_or(|occupant| !occupant.is_ready() && !occupant.is_hung())
        {
            return;
        }
        let watch = &mut self.trackers(worker).recycle;
        let mut decision =
            watch.check_age_and_requests(&limits, worker.snapshot.requests, now.saturating_sub(worker.since));
        // A worker that is stuck while it takes memory does not tell: it is looked at from outside.
        if watch.needs_memory_sample(&limits, now)
            && let Some(held) = memory_held(worker.pid, &limits)
        {
            let memory = watch.check_memory(&limits, held, now);
            if matches!(memory, recycling::RecycleDecision::Kill(_))
                || decision == recycling::RecycleDecision::Keep
            {
                decision = memory;
            }
        }
        let (slot, pid) = (worker.slot, worker.pid.as_raw());
        match decision {
            recycling::RecycleDecision::Keep => {}
            recycling::RecycleDecision::LimitTooLow(cause) => {
                tracing::warn!(slot, pid, "workers.memory_soft is too low: {cause}, though it is new");
            }
            // One change at a time: what a rollout brings in has to prove itself first.
            recycling::RecycleDecision::Replace(_)
                if worker.is_retiring || self.deployment.rollout().is_some() => {}
            recycling::RecycleDecision::Replace(cause) => {
                let reason = exit_reason(cause);
                if let Some(occupant) = self.slots[slot].worker_mut(worker.pid) {
                    occupant.replace_reason = Some(reason);
                }
                tracing::info!(slot, pid, %reason, "recycling worker: {cause}");
                let incident = WorkerEvent { kind: "worker_recycling", slot, pid: worker.pid };
                self.record_worker_event(incident, Some(reason), &format!("is recycled: {cause}"));
            }
            recycling::RecycleDecision::Kill(cause) => {
                tracing::warn!(slot, pid, reason = %exit_reason(cause), "killing worker: {cause}");
                self.kill(slot, worker.pid, KillReason::Memory, now);
            }
        }
    }

    /// Does the load want another number of workers?
    fn check_load(&mut self, seen: &[ServingWorker], now: Duration) {
        let Some(mut settings) = self.settings.monitor.scaling else {
            self.monitor.autoscaler = None;
            return;
        };
        // More than the table has room for cannot be had until the fleet is started anew.
        settings.max = settings.max.min(self.scoreboard.capacity());
        settings.min = settings.min.min(settings.max);
        // A rollout has two workers in one slot; what they do says little about the load.
        if self.deployment.rollout().is_some() || !self.announced {
            return;
        }
        let load = self.sample_load(seen, now);
        let autoscaler = match &mut self.monitor.autoscaler {
            Some(autoscaler) if autoscaler.settings() == settings => autoscaler,
            other => other.insert(Autoscaler::new(settings)),
        };
        let Some(autoscaler::AutoscaleDecision { target, reason }) = autoscaler.observe(&load, now) else {
            return;
        };
        let from = self.desired_slots;
        self.scaling_decision = Some(ScalingDecision { target, reason: reason.clone(), at_ms: unix_ms() });
        if self.settings.monitor.dry_run {
            let advised = std::mem::replace(&mut self.monitor.last_advice, target);
            if advised != target && target != from {
                tracing::info!(from, to = target, %reason, "autoscaling would go from {from} to {target} workers: {reason}");
            }
        } else if target == from {
            tracing::debug!(workers = from, %reason, "autoscaling keeps {from} workers: {reason}");
        } else {
            tracing::info!(from, to = target, %reason, "autoscaling goes from {from} to {target} workers: {reason}");
            self.record_event(event_now("autoscaled", format!("from {from} to {target} workers: {reason}")));
            if let Err(refusal) = self.scale_to(target) {
                tracing::warn!(reason = %refusal, "not scaled: {refusal}");
                // It begins a new window, and does not ask again at the next look.
                self.monitor.autoscaler = None;
            }
        }
    }

    fn sample_load(&self, seen: &[ServingWorker], now: Duration) -> LoadSample {
        // A slot with a hung worker is its spare's: one worker a slot.
        let open = |worker: &&ServingWorker| {
            self.slots[worker.slot].listening == SlotListening::Open && !worker.is_hung
        };
        let busy = |worker: &ServingWorker| WorkerLoad {
            worker: u64::from(worker.pid.as_raw().unsigned_abs()),
            busy: Duration::from_micros(worker.snapshot.busy_us),
            silent: hang::is_overdue(worker.last_heartbeat(), now),
        };
        LoadSample {
            target: self.desired_slots,
            workers: seen.iter().filter(open).map(busy).collect(),
            backlog: (0..self.slots.len()).map(|slot| self.queued_connections(slot)).sum(),
        }
    }

    /// Visitors' connections that wait on a slot.
    pub(super) fn queued_connections(&self, slot: usize) -> u32 {
        let listeners = self.sockets.get(slot).and_then(Option::as_ref);
        let public = listeners.map_or(&[][..], |listeners| &listeners.public);
        public
            .iter()
            .filter_map(|listener| tcp_socket::read_accept_queue(listener).ok())
            .map(|queue| queue.waiting)
            .sum()
    }
}

/// Private memory of a process; where even all of its memory is far from the limits, that: it costs less to find out.
fn memory_held(pid: Pid, limits: &recycling::RecycleLimits) -> Option<u64> {
    let resident = process::resident_memory_of(pid)?;
    if limits.is_near(resident) { process::private_memory_of(pid) } else { Some(resident) }
}

fn exit_reason(cause: recycling::RecycleCause) -> ExitReason {
    match cause {
        recycling::RecycleCause::Requests(_) => ExitReason::Requests,
        recycling::RecycleCause::Age(_) => ExitReason::Age,
        recycling::RecycleCause::Memory { .. } => ExitReason::Memory,
    }
}
