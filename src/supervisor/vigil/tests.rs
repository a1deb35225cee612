//! Scenes of the vigil: what a worker does, and what is thought of it.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const LOOK: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(3);
const KILL: Duration = Duration::from_secs(30);
const START: Duration = Duration::from_secs(1000);

/// A worker and the time it lives in.
struct World {
    now: Duration,
    beat: Duration,
    task: Task,
    watch: Watch,
    waiting: u32,
    accepted: u64,
    turns: u64,
}

impl World {
    fn new() -> Self {
        let task = Task { state: State::Sleeping, cpu: START, waited: START };
        let mut world = Self {
            now: START,
            beat: START,
            task,
            watch: Watch::default(),
            waiting: 0,
            accepted: 0,
            turns: 0,
        };
        // The supervisor has looked before.
        assert_eq!(world.look(), Verdict::Healthy);
        world
    }

    /// Time passes: of it the worker runs and waits for a CPU this much.
    fn pass(&mut self, time: Duration, ran: Duration, waited: Duration) {
        self.now += time;
        self.task.cpu += ran;
        self.task.waited += waited;
    }

    fn look(&mut self) -> Verdict {
        let progress = Progress::after(self.turns);
        let sense = Sense { beat: self.beat, progress, accepted: self.accepted, waiting: self.waiting };
        let patience = Patience::new(TIMEOUT, KILL).unwrap();
        self.watch.look(&sense, patience, self.now, || Some(self.task)).unwrap()
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
        assert!(after <= TIMEOUT + LOOK, "{symptom:?} after {after:?}");
        assert!(after >= TIMEOUT, "{symptom:?} after {after:?}");
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
    assert_eq!(seen.iter().filter(|suspect| !**suspect).count(), 3, "healthy up to 1 s: {seen:?}");
    world.beat = world.now;
    assert_eq!(world.look(), Verdict::Healthy);
    assert!(world.hung_after(State::Sleeping, 0.0, TIMEOUT - LOOK).is_none(), "a new silence is its own");
    assert!(world.hung_after(State::Sleeping, 0.0, LOOK * 2).is_some());
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
    assert_eq!(Patience::new(Duration::ZERO, KILL), None);
}

#[test]
fn a_hung_worker_is_lost_at_the_end_of_the_patience_and_never_without_one() {
    let mut world = World::new();
    let (after, _) = world.hung_after(State::Sleeping, 0.0, TIMEOUT * 2).unwrap();
    let mut last = Verdict::Healthy;
    let looks = (KILL - after).div_duration_f64(LOOK) as u32;
    for look in 0..looks {
        world.pass(LOOK, Duration::ZERO, Duration::ZERO);
        last = world.look();
        assert!(matches!(last, Verdict::Hung(_)) || look + 2 > looks, "{last:?} after {look} looks");
    }
    world.pass(LOOK, Duration::ZERO, Duration::ZERO);
    assert!(matches!(world.look(), Verdict::Lost(_)), "{last:?}");
    let endless = Patience::new(TIMEOUT, Duration::ZERO).unwrap();
    assert_eq!(endless.lost, None);
}

/// 6,000 connections with handlers of 1 ms: a pass through the run queue takes three seconds.
#[test]
fn a_worker_that_moves_is_never_silent_however_late_its_beat_is() {
    let mut world = World::new();
    world.task.state = State::Runnable;
    for _ in 0..400 {
        world.pass(LOOK, LOOK, Duration::ZERO);
        world.turns += 1;
        assert_eq!(world.look(), Verdict::Healthy);
    }
    // Then it stops, and is found as fast as any other.
    let (after, _) = world.hung_after(State::Runnable, 1.0, TIMEOUT * 2).unwrap();
    assert!((TIMEOUT..=TIMEOUT + LOOK * 2).contains(&after), "{after:?}");
}

#[test]
fn one_that_moves_again_is_healthy_at_once() {
    let mut world = World::new();
    world.hung_after(State::Sleeping, 0.0, TIMEOUT * 2).unwrap();
    world.turns += 1;
    world.pass(LOOK, Duration::ZERO, Duration::ZERO);
    assert_eq!(world.look(), Verdict::Healthy, "a turn is as good as a beat");
}

#[test]
fn a_silence_is_seen_within_one_and_a_half_seconds_of_looks_at_rest() {
    let patience = Patience::new(TIMEOUT, KILL).unwrap();
    for last_beat in (0..500).step_by(10) {
        let mut world = World::new();
        let rest = patience.look_at_rest();
        // The last look at rest finds a beat of this age; then nothing moves any more.
        world.pass(Duration::from_secs(1), Duration::ZERO, Duration::ZERO);
        world.beat = world.now - MS * last_beat;
        assert_eq!(world.look(), Verdict::Healthy);
        let hangs = world.now;
        world.pass(rest, Duration::ZERO, Duration::ZERO);
        while !matches!(world.look(), Verdict::Suspect(_)) {
            assert!(world.now - hangs <= Duration::from_millis(1500), "{last_beat}");
            world.pass(LOOK_CLOSELY, Duration::ZERO, Duration::ZERO);
        }
        assert!(world.now - hangs <= Duration::from_millis(1500), "{last_beat}");
    }
}

#[test]
fn who_is_gone_is_left_to_be_reaped() {
    let mut world = World::new();
    world.task.state = State::Gone;
    world.now += TIMEOUT * 20;
    let sense = Sense { beat: world.beat, progress: Progress::after(0), accepted: 0, waiting: 0 };
    let patience = Patience::new(TIMEOUT, KILL).unwrap();
    assert_eq!(world.watch.look(&sense, patience, world.now, || Some(world.task)), None);
    assert_eq!(world.watch.look(&sense, patience, world.now, || None), None);
}

#[test]
fn who_is_full_and_answers_is_not_deaf() {
    let mut world = World::new();
    world.waiting = 100;
    for _ in 0..100 {
        world.pass(LOOK, LOOK, Duration::ZERO);
        (world.beat, world.turns) = (world.now, world.turns + 1);
        assert_eq!(world.look(), Verdict::Healthy);
    }
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
            prop_assert!(silent > TIMEOUT * 9 || !matches!(verdict, Verdict::Hung(_)), "{verdict:?}");
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
        let found = world.hung_after(State::Sleeping, 0.0, TIMEOUT * 2);
        prop_assert!(found.is_some_and(|(after, _)| after <= TIMEOUT + LOOK), "{found:?}");
    }
}
