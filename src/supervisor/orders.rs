//! What operators ask over the control socket, and the verdicts they wait for.
//!
//! A verdict is given when it is true, not when its order was taken: whoever waits is looked after in every turn of the
//! loop until what was asked for has come about, or cannot any more.

use std::time::Duration;

use serde_json::Value;

use crate::control::protocol::Progress;
use crate::control::protocol::Reply;
use crate::control::protocol::Request;
use crate::control::protocol::Verdict;
use crate::control::server::ClientId;
use crate::scoreboard::Reason;
use crate::supervisor::Outcome;
use crate::supervisor::Supervisor;
use crate::supervisor::backoff::Backoff;
use crate::supervisor::plan::Target;
use crate::supervisor::rollout::Standing;
use crate::supervisor::slot::Seat;
use crate::supervisor::slot::Slot;
use crate::sys::proc::Pid;

/// How long a stopping fleet waits for operators to read their verdict.
const FAREWELL: Duration = Duration::from_secs(1);

/// Early deaths of a new slot after which whoever asked for it is told.
const TRIES: u32 = 2;

/// An operator who waits for a verdict.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Waiter {
    client: ClientId,
    goal: Goal,
    /// The progress last told.
    told: Option<(usize, usize)>,
}

/// What an operator waits for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Goal {
    /// The reload that has not begun yet.
    NextReload,
    /// The upgrade whose program has not taken over yet.
    NextUpgrade,
    /// The end of the rollout that leads to this generation.
    Rollout(u64),
    /// This number of workers.
    Workers(usize),
    /// Another worker in this slot than these.
    Successor {
        /// The slot.
        slot: usize,
        /// Pids of the workers it had.
        before: Vec<i32>,
    },
    /// The end of the fleet.
    Stop,
}

impl Supervisor<'_> {
    /// Takes what operators ask.
    pub(super) fn take_orders(&mut self) {
        for (client, request) in self.control.poll() {
            tracing::debug!(verb = request.verb(), "an operator asks");
            self.order(client, request);
        }
    }

    fn order(&mut self, client: ClientId, request: Request) {
        let stopping = self.target != Target::Serve;
        match request {
            Request::Status => self.answer_status(client),
            Request::Events { after, follow } => self.control.tell_events(client, after, follow),
            Request::Stop { now, wait } => self.order_stop(client, now, wait),
            _ if stopping => self.verdict(client, Verdict::failed("the fleet is stopping")),
            Request::Reload { wait } => {
                self.want_reload();
                self.taken(client, wait, Goal::NextReload, "the reload is under way");
            }
            Request::Upgrade { binary, wait } => match self.want_upgrade(binary) {
                Err(reason) => self.verdict(client, Verdict::failed(reason)),
                Ok(()) => self.taken(client, wait, Goal::NextUpgrade, "the upgrade is under way"),
            },
            Request::Scale { workers, wait } => match self.scale_to(workers) {
                Err(reason) => self.verdict(client, Verdict::refused(reason)),
                Ok(()) => {
                    let accepted = format!("{workers} workers are wanted from now on");
                    self.taken(client, wait, Goal::Workers(workers), &accepted);
                }
            },
            Request::Restart { slot, wait } => self.order_restart(client, slot, wait),
        }
    }

    /// Has the client wait for its goal, or tells it at once that it will be pursued.
    pub(super) fn taken(&mut self, client: ClientId, wait: bool, goal: Goal, accepted: &str) {
        if wait {
            self.waiters.push(Waiter { client, goal, told: None });
        } else {
            self.verdict(client, Verdict::done(accepted));
        }
    }

    pub(super) fn verdict(&mut self, client: ClientId, verdict: Verdict) {
        self.control.reply(client, &Reply::Verdict(verdict));
    }

    fn answer_status(&mut self, client: ClientId) {
        let status = serde_json::to_value(self.status()).unwrap_or(Value::Null);
        self.control.reply(client, &Reply::Status(status));
    }

    fn order_stop(&mut self, client: ClientId, now: bool, wait: bool) {
        match (now, self.target) {
            (true, Target::Serve | Target::Stop) => self.aim(Target::StopNow, "an operator"),
            (false, Target::Serve) => self.aim(Target::Stop, "an operator"),
            _ => {}
        }
        self.taken(client, wait, Goal::Stop, "the fleet is stopping");
    }

    fn order_restart(&mut self, client: ClientId, index: usize, wait: bool) {
        let open = self.slots.get(index).is_some_and(|slot| slot.seat == Seat::Open);
        if !open {
            let last = self.wanted.saturating_sub(1);
            let sentence = format!("there is no slot {index}: this fleet has slots 0 to {last}");
            return self.verdict(client, Verdict::refused(sentence));
        }
        let slot = &mut self.slots[index];
        let before = slot.workers.iter().map(|worker| worker.pid.as_raw()).collect();
        for worker in slot.workers.iter_mut().filter(|worker| worker.is_ready() || worker.is_booting()) {
            worker.retire = Some(Reason::Operator);
        }
        // One that waits for its delay is started now.
        (slot.backoff, slot.rest_until) = (Backoff::default(), None);
        let accepted = format!("slot {index} gets a new worker");
        self.taken(client, wait, Goal::Successor { slot: index, before }, &accepted);
    }

    /// Tells those whose goal has come about, or cannot any more, and how far the others are.
    pub(super) fn follow_orders(&mut self, now: Duration) {
        for mut waiter in std::mem::take(&mut self.waiters) {
            // Who has left does not wait.
            if !self.control.knows(waiter.client) {
                continue;
            }
            if let Some(verdict) = self.judge(&waiter.goal) {
                self.verdict(waiter.client, verdict);
                continue;
            }
            let mut progress = self.progress(&waiter.goal, now);
            if let (Some(progress), Some((_, total))) = (&mut progress, waiter.told) {
                // What was counted before and is gone now is done.
                progress.done += total.saturating_sub(progress.total);
                progress.total = progress.total.max(total);
            }
            if let Some(progress) = progress.filter(|new| waiter.told != Some((new.done, new.total))) {
                waiter.told = Some((progress.done, progress.total));
                self.control.reply(waiter.client, &Reply::Progress(progress));
            }
            self.waiters.push(waiter);
        }
    }

    fn judge(&self, goal: &Goal) -> Option<Verdict> {
        let stopping = self.target != Target::Serve;
        match goal {
            Goal::Stop => None,
            _ if stopping => Some(Verdict::failed("the fleet stops before that was done")),
            // Answered where the rollout begins and ends.
            Goal::NextReload | Goal::NextUpgrade | Goal::Rollout(_) => None,
            Goal::Workers(workers) => self.judge_scale(*workers),
            Goal::Successor { slot, before } => {
                let state = self.slots.get(*slot).filter(|slot| slot.seat == Seat::Open);
                let Some(state) = state else {
                    return Some(Verdict::failed(format!("slot {slot} is retired meanwhile")));
                };
                let pid = state.fresh()?.pid.as_raw();
                let sentence = format!("slot {slot} has a new worker with pid {pid}");
                (!before.contains(&pid)).then(|| Verdict::done(sentence).with("pid", pid))
            }
        }
    }

    fn judge_scale(&self, workers: usize) -> Option<Verdict> {
        if self.wanted != workers {
            let sentence = format!("meanwhile {} workers are wanted, not {workers}", self.wanted);
            return Some(Verdict::failed(sentence));
        }
        if self.is_settled() {
            let leaving: usize = self.slots.iter().skip(workers).map(|slot| slot.workers.len()).sum();
            let rest = match leaving {
                0 => String::new(),
                some => format!("; {some} that have left their slots finish what they have"),
            };
            let noun = if workers == 1 { "worker serves" } else { "workers serve" };
            let verdict = Verdict::done(format!("{workers} {noun}{rest}"));
            return Some(verdict.with("workers", workers).with("leaving", leaving));
        }
        let failing = |slot: &&Slot| slot.backoff.early_deaths() >= TRIES;
        self.slots.iter().take(workers).any(|slot| failing(&slot)).then(|| {
            let reason = &self.last_failure;
            Verdict::failed(format!("a new worker does not come up, and is tried again and again: {reason}"))
        })
    }

    fn progress(&self, goal: &Goal, now: Duration) -> Option<Progress> {
        let (done, total, text) = match goal {
            Goal::NextReload | Goal::NextUpgrade | Goal::Successor { .. } => return None,
            Goal::Rollout(generation) => {
                let rollout = self.rollout.as_ref().filter(|rollout| rollout.to == *generation)?;
                let standing = rollout.standing(&self.slots, self.settings.probation, now);
                let Standing::UnderWay { done, total, .. } = standing else { return None };
                (done, total, format!("{} of {total} slots have generation {}", done, rollout.wanted()))
            }
            Goal::Workers(workers) => {
                let ready = self.slots.iter().take(*workers).filter(|slot| slot.serves()).count();
                let retiring = self.slots.iter().filter(|slot| slot.seat == Seat::Closing).count();
                (ready, workers + retiring, format!("{ready} of {workers} workers serve"))
            }
            Goal::Stop => {
                let left: usize = self.slots.iter().map(|slot| slot.workers.len()).sum();
                let total = self.slots.len().max(left);
                (total - left, total, format!("{left} workers have not left yet"))
            }
        };
        Some(Progress { done, total, text })
    }

    /// Tells all who wait for what `goal` says.
    pub(super) fn settle(&mut self, goal: &Goal, verdict: &Verdict) {
        let (reached, waiting) =
            std::mem::take(&mut self.waiters).into_iter().partition(|waiter| waiter.goal == *goal);
        self.waiters = waiting;
        let reached: Vec<Waiter> = reached;
        for waiter in reached {
            self.verdict(waiter.client, verdict.clone());
        }
    }

    /// Those who wait for a reload wait for this one.
    pub(super) fn reload_has_begun(&mut self, generation: u64) {
        for waiter in self.waiters.iter_mut().filter(|waiter| waiter.goal == Goal::NextReload) {
            waiter.goal = Goal::Rollout(generation);
        }
    }

    /// Those who wait for an upgrade wait for this rollout.
    pub(super) fn upgrade_has_begun(&mut self, generation: u64) {
        for waiter in self.waiters.iter_mut().filter(|waiter| waiter.goal == Goal::NextUpgrade) {
            waiter.goal = Goal::Rollout(generation);
        }
    }

    /// A successor failed; those who wait for it are told, and the old worker stays.
    pub(super) fn restart_failed(&mut self, index: usize, cause: &str) {
        let slot = &mut self.slots[index];
        let mut kept = None;
        for worker in slot.workers.iter_mut().filter(|worker| worker.retire == Some(Reason::Operator)) {
            worker.retire = None;
            kept = Some(worker.pid);
        }
        let rest = match kept.map(Pid::as_raw) {
            Some(pid) => format!("the old one, pid {pid}, serves on"),
            None => "it is tried again".to_owned(),
        };
        let verdict = Verdict::failed(format!("the new worker of slot {index} failed: {cause}; {rest}"));
        let waits = |goal: &Goal| matches!(goal, Goal::Successor { slot, .. } if *slot == index);
        let goals: Vec<_> = self.waiters.iter().map(|waiter| waiter.goal.clone()).filter(waits).collect();
        for goal in goals {
            self.settle(&goal, &verdict);
        }
    }

    /// The fleet has ended: the last verdicts.
    pub(super) fn farewell(mut self, outcome: &Outcome) {
        let verdict = match outcome {
            Outcome::Stopped { killed: 0 } => Verdict::done("the fleet has stopped"),
            Outcome::Stopped { killed } => {
                let text =
                    format!("the fleet has stopped; {killed} workers did not leave in time and were killed");
                Verdict::done(text).with("killed", *killed)
            }
            Outcome::BootFailed { reason } => {
                Verdict::failed(format!("the fleet has ended: no worker could be brought up: {reason}"))
            }
        };
        for waiter in std::mem::take(&mut self.waiters) {
            let verdict = match waiter.goal {
                Goal::Stop => verdict.clone(),
                _ => Verdict::failed("the fleet stops before that was done"),
            };
            self.verdict(waiter.client, verdict);
        }
        self.control.finish(FAREWELL);
    }
}
