//! Which workers hang: progress and CPU time → healthy, suspect, hung or lost; pure.
//!
//! Any change in a worker's cell is progress: heartbeats, turns of its loop, requests, connections. When nothing moves,
//! what counts is not the time on the clock but the time the worker *could have used*: time it slept, stood still or
//! ran. Time it was runnable and no CPU was given to it does not count (it starves), nor does time it waited within the
//! kernel for a disk or for swapped-out memory, nor time without a sample because the supervisor itself was
//! suspended or starved. So a worker that blocks or spins is found at `hang_timeout`, and one that merely has much to
//! do or gets little CPU is left alone, though not for ever.
//!
//! The kernel's figures of the worker's thread are used, and not the host's pressure (PSI): that is high on every busy
//! host, and a worker that blocks on a busy host must be found all the same.

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use crate::scoreboard::cell::LoopProgress;
use crate::sys::thread::{ThreadSample, ThreadState};

/// Time without progress after which a worker's thread is looked at: a beat, and what a busy machine adds to it.
pub const OVERDUE: Duration = Duration::from_millis(700);

/// Time between two samples while some worker makes no progress.
pub const CLOSE_INTERVAL: Duration = Duration::from_millis(250);

/// Time between two samples while all do.
const REST_INTERVAL: Duration = Duration::from_millis(950);

/// Most time that one close sample can add: a supervisor that samples later than this did not run itself.
const CLOSE_SAMPLE_MAX: Duration = Duration::from_millis(500);

/// Time without progress after which new connections had better go elsewhere, however patient the operator.
const SUSPECT_AFTER_MAX: Duration = Duration::from_secs(1);

/// A worker that starves, or waits for a disk, is given up after this many times the patience.
const EXTENSION: u32 = 10;

/// One sample of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HangSample {
    /// Its last beat, or when it became READY if it has not beaten yet; on the monotonic clock.
    pub last_heartbeat: Duration,
    /// What else moves when it does.
    pub progress: LoopProgress,
    /// Connections its slot has accepted since its start.
    pub accepted: u64,
    /// Connections that wait on its slot.
    pub queued_connections: u32,
}

/// What is thought of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HangStatus {
    /// It serves.
    Healthy,
    /// It may hang: new connections had better go elsewhere.
    Suspect(Stall),
    /// It hangs: its slot needs a spare.
    Hung(Stall),
    /// It has hung for so long that it is given up.
    Lost(Stall),
}

/// A worker's silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// How long it has been silent, on the clock.
    pub silent: Duration,
    /// What it does instead.
    pub kind: StallKind,
    /// Connections that wait for it.
    pub queued_connections: u32,
}

/// What a worker does instead of serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StallKind {
    /// Its loop sleeps in a call that blocks.
    Blocked,
    /// Its loop computes and does not return.
    Spinning,
    /// The process was stopped: by SIGSTOP, or a debugger.
    Stopped,
    /// It is runnable, but gets next to no CPU.
    Starved,
    /// It waits for a disk, or for memory that was swapped out.
    DiskWait,
    /// It beats, but nothing else moves, and it accepts none of the connections that wait.
    NotAccepting,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { silent, kind: symptom, queued_connections: waiting } = self;
        let seconds = silent.as_secs_f64();
        match symptom {
            StallKind::Blocked => write!(f, "its loop has been blocked in a call for {seconds:.1} s"),
            StallKind::Spinning => write!(f, "its loop has computed without a pause for {seconds:.1} s"),
            StallKind::Stopped => write!(f, "it was stopped by a signal {seconds:.1} s ago"),
            StallKind::Starved => write!(f, "it got next to no CPU for {seconds:.1} s"),
            StallKind::DiskWait => write!(f, "it has waited for a disk or for memory for {seconds:.1} s"),
            StallKind::NotAccepting => write!(f, "it has accepted nothing for {seconds:.1} s"),
        }?;
        if *waiting > 0 { write!(f, "; {waiting} connections wait") } else { Ok(()) }
    }
}

/// When a silent worker becomes suspect, hung and lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HangThresholds {
    suspect: Duration,
    hung: Duration,
    lost: Option<Duration>,
}

impl HangThresholds {
    /// A worker without progress for `hang_timeout` hangs, and is lost after `hang_kill`, if that is not zero; none
    /// when `hang_timeout` is zero: no worker is watched.
    pub fn new(hang_timeout: Duration, hang_kill: Duration) -> Option<Self> {
        let suspect = (hang_timeout / 3).min(SUSPECT_AFTER_MAX);
        let lost = (!hang_kill.is_zero()).then_some(hang_kill);
        (!hang_timeout.is_zero()).then_some(Self { suspect, hung: hang_timeout, lost })
    }

    /// Time between two samples while all workers make progress: one that stops is suspected half a second after
    /// its time at the latest.
    pub fn rest_interval(self) -> Duration {
        REST_INTERVAL.min(self.suspect).max(CLOSE_INTERVAL)
    }

    /// Most time between two samples under these thresholds.
    fn max_interval(self) -> Duration {
        self.rest_interval() + CLOSE_INTERVAL
    }
}

/// Whether the loop of a worker with this beat is so late that its own figures are old.
pub fn is_overdue(beat: Duration, now: Duration) -> bool {
    now.saturating_sub(beat) > OVERDUE
}

/// What is recorded of one worker between two samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HangDetector {
    /// How far it had come, as of the last sample.
    progress: Option<LoopProgress>,
    /// It has certainly moved since then. Suspicion counts from here: other workers can serve new connections.
    moved: Duration,
    /// It may have moved until then: the time after counts where it is thought to hang.
    seen: Duration,
    /// The silence that goes on now.
    silence: Option<SilencePeriod>,
    /// Since when nothing but beats has moved although something waits, and what had been accepted then.
    not_accepting: Option<(Duration, u64)>,
    last_sample_at: Duration,
}

/// One silence: what became of the time since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SilencePeriod {
    /// Time the worker could have used.
    own: Duration,
    /// Of it, time it ran.
    ran: Duration,
    /// Time it waited within the kernel.
    waited: Duration,
    /// Time it was watched at all.
    watched: Duration,
    last: ThreadSample,
}

impl HangDetector {
    /// Takes a sample; `task` reads the serving thread, which is needed only without progress.
    /// None when the worker is gone, and will be reaped in a moment.
    pub fn observe(
        &mut self,
        sample: &HangSample,
        patience: HangThresholds,
        now: Duration,
        task: impl FnOnce() -> Option<ThreadSample>,
    ) -> Option<HangStatus> {
        let before = std::mem::replace(&mut self.last_sample_at, now);
        let known = self.progress.replace(sample.progress);
        let moves = known.is_some_and(|known| known != sample.progress);
        if moves {
            // When exactly is not known, but not before the last sample.
            self.moved = self.moved.max(before);
            self.seen = now;
        }
        if sample.last_heartbeat > self.moved {
            self.moved = sample.last_heartbeat;
            self.seen = self.seen.max(sample.last_heartbeat);
            self.silence = None;
        }
        if moves || !is_overdue(self.moved, now) {
            self.silence = None;
            return Some(self.check_accepting(sample, moves, patience, now));
        }
        let task = task().filter(|task| task.state != ThreadState::Exited)?;
        Some(self.evaluate_silence(sample, task, now.saturating_sub(before), patience, now))
    }

    /// Whether nothing has moved for so long that the next sample should be soon.
    pub fn is_silent(&self) -> bool {
        is_overdue(self.moved, self.last_sample_at)
    }

    fn evaluate_silence(
        &mut self,
        sample: &HangSample,
        task: ThreadSample,
        since: Duration,
        patience: HangThresholds,
        now: Duration,
    ) -> HangStatus {
        self.not_accepting = None;
        let silence = match &mut self.silence {
            Some(silence) => {
                silence.add(task, since.min(CLOSE_SAMPLE_MAX));
                silence
            }
            none => none.insert(SilencePeriod::start(
                self.seen,
                task,
                since.min(patience.max_interval()),
                patience,
                now,
            )),
        };
        let stall = Stall {
            silent: now.saturating_sub(self.moved),
            kind: silence.stall_kind(),
            queued_connections: sample.queued_connections,
        };
        let lasts = |limit: Duration| silence.own >= limit || silence.watched >= limit * EXTENSION;
        if patience.lost.is_some_and(lasts) {
            HangStatus::Lost(stall)
        } else if lasts(patience.hung) {
            HangStatus::Hung(stall)
        } else if silence.own + silence.waited + self.seen.saturating_sub(self.moved) >= patience.suspect {
            HangStatus::Suspect(stall)
        } else {
            HangStatus::Healthy
        }
    }

    /// The loop goes round; does it accept?
    ///
    /// A worker that is full, or sheds load, accepts nothing on purpose. As long as its requests move it is healthy;
    /// where nothing moves, new connections had better go elsewhere, and it is left in peace.
    fn check_accepting(
        &mut self,
        sample: &HangSample,
        moves: bool,
        patience: HangThresholds,
        now: Duration,
    ) -> HangStatus {
        let (since, accepted) = *self.not_accepting.get_or_insert((now, sample.accepted));
        if moves || sample.queued_connections == 0 || accepted != sample.accepted {
            self.not_accepting = None;
            return HangStatus::Healthy;
        }
        let silent = now.saturating_sub(since);
        if silent < patience.suspect {
            return HangStatus::Healthy;
        }
        HangStatus::Suspect(Stall {
            silent,
            kind: StallKind::NotAccepting,
            queued_connections: sample.queued_connections,
        })
    }
}

impl SilencePeriod {
    /// The first sample. What the worker did with the time before is not known: it counts as its own.
    ///
    /// Not all of it, however: after a pause of the whole host the first sample must not be the last.
    fn start(
        seen: Duration,
        task: ThreadSample,
        since: Duration,
        patience: HangThresholds,
        now: Duration,
    ) -> Self {
        let own = now.saturating_sub(seen).min(OVERDUE + since).min(patience.hung / 2);
        Self { own, ran: Duration::ZERO, waited: Duration::ZERO, watched: own, last: task }
    }

    /// Accounts the time since the last sample.
    fn add(&mut self, task: ThreadSample, since: Duration) {
        let ran = task.cpu.saturating_sub(self.last.cpu).min(since);
        // The kernel books the wait for a CPU when it ends: while it goes on, being runnable tells.
        let starved = match task.state {
            ThreadState::Runnable => since - ran,
            _ => task.cpu_wait.saturating_sub(self.last.cpu_wait).min(since - ran),
        };
        let rest = since - ran - starved;
        self.watched += since;
        self.ran += ran;
        self.last = task;
        if task.state == ThreadState::Uninterruptible {
            self.own += ran;
            self.waited += rest;
        } else {
            self.own += ran + rest;
        }
    }

    fn stall_kind(&self) -> StallKind {
        let starved = self.watched.saturating_sub(self.own + self.waited);
        match self.last.state {
            ThreadState::Stopped => StallKind::Stopped,
            _ if self.ran * 2 > self.own => StallKind::Spinning,
            _ if starved > self.own + self.waited => StallKind::Starved,
            _ if self.waited > self.own => StallKind::DiskWait,
            _ => StallKind::Blocked,
        }
    }
}
