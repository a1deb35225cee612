//! Scenes of the autoscaler: a load, and how many workers it comes to have.

use proptest::prelude::*;

use super::*;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
const WINDOW: Duration = Duration::from_secs(10);

fn settings(min: usize, max: usize) -> AutoscaleSettings {
    AutoscaleSettings { min, max, window: WINDOW, busy_max: 0.5, busy_min: 0.25 }
}

/// A fleet that does what it is told at once, under a load measured in whole workers.
struct World {
    autoscaler: Autoscaler,
    target: usize,
    now: Duration,
    busy: Vec<Duration>,
    backlog: u32,
    changes: Vec<(Duration, usize, String)>,
}

impl World {
    fn new(settings: AutoscaleSettings, target: usize) -> Self {
        Self {
            autoscaler: Autoscaler::new(settings),
            target,
            now: Duration::ZERO,
            busy: vec![Duration::ZERO; settings.max],
            backlog: 0,
            changes: Vec::new(),
        }
    }

    /// Lets a load of so many workers' full time go on for a while.
    fn run(&mut self, time: Duration, load: f64) {
        let end = self.now + time;
        while self.now < end {
            self.now += SAMPLE_INTERVAL;
            let share = (load / self.target as f64).min(1.0);
            for busy in &mut self.busy[..self.target] {
                *busy += SAMPLE_INTERVAL.mul_f64(share);
            }
            let worker = |(index, busy): (usize, &Duration)| WorkerLoad {
                worker: index as u64,
                busy: *busy,
                silent: false,
            };
            let workers = self.busy[..self.target].iter().enumerate().map(worker).collect();
            let seen = LoadSample { target: self.target, workers, backlog: self.backlog };
            if let Some(decision) = self.autoscaler.observe(&seen, self.now)
                && decision.target != self.target
            {
                self.changes.push((self.now, decision.target, decision.reason));
                self.target = decision.target;
            }
        }
    }
}

#[test]
fn load_starts_workers_one_by_one_and_silence_stops_them_later() {
    let mut world = World::new(settings(1, 4), 1);
    world.run(WINDOW * 4, 1.6);
    assert_eq!(world.target, 4, "{:?}", world.changes);
    assert!(world.changes[0].2.contains("busy 100 % of the last 10s, more than 50 %"), "{:?}", world.changes);
    world.run(WINDOW * 2, 0.0);
    assert_eq!(world.target, 4, "two idle windows are too few");
    world.run(WINDOW * 20, 0.0);
    assert_eq!(world.target, 1);
    let steps: Vec<_> = world.changes.iter().map(|change| change.1).collect();
    assert_eq!(steps, [2, 3, 4, 3, 2, 1], "one at a time");
}

#[test]
fn a_stop_that_others_could_not_bear_does_not_happen() {
    let bounds = AutoscaleSettings { busy_max: 0.5, busy_min: 0.45, ..settings(1, 4) };
    let mut world = World::new(bounds, 2);
    world.run(WINDOW * 100, 0.8);
    assert_eq!((world.target, world.changes.len()), (2, 0), "{:?}", world.changes);
}

#[test]
fn a_square_wave_is_followed_for_a_while_and_then_no_more() {
    let mut world = World::new(settings(1, 4), 1);
    let mut last = Duration::ZERO;
    for _ in 0..200 {
        world.run(WINDOW * 6, 2.0);
        world.run(WINDOW * 6, 0.0);
        if let Some(change) = world.changes.last() {
            last = change.0;
        }
    }
    assert!(world.changes.len() <= 12, "{:?}", world.changes);
    assert!(last < WINDOW * 12 * 10, "the last change was at {last:?}");
    assert!(world.changes.iter().any(|change| change.2.contains("too early")), "{:?}", world.changes);
}

#[test]
fn a_slow_wave_is_followed_for_ever() {
    let mut world = World::new(settings(1, 4), 1);
    for _ in 0..10 {
        world.run(Duration::from_secs(6 * 3600), 2.0);
        assert_eq!(world.target, 4);
        world.run(Duration::from_secs(6 * 3600), 0.0);
        assert_eq!(world.target, 1);
    }
}

#[test]
fn a_backlog_starts_a_worker_before_the_window_ends() {
    let mut world = World::new(settings(1, 4), 1);
    world.backlog = BACKLOG_MAX + 1;
    world.run(SAMPLE_INTERVAL, 0.1);
    assert_eq!(world.target, 1, "one look may be a burst");
    world.run(SAMPLE_INTERVAL, 0.1);
    assert_eq!(world.target, 2);
    assert!(world.changes[0].2.contains("34 connections wait"), "{:?}", world.changes);
    world.backlog = 0;
    world.run(WINDOW, 0.1);
    assert_eq!(world.target, 2);
}

#[test]
fn nothing_more_is_started_while_the_last_one_boots() {
    let mut autoscaler = Autoscaler::new(settings(1, 4));
    let one = vec![WorkerLoad { worker: 1, busy: Duration::ZERO, silent: false }];
    let load = LoadSample { target: 2, workers: one, backlog: 1000 };
    let samples = 20;
    for sample in 0..samples {
        assert_eq!(autoscaler.observe(&load, SAMPLE_INTERVAL * sample), None);
    }
    let late = autoscaler.observe(&load, SAMPLE_INTERVAL * samples);
    assert_eq!(late.map(|decision| decision.target), Some(3), "one that never comes is not waited for");
}

#[test]
fn a_silent_loop_is_a_busy_one() {
    let mut autoscaler = Autoscaler::new(settings(1, 4));
    let worker = WorkerLoad { worker: 1, busy: Duration::ZERO, silent: true };
    let load = LoadSample { target: 1, workers: vec![worker], backlog: 0 };
    assert_eq!(autoscaler.observe(&load, Duration::ZERO), None);
    assert_eq!(autoscaler.observe(&load, WINDOW).map(|decision| decision.target), Some(2));
}

#[test]
fn an_operators_number_outside_the_bounds_is_brought_back() {
    let mut autoscaler = Autoscaler::new(settings(2, 4));
    let load = LoadSample { target: 7, workers: Vec::new(), backlog: 0 };
    assert_eq!(autoscaler.observe(&load, Duration::ZERO).map(|decision| decision.target), Some(4));
}

#[test]
fn workers_that_were_replaced_within_the_window_are_ignored() {
    let mut autoscaler = Autoscaler::new(settings(1, 4));
    let load = |worker| {
        let busy = WorkerLoad { worker, busy: Duration::from_secs(1), silent: false };
        LoadSample { target: 1, workers: vec![busy], backlog: 0 }
    };
    autoscaler.observe(&load(1), Duration::ZERO);
    assert_eq!(autoscaler.observe(&load(2), WINDOW), None);
    assert_eq!(autoscaler.observe(&load(2), WINDOW * 2).map(|decision| decision.target), Some(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_target_is_always_within_the_bounds_and_moves_by_one(
        min in 1_usize..5, more in 0_usize..8, start in 0_usize..8,
        loads in prop::collection::vec((0.0_f64..20.0, 1_u32..40, 0_u32..60), 1..30),
    ) {
        let max = min + more;
        let mut world = World::new(settings(min, max), (min + start).min(max));
        let mut before = world.target;
        for (load, samples, backlog) in loads {
            world.backlog = backlog;
            for _ in 0..samples {
                world.run(SAMPLE_INTERVAL, load);
                prop_assert!((min..=max).contains(&world.target));
                prop_assert!(world.target.abs_diff(before) <= 1);
                before = world.target;
            }
        }
    }

    #[test]
    fn a_constant_load_comes_to_rest(
        max in 1_usize..12, load in 0.0_f64..12.0, start in 1_usize..12,
        busy_max in 0.3_f64..0.9, below in 0.01_f64..0.29,
    ) {
        let bounds = AutoscaleSettings { busy_max, busy_min: busy_max - below, ..settings(1, max) };
        let mut world = World::new(bounds, start.min(max));
        world.run(WINDOW * (IDLE_WINDOWS + 1) * 15, load);
        let rest = world.changes.len();
        world.run(WINDOW * 200, load);
        prop_assert_eq!(world.changes.len(), rest, "{:?}", world.changes);
    }
}
