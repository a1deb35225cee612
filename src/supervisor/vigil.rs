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

use std::fmt;
use std::time::Duration;

use crate::sys::task::State;
use crate::sys::task::Task;

/// Silence after which a worker is looked at: two beats.
pub const OVERDUE: Duration = Duration::from_millis(500);

/// Most time that one look can add: a supervisor that looks later than this was away itself.
const WATCHED: Duration = Duration::from_millis(500);

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
        let patience = Self { suspect: hang_timeout.mul_f64(0.3), hung: hang_timeout.mul_f64(0.8) };
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
            other => other.insert(Silence::begin(sense.beat, task, since, now)),
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
    fn begin(beat: Duration, task: Task, since: Duration, now: Duration) -> Self {
        let own = now.saturating_sub(beat).min(OVERDUE + since);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LOOK: Duration = Duration::from_millis(250);
    const TIMEOUT: Duration = Duration::from_secs(3);
    const START: Duration = Duration::from_secs(1000);

    /// A worker and the time it lives in.
    struct World {
        now: Duration,
        beat: Duration,
        task: Task,
        watch: Watch,
        waiting: u32,
        accepted: u64,
    }

    impl World {
        fn new() -> Self {
            let task = Task { state: State::Sleeping, cpu: START, waited: START };
            Self { now: START, beat: START, task, watch: Watch::default(), waiting: 0, accepted: 0 }
        }

        /// Time passes: of it the worker runs and waits for a CPU this much.
        fn pass(&mut self, time: Duration, ran: Duration, waited: Duration) {
            self.now += time;
            self.task.cpu += ran;
            self.task.waited += waited;
        }

        fn look(&mut self) -> Verdict {
            let task = is_overdue(self.beat, self.now).then_some(self.task);
            let sense = Sense { beat: self.beat, accepted: self.accepted, waiting: self.waiting, task };
            self.watch.look(&sense, Patience::within(TIMEOUT).unwrap(), self.now)
        }

        /// Looks until the verdict is Hung, while the worker runs this share of each look's time in this state; when.
        fn hung_after(&mut self, state: State, share: f64, limit: Duration) -> Option<(Duration, Symptom)> {
            self.task.state = state;
            let start = self.now;
            while self.now < start + limit {
                self.pass(LOOK, LOOK.mul_f64(share), Duration::ZERO);
                if let Verdict::Hung(stall) = self.look() {
                    return Some((self.now - start, stall.symptom));
                }
            }
            None
        }
    }

    #[test]
    fn blocked_spinning_and_stopped_workers_are_found_in_time() {
        for (state, share, symptom) in [
            (State::Sleeping, 0.0, Symptom::Blocked),
            (State::Runnable, 1.0, Symptom::Spinning),
            (State::Stopped, 0.0, Symptom::Stopped),
        ] {
            let mut world = World::new();
            let (after, found) = world.hung_after(state, share, TIMEOUT * 2).unwrap();
            assert_eq!(found, symptom);
            assert!(after <= TIMEOUT - 250 * MS, "{symptom:?} after {after:?}");
            assert!(after >= TIMEOUT * 2 / 3, "{symptom:?} after {after:?}");
        }
    }

    #[test]
    fn suspicion_comes_first_and_ends_with_a_beat() {
        let mut world = World::new();
        let mut seen = Vec::new();
        for _ in 0..8 {
            world.pass(LOOK, Duration::ZERO, Duration::ZERO);
            seen.push(matches!(world.look(), Verdict::Suspect(_)));
        }
        assert_eq!(seen.iter().filter(|suspect| !**suspect).count(), 3, "healthy up to 0.9 s: {seen:?}");
        world.beat = world.now;
        assert_eq!(world.look(), Verdict::Healthy);
        assert!(
            world.hung_after(State::Sleeping, 0.0, TIMEOUT - 500 * MS).is_some(),
            "a new silence is its own"
        );
    }

    #[test]
    fn a_starved_worker_is_left_alone_but_not_for_ever() {
        let mut world = World::new();
        assert_eq!(world.hung_after(State::Runnable, 0.02, TIMEOUT * 6), None);
        let mut world = World::new();
        let (after, symptom) = world.hung_after(State::Runnable, 0.0, TIMEOUT * 20).unwrap();
        assert_eq!(symptom, Symptom::Starved);
        assert!(after >= TIMEOUT * 7, "{after:?}");
    }

    #[test]
    fn a_loop_that_spins_on_a_quarter_of_a_core_is_found_when_it_has_had_its_time() {
        let mut world = World::new();
        let (after, symptom) = world.hung_after(State::Runnable, 0.25, TIMEOUT * 20).unwrap();
        assert_eq!(symptom, Symptom::Spinning);
        assert!(after > TIMEOUT * 2 && after < TIMEOUT * 4, "{after:?}");
    }

    #[test]
    fn waits_for_a_cpu_that_ended_before_the_look_do_not_count() {
        let mut world = World::new();
        for _ in 0..24 {
            world.pass(LOOK, 5 * MS, 200 * MS);
            assert!(!matches!(world.look(), Verdict::Hung(_)));
        }
    }

    #[test]
    fn a_wait_for_a_disk_raises_suspicion_and_kills_late() {
        let mut world = World::new();
        assert_eq!(world.hung_after(State::Uninterruptible, 0.0, TIMEOUT * 6), None);
        assert!(matches!(world.look(), Verdict::Suspect(Stall { symptom: Symptom::Waiting, .. })));
    }

    #[test]
    fn time_in_which_the_supervisor_was_away_counts_for_nothing() {
        let mut world = World::new();
        for _ in 0..10 {
            // Both were suspended, as by Ctrl-Z or a frozen container, and the supervisor is the first to go on.
            world.pass(Duration::from_secs(60), Duration::ZERO, Duration::ZERO);
            world.task.state = State::Stopped;
            assert!(!matches!(world.look(), Verdict::Hung(_)));
            world.beat = world.now;
            world.pass(LOOK, Duration::ZERO, Duration::ZERO);
            assert_eq!(world.look(), Verdict::Healthy);
        }
    }

    #[test]
    fn who_accepts_nothing_is_suspected_only() {
        let mut world = World::new();
        world.waiting = 3;
        let mut last = Verdict::Healthy;
        for _ in 0..100 {
            world.pass(LOOK, Duration::ZERO, Duration::ZERO);
            world.beat = world.now;
            last = world.look();
            assert!(!matches!(last, Verdict::Hung(_)));
        }
        let Verdict::Suspect(stall) = last else { panic!("{last:?}") };
        assert!(stall.to_string().ends_with("; 3 connections wait"), "{stall}");
        world.accepted += 1;
        assert_eq!(world.look(), Verdict::Healthy);
    }

    #[test]
    fn nobody_is_watched_without_a_timeout() {
        assert_eq!(Patience::within(Duration::ZERO), None);
    }

    proptest! {
        /// Whatever a worker gets of the CPUs and whenever the supervisor looks: as long as it beats within a quarter
        /// of a second of its own time, it is never thought to hang before ten times the patience has passed.
        #[test]
        fn a_worker_that_beats_when_it_can_is_never_hung(
            steps in prop::collection::vec((1_u32..4000, 0.0_f64..1.0), 1..200),
        ) {
            let mut world = World::new();
            world.task.state = State::Runnable;
            let mut own = Duration::ZERO;
            let mut silent = Duration::ZERO;
            for (millis, share) in steps {
                let time = MS * millis;
                // Ready to run all the time, it gets a share of it.
                own += time.mul_f64(share);
                silent += time;
                world.pass(time, time.mul_f64(share), Duration::ZERO);
                if own >= LOOK {
                    own = Duration::ZERO;
                    silent = Duration::ZERO;
                    world.beat = world.now;
                }
                let verdict = world.look();
                prop_assert!(silent > TIMEOUT * 8 || !matches!(verdict, Verdict::Hung(_)), "{verdict:?}");
            }
        }

        /// However the supervisor's looks fall, a blocked worker is found by the first look after the timeout that
        /// follows looks without a gap.
        #[test]
        fn a_blocked_worker_is_found_whatever_it_did_before(busy in 0_u32..400, gap in 0_u32..250) {
            let mut world = World::new();
            world.pass(MS * gap, Duration::ZERO, Duration::ZERO);
            world.look();
            world.pass(MS * busy, MS * busy, Duration::ZERO);
            world.beat = world.now;
            world.look();
            let found = world.hung_after(State::Sleeping, 0.0, TIMEOUT);
            prop_assert!(found.is_some_and(|(after, _)| after <= TIMEOUT - 250 * MS), "{found:?}");
        }
    }
}
