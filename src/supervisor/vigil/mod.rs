//! Which workers hang: heartbeats and CPU time → healthy, suspect or hung; pure.
//!
//! A worker's loop beats four times a second. When beats stay away, what counts is not the time on the clock but the
//! time the worker *could have used*: time it slept, stood still or ran. Time it was runnable and no CPU was given to
//! it does not count (it starves), nor does time it waited within the kernel for a disk or for swapped-out memory, nor
//! time in which nobody watched because the supervisor itself was suspended or starved. So a worker that blocks or
//! spins is found within `hang_timeout`, and one that merely gets little CPU is left alone, though not for ever.
//!
//! The kernel's figures of this very thread are used, and not the machine's pressure (PSI): that one is high on every
//! busy machine, and a worker that blocks on a busy machine must be found all the same.

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use crate::sys::task::State;
use crate::sys::task::Task;

/// Silence after which a worker is looked at: two beats.
pub const OVERDUE: Duration = Duration::from_millis(500);

/// Most time that one look can add: a supervisor that looks later than this was away itself.
const WATCHED: Duration = Duration::from_millis(500);

/// Longest silence without suspicion, however patient the operator: to send new connections elsewhere harms nobody.
const SUSPECT: Duration = Duration::from_secs(2);

/// A worker that starves, or waits for a disk, is given up after this many times its patience.
const EXTENSION: u32 = 10;

/// What is seen of a worker at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// Its last beat, or when it became READY if it has not beaten yet; on the monotonic clock.
    pub beat: Duration,
    /// Connections its slot has accepted since its start.
    pub accepted: u64,
    /// Connections that wait on its slot.
    pub waiting: u32,
    /// Its serving thread; needed once the beat is older than [`OVERDUE`].
    pub task: Option<Task>,
}

/// What is thought of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It serves.
    Healthy,
    /// It may hang: new connections had better go elsewhere.
    Suspect(Stall),
    /// It hangs and must be replaced.
    Hung(Stall),
}

/// A worker's silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// How long it has been silent, on the clock.
    pub silent: Duration,
    /// What it does instead.
    pub symptom: Symptom,
    /// Connections that wait for it.
    pub waiting: u32,
}

/// What a worker does instead of serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symptom {
    /// Its loop sleeps in a call that blocks.
    Blocked,
    /// Its loop computes and does not return.
    Spinning,
    /// The process was stopped: by SIGSTOP, or a debugger.
    Stopped,
    /// It is runnable, but gets next to no CPU.
    Starved,
    /// It waits for a disk, or for memory that was swapped out.
    Waiting,
    /// Its loop goes round, but it accepts none of the connections that wait.
    Deaf,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { silent, symptom, waiting } = self;
        let seconds = silent.as_secs_f64();
        match symptom {
            Symptom::Blocked => write!(f, "its loop has been blocked in a call for {seconds:.1} s"),
            Symptom::Spinning => write!(f, "its loop has computed without a pause for {seconds:.1} s"),
            Symptom::Stopped => write!(f, "it was stopped by a signal {seconds:.1} s ago"),
            Symptom::Starved => write!(f, "it got next to no CPU for {seconds:.1} s"),
            Symptom::Waiting => write!(f, "it has waited for a disk or for memory for {seconds:.1} s"),
            Symptom::Deaf => write!(f, "it has accepted nothing for {seconds:.1} s"),
        }?;
        if *waiting > 0 { write!(f, "; {waiting} connections wait") } else { Ok(()) }
    }
}

/// How patient the vigil is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    suspect: Duration,
    hung: Duration,
}

impl Patience {
    /// A hung worker is to be found within `hang_timeout` of its last beat; none when that is zero: nobody is watched.
    ///
    /// The verdict falls a fifth earlier, which leaves time for the look itself and for the backtrace.
    pub fn within(hang_timeout: Duration) -> Option<Self> {
        let suspect = hang_timeout.mul_f64(0.3).min(SUSPECT);
        let patience = Self { suspect, hung: hang_timeout.mul_f64(0.8) };
        (!hang_timeout.is_zero()).then_some(patience)
    }
}

/// Whether a worker with this beat has to be looked at closely: only then its [`Sense::task`] is needed.
pub fn is_overdue(beat: Duration, now: Duration) -> bool {
    now.saturating_sub(beat) > OVERDUE
}

/// What is remembered of one worker between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watch {
    /// The silence that goes on now.
    silence: Option<Silence>,
    /// Since when nothing was accepted although something waits, and the total then.
    deaf: Option<(Duration, u64)>,
    looked: Duration,
}

/// One silence: which beat was the last, and what became of the time since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Silence {
    beat: Duration,
    /// Time the worker could have used.
    own: Duration,
    /// Of it, time it ran.
    ran: Duration,
    /// Time it waited within the kernel.
    waited: Duration,
    /// Time it was watched at all.
    watched: Duration,
    last: Task,
}

impl Watch {
    /// Looks at the worker once more.
    pub fn look(&mut self, sense: &Sense, patience: Patience, now: Duration) -> Verdict {
        let since = now.saturating_sub(self.looked).min(WATCHED);
        self.looked = now;
        match sense.task.filter(|_| is_overdue(sense.beat, now)) {
            // It is gone and will be reaped in a moment.
            Some(task) if task.state == State::Gone => Verdict::Healthy,
            Some(task) => self.silent(sense, task, since, patience, now),
            None => {
                self.silence = None;
                self.listens(sense, patience, now)
            }
        }
    }

    fn silent(
        &mut self,
        sense: &Sense,
        task: Task,
        since: Duration,
        patience: Patience,
        now: Duration,
    ) -> Verdict {
        self.deaf = None;
        let silence = match &mut self.silence {
            Some(silence) if silence.beat == sense.beat => {
                silence.add(task, since);
                silence
            }
            other => other.insert(Silence::begin(sense.beat, task, since, patience, now)),
        };
        let stall = Stall {
            silent: now.saturating_sub(sense.beat),
            symptom: silence.symptom(),
            waiting: sense.waiting,
        };
        if silence.own >= patience.hung || silence.watched >= patience.hung * EXTENSION {
            Verdict::Hung(stall)
        } else if silence.own + silence.waited >= patience.suspect {
            Verdict::Suspect(stall)
        } else {
            Verdict::Healthy
        }
    }

    /// The loop goes round; does it accept?
    ///
    /// A worker that has all the connections it may have does not, and is right: it is left in peace, only new
    /// connections had better go elsewhere.
    fn listens(&mut self, sense: &Sense, patience: Patience, now: Duration) -> Verdict {
        let (since, accepted) = *self.deaf.get_or_insert((now, sense.accepted));
        if sense.waiting == 0 || accepted != sense.accepted {
            self.deaf = None;
            return Verdict::Healthy;
        }
        let silent = now.saturating_sub(since);
        if silent < patience.suspect {
            return Verdict::Healthy;
        }
        Verdict::Suspect(Stall { silent, symptom: Symptom::Deaf, waiting: sense.waiting })
    }
}

impl Silence {
    /// The first look. What the worker did with the time before is not known: it counts as its own.
    ///
    /// Not all of it, however: after a pause of the whole machine the first look must not be the last.
    fn begin(beat: Duration, task: Task, since: Duration, patience: Patience, now: Duration) -> Self {
        let own = now.saturating_sub(beat).min(OVERDUE + since).min(patience.hung / 2);
        Self { beat, own, ran: Duration::ZERO, waited: Duration::ZERO, watched: own, last: task }
    }

    /// Books the time since the last look.
    fn add(&mut self, task: Task, since: Duration) {
        let ran = task.cpu.saturating_sub(self.last.cpu).min(since);
        // The kernel books the wait for a CPU when it ends: while it goes on, being runnable tells.
        let starved = match task.state {
            State::Runnable => since - ran,
            _ => task.waited.saturating_sub(self.last.waited).min(since - ran),
        };
        let rest = since - ran - starved;
        self.watched += since;
        self.ran += ran;
        self.last = task;
        if task.state == State::Uninterruptible {
            self.own += ran;
            self.waited += rest;
        } else {
            self.own += ran + rest;
        }
    }

    fn symptom(&self) -> Symptom {
        let starved = self.watched.saturating_sub(self.own + self.waited);
        match self.last.state {
            State::Stopped => Symptom::Stopped,
            _ if self.ran * 2 > self.own => Symptom::Spinning,
            _ if starved > self.own + self.waited => Symptom::Starved,
            _ if self.waited > self.own => Symptom::Waiting,
            _ => Symptom::Blocked,
        }
    }
}
