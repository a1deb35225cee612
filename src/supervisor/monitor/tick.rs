//! The monitor's turn: samples of every serving worker, and what follows from them.

use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::scoreboard::ExitReason;
use crate::status::document::ScalingDecision;
use crate::supervisor::Supervisor;
use crate::supervisor::effects::{WorkerEvent, event_now, unix_ms};
use crate::supervisor::monitor::autoscaler::{Autoscaler, LoadSample, WorkerLoad};
use crate::supervisor::monitor::{ServingWorker, WorkerTrackers, autoscaler, hang, recycling};
use crate::supervisor::slots::plan::{DesiredState, KillReason};
use crate::supervisor::slots::slot::{SlotListening, WorkerHandle, WorkerPhase};
use crate::sys::process;
use crate::sys::process::Pid;

impl Supervisor<'_> {
    /// Samples every worker that serves, if it is time; when it is time again, if anything is monitored.
    pub(in crate::supervisor) fn monitor_workers(&mut self, now: Duration) -> Option<Duration> {
        let any_hung =
            || self.slots.entries.iter().any(|slot| slot.workers.iter().any(WorkerHandle::is_hung));
        if self.lifecycle.desired_state != DesiredState::Running
            || !(self.settings.monitor.is_enabled() || any_hung())
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
        let mut seen = Vec::with_capacity(self.slots.entries.len());
        for (slot, state) in self.slots.entries.iter().enumerate() {
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

    pub(in crate::supervisor) fn trackers(&mut self, worker: &ServingWorker) -> &mut WorkerTrackers {
        self.monitor.trackers.entry(worker.pid).or_insert_with(|| WorkerTrackers {
            hang: hang::HangDetector::default(),
            recycle: recycling::RecycleTracker::new(worker.slot, worker.pid.as_raw().unsigned_abs()),
            suspect: false,
        })
    }

    /// Has it done enough, or does it hold too much?
    fn check_recycling(&mut self, worker: &ServingWorker, now: Duration) {
        let limits = self.settings.monitor.limits;
        let occupant = self.slots.entries[worker.slot].worker_mut(worker.pid);
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
                if let Some(occupant) = self.slots.entries[slot].worker_mut(worker.pid) {
                    occupant.replace_reason = Some(reason);
                }
                tracing::info!(slot, pid, %reason, "recycling worker: {cause}");
                let incident = WorkerEvent { kind: EventKind::WorkerRecycling, slot, pid: worker.pid };
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
        // A rollout has two workers in one slot, which is no measure of the load.
        if self.deployment.rollout().is_some() || !self.lifecycle.announced {
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
        let from = self.slots.desired;
        self.monitor.scaling_decision =
            Some(ScalingDecision { target, reason: reason.clone(), at_ms: unix_ms() });
        if self.settings.monitor.dry_run {
            let advised = std::mem::replace(&mut self.monitor.last_advice, target);
            if advised != target && target != from {
                tracing::info!(from, to = target, %reason, "autoscaling would go from {from} to {target} workers: {reason}");
            }
        } else if target == from {
            tracing::debug!(workers = from, %reason, "autoscaling keeps {from} workers: {reason}");
        } else {
            tracing::info!(from, to = target, %reason, "autoscaling goes from {from} to {target} workers: {reason}");
            self.record_event(event_now(
                EventKind::Autoscaled,
                format!("from {from} to {target} workers: {reason}"),
            ));
            if let Err(refusal) = self.scale_to(target) {
                tracing::warn!(reason = %refusal, "not scaled: {refusal}");
                // It starts a new window, and does not repeat the request at the next sample.
                self.monitor.autoscaler = None;
            }
        }
    }

    fn sample_load(&self, seen: &[ServingWorker], now: Duration) -> LoadSample {
        // A slot with a hung worker is its spare's: one worker a slot.
        let open = |worker: &&ServingWorker| {
            self.slots.entries[worker.slot].listening == SlotListening::Open && !worker.is_hung
        };
        let busy = |worker: &ServingWorker| WorkerLoad {
            worker: u64::from(worker.pid.as_raw().unsigned_abs()),
            busy: Duration::from_micros(worker.snapshot.busy_us),
            silent: hang::is_overdue(worker.last_heartbeat(), now),
        };
        LoadSample {
            target: self.slots.desired,
            workers: seen.iter().filter(open).map(busy).collect(),
            backlog: (0..self.slots.entries.len()).map(|slot| self.slots.queued_connections(slot)).sum(),
        }
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
