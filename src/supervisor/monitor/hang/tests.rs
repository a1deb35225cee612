//! Scenes of the vigil: what a worker does, and what is thought of it.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(3);
const KILL: Duration = Duration::from_secs(30);
const START: Duration = Duration::from_secs(1000);

/// A worker and the time it lives in.
struct World {
    now: Duration,
    beat: Duration,
    task: ThreadSample,
    watch: HangDetector,
    waiting: u32,
    accepted: u64,
    turns: u64,
}

impl World {
    fn new() -> Self {
        let task = ThreadSample { state: ThreadState::Sleeping, cpu: START, cpu_wait: START };
        let mut world = Self {
            now: START,
            beat: START,
            task,
            watch: HangDetector::default(),
            waiting: 0,
            accepted: 0,
            turns: 0,
        };
        // The supervisor has looked before.
        assert_eq!(world.observe(), HangStatus::Healthy);
        world
    }

    /// Time passes: of it the worker runs and waits for a CPU this much.
    fn pass(&mut self, time: Duration, ran: Duration, waited: Duration) {
        self.now += time;
        self.task.cpu += ran;
        self.task.cpu_wait += waited;
    }

    fn observe(&mut self) -> HangStatus {
        let progress = LoopProgress::from_turns(self.turns);
        let sample = HangSample {
            last_heartbeat: self.beat,
            progress,
            accepted: self.accepted,
            queued_connections: self.waiting,
        };
        let patience = HangThresholds::new(TIMEOUT, KILL).unwrap();
        self.watch.observe(&sample, patience, self.now, || Some(self.task)).unwrap()
    }

    /// Looks until the verdict is Hung, while the worker runs this share of each look's time in this state; when.
    fn hung_after(
        &mut self,
        state: ThreadState,
        share: f64,
        limit: Duration,
    ) -> Option<(Duration, StallKind)> {
        self.task.state = state;
        let start = self.now;
        while self.now < start + limit {
            self.pass(SAMPLE_INTERVAL, SAMPLE_INTERVAL.mul_f64(share), Duration::ZERO);
            if let HangStatus::Hung(stall) = self.observe() {
                return Some((self.now - start, stall.kind));
            }
        }
        None
    }
}

#[test]
fn blocked_spinning_and_stopped_workers_are_found_in_time() {
    for (state, share, symptom) in [
        (ThreadState::Sleeping, 0.0, StallKind::Blocked),
        (ThreadState::Runnable, 1.0, StallKind::Spinning),
        (ThreadState::Stopped, 0.0, StallKind::Stopped),
    ] {
        let mut world = World::new();
        let (after, found) = world.hung_after(state, share, TIMEOUT * 2).unwrap();
        assert_eq!(found, symptom);
        assert!(after <= TIMEOUT + SAMPLE_INTERVAL, "{symptom:?} after {after:?}");
        assert!(after >= TIMEOUT, "{symptom:?} after {after:?}");
    }
}

#[test]
fn suspicion_comes_first_and_ends_with_a_beat() {
    let mut world = World::new();
    let mut seen = Vec::new();
    for _ in 0..8 {
        world.pass(SAMPLE_INTERVAL, Duration::ZERO, Duration::ZERO);
        seen.push(matches!(world.observe(), HangStatus::Suspect(_)));
    }
    assert_eq!(seen.iter().filter(|suspect| !**suspect).count(), 3, "healthy up to 1 s: {seen:?}");
    world.beat = world.now;
    assert_eq!(world.observe(), HangStatus::Healthy);
    assert!(
        world.hung_after(ThreadState::Sleeping, 0.0, TIMEOUT - SAMPLE_INTERVAL).is_none(),
        "a new silence is its own"
    );
    assert!(world.hung_after(ThreadState::Sleeping, 0.0, SAMPLE_INTERVAL * 2).is_some());
}

#[test]
fn a_starved_worker_is_left_alone_but_not_for_ever() {
    let mut world = World::new();
    assert_eq!(world.hung_after(ThreadState::Runnable, 0.02, TIMEOUT * 6), None);
    let mut world = World::new();
    let (after, symptom) = world.hung_after(ThreadState::Runnable, 0.0, TIMEOUT * 20).unwrap();
    assert_eq!(symptom, StallKind::Starved);
    assert!(after >= TIMEOUT * 7, "{after:?}");
}

#[test]
fn a_loop_that_spins_on_a_quarter_of_a_core_is_found_when_it_has_had_its_time() {
    let mut world = World::new();
    let (after, symptom) = world.hung_after(ThreadState::Runnable, 0.25, TIMEOUT * 20).unwrap();
    assert_eq!(symptom, StallKind::Spinning);
    assert!(after > TIMEOUT * 2 && after < TIMEOUT * 4, "{after:?}");
}

#[test]
fn waits_for_a_cpu_before_the_sample_do_not_count() {
    let mut world = World::new();
    for _ in 0..24 {
        world.pass(SAMPLE_INTERVAL, 5 * MS, 200 * MS);
        assert!(!matches!(world.observe(), HangStatus::Hung(_)));
    }
}

#[test]
fn a_wait_for_a_disk_raises_suspicion_and_kills_late() {
    let mut world = World::new();
    assert_eq!(world.hung_after(ThreadState::Uninterruptible, 0.0, TIMEOUT * 6), None);
    assert!(matches!(world.observe(), HangStatus::Suspect(Stall { kind: StallKind::DiskWait, .. })));
}

#[test]
fn time_in_which_the_supervisor_was_away_counts_for_nothing() {
    let mut world = World::new();
    for _ in 0..10 {
        // Both were suspended, as by Ctrl-Z or a frozen container, and the supervisor is the first to go on.
        world.pass(Duration::from_secs(60), Duration::ZERO, Duration::ZERO);
        world.task.state = ThreadState::Stopped;
        assert!(!matches!(world.observe(), HangStatus::Hung(_)));
        world.beat = world.now;
        world.pass(SAMPLE_INTERVAL, Duration::ZERO, Duration::ZERO);
        assert_eq!(world.observe(), HangStatus::Healthy);
    }
}

#[test]
fn a_worker_that_accepts_nothing_is_only_suspected() {
    let mut world = World::new();
    world.waiting = 3;
    let mut last = HangStatus::Healthy;
    for _ in 0..100 {
        world.pass(SAMPLE_INTERVAL, Duration::ZERO, Duration::ZERO);
        world.beat = world.now;
        last = world.observe();
        assert!(!matches!(last, HangStatus::Hung(_)));
    }
    let HangStatus::Suspect(stall) = last else { panic!("{last:?}") };
    assert!(stall.to_string().ends_with("; 3 connections wait"), "{stall}");
    world.accepted += 1;
    assert_eq!(world.observe(), HangStatus::Healthy);
}

#[test]
fn no_worker_is_watched_without_a_timeout() {
    assert_eq!(HangThresholds::new(Duration::ZERO, KILL), None);
}

#[test]
fn a_hung_worker_is_lost_at_the_end_of_the_patience_and_never_without_one() {
    let mut world = World::new();
    let (after, _) = world.hung_after(ThreadState::Sleeping, 0.0, TIMEOUT * 2).unwrap();
    let mut last = HangStatus::Healthy;
    let samples = (KILL - after).div_duration_f64(SAMPLE_INTERVAL) as u32;
    for sample in 0..samples {
        world.pass(SAMPLE_INTERVAL, Duration::ZERO, Duration::ZERO);
        last = world.observe();
        assert!(matches!(last, HangStatus::Hung(_)) || sample + 2 > samples, "{last:?} after {sample} looks");
    }
    world.pass(SAMPLE_INTERVAL, Duration::ZERO, Duration::ZERO);
    assert!(matches!(world.observe(), HangStatus::Lost(_)), "{last:?}");
    let endless = HangThresholds::new(TIMEOUT, Duration::ZERO).unwrap();
    assert_eq!(endless.lost, None);
}

/// 6,000 connections with handlers of 1 ms: a pass through the run queue takes three seconds.
#[test]
fn a_worker_that_moves_is_never_silent_however_late_its_beat_is() {
    let mut world = World::new();
    world.task.state = ThreadState::Runnable;
    for _ in 0..400 {
        world.pass(SAMPLE_INTERVAL, SAMPLE_INTERVAL, Duration::ZERO);
        world.turns += 1;
        assert_eq!(world.observe(), HangStatus::Healthy);
    }
    // Then it stops, and is found as fast as any other.
    let (after, _) = world.hung_after(ThreadState::Runnable, 1.0, TIMEOUT * 2).unwrap();
    assert!((TIMEOUT..=TIMEOUT + SAMPLE_INTERVAL * 2).contains(&after), "{after:?}");
}

#[test]
fn one_that_moves_again_is_healthy_at_once() {
    let mut world = World::new();
    world.hung_after(ThreadState::Sleeping, 0.0, TIMEOUT * 2).unwrap();
    world.turns += 1;
    world.pass(SAMPLE_INTERVAL, Duration::ZERO, Duration::ZERO);
    assert_eq!(world.observe(), HangStatus::Healthy, "a turn is as good as a beat");
}

#[test]
fn a_silence_is_found_within_one_and_a_half_seconds_of_rest_intervals() {
    let patience = HangThresholds::new(TIMEOUT, KILL).unwrap();
    for last_beat in (0..500).step_by(10) {
        let mut world = World::new();
        let rest = patience.rest_interval();
        // The last look at rest finds a beat of this age; then nothing moves any more.
        world.pass(Duration::from_secs(1), Duration::ZERO, Duration::ZERO);
        world.beat = world.now - MS * last_beat;
        assert_eq!(world.observe(), HangStatus::Healthy);
        let hangs = world.now;
        world.pass(rest, Duration::ZERO, Duration::ZERO);
        while !matches!(world.observe(), HangStatus::Suspect(_)) {
            assert!(world.now - hangs <= Duration::from_millis(1500), "{last_beat}");
            world.pass(CLOSE_INTERVAL, Duration::ZERO, Duration::ZERO);
        }
        assert!(world.now - hangs <= Duration::from_millis(1500), "{last_beat}");
    }
}

#[test]
fn a_worker_that_is_gone_is_left_to_be_reaped() {
    let mut world = World::new();
    world.task.state = ThreadState::Exited;
    world.now += TIMEOUT * 20;
    let sample = HangSample {
        last_heartbeat: world.beat,
        progress: LoopProgress::from_turns(0),
        accepted: 0,
        queued_connections: 0,
    };
    let patience = HangThresholds::new(TIMEOUT, KILL).unwrap();
    assert_eq!(world.watch.observe(&sample, patience, world.now, || Some(world.task)), None);
    assert_eq!(world.watch.observe(&sample, patience, world.now, || None), None);
}

#[test]
fn a_full_worker_that_answers_is_accepting() {
    let mut world = World::new();
    world.waiting = 100;
    for _ in 0..100 {
        world.pass(SAMPLE_INTERVAL, SAMPLE_INTERVAL, Duration::ZERO);
        (world.beat, world.turns) = (world.now, world.turns + 1);
        assert_eq!(world.observe(), HangStatus::Healthy);
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
        world.task.state = ThreadState::Runnable;
        let mut own = Duration::ZERO;
        let mut silent = Duration::ZERO;
        for (millis, share) in steps {
            let time = MS * millis;
            // Ready to run all the time, it gets a share of it.
            own += time.mul_f64(share);
            silent += time;
            world.pass(time, time.mul_f64(share), Duration::ZERO);
            if own >= SAMPLE_INTERVAL {
                own = Duration::ZERO;
                silent = Duration::ZERO;
                world.beat = world.now;
            }
            let status = world.observe();
            prop_assert!(silent > TIMEOUT * 9 || !matches!(status, HangStatus::Hung(_)), "{status:?}");
        }
    }

    /// However the supervisor's looks fall, a blocked worker is found by the first look after the timeout that
    /// follows looks without a gap.
    #[test]
    fn a_blocked_worker_is_found_whatever_it_did_before(busy in 0_u32..400, gap in 0_u32..250) {
        let mut world = World::new();
        world.pass(MS * gap, Duration::ZERO, Duration::ZERO);
        world.observe();
        world.pass(MS * busy, MS * busy, Duration::ZERO);
        world.beat = world.now;
        world.observe();
        let found = world.hung_after(ThreadState::Sleeping, 0.0, TIMEOUT * 2);
        prop_assert!(found.is_some_and(|(after, _)| after <= TIMEOUT + SAMPLE_INTERVAL), "{found:?}");
    }
}
