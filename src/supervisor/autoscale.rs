//! How many workers the load wants: busyness over a window → another target, with its reason; pure.
//!
//! The rule is uWSGI's (`cheaper_busyness`): the average share of a window in which event loops were at work asks for
//! one worker more above `busy_max`, and for one less after several windows in a row below `busy_min`. A stop that
//! was soon regretted lengthens the wait before the next one, so that a load that comes and goes does not have
//! workers start and stop for ever. Connections that wait unaccepted ask for a worker at once.
//!
//! Two things differ from uWSGI. A worker is never stopped if the others would then be busier than `busy_max`: they
//! would call it back. And an emergency does not forget what regret has taught.

use std::time::Duration;

/// Idle windows in a row before a worker is stopped, as long as no stop was regretted.
const IDLE_WINDOWS: u32 = 3;

/// What each regretted stop adds to them.
const PENALTY: u32 = 2;

/// Most idle windows that are waited for.
const IDLE_WINDOWS_MAX: u32 = 60;

/// Connections that wait on all slots together, above which a worker is started at once.
const BACKLOG: u32 = 33;

/// Looks in a row that must find them: a burst that is accepted by the next look is no emergency.
const BACKLOG_LOOKS: u32 = 2;

/// The operator's bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Fewest workers, ≥ 1.
    pub min: usize,
    /// Most workers, ≥ `min`.
    pub max: usize,
    /// Time over which busyness is averaged.
    pub window: Duration,
    /// Average busyness above which a worker is started, 0 to 1.
    pub busy_max: f64,
    /// Average busyness below which a worker may be stopped, 0 to 1.
    pub busy_min: f64,
}

/// What is seen of the fleet at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Workers wanted now.
    pub target: usize,
    /// Each worker that serves.
    pub workers: Vec<Busy>,
    /// Connections that wait on all slots.
    pub backlog: u32,
}

/// How long one worker's loop was at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy {
    /// Tells it from others, its successors too.
    pub worker: u64,
    /// Since its start.
    pub busy: Duration,
    /// Whether its loop does not even beat: then it is busy, though it cannot say so.
    pub silent: bool,
}

/// What is decided at the end of a window, or in an emergency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Workers wanted from now on; one more, one less, or as many as before.
    pub target: usize,
    /// Why, in one sentence for people.
    pub reason: String,
}

/// What is remembered between two looks.
#[derive(Debug, Clone)]
pub struct Autoscaler {
    settings: Settings,
    /// When the window began and what each worker's busy time was then; none before the first look.
    window: Option<(Duration, Vec<Busy>)>,
    /// Target that the window was measured under.
    target: usize,
    /// Idle windows in a row.
    idle: u32,
    /// How many of them a stop needs.
    needed: u32,
    /// When a worker was last stopped.
    stopped: Option<Duration>,
    /// Looks in a row that found a backlog.
    backlog: u32,
}

impl Autoscaler {
    /// One that knows nothing of the load yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, window: None, target: 0, idle: 0, needed: IDLE_WINDOWS, stopped: None, backlog: 0 }
    }

    /// Looks at the fleet; says something at the end of each window and in an emergency, else nothing.
    pub fn look(&mut self, load: &Load, now: Duration) -> Option<Decision> {
        let Settings { min, max, .. } = self.settings;
        let wanted = load.target.clamp(min, max);
        if wanted != load.target {
            self.begin(load, now);
            let target = load.target;
            return Some(Decision {
                target: wanted,
                reason: format!("{target} is not within {min} to {max}"),
            });
        }
        if let Some(decision) = self.emergency(load, now) {
            return Some(decision);
        }
        // Whoever else has changed the number, or workers that are still missing: their load says nothing yet.
        let Some((begun, before)) = &self.window else { return self.begin(load, now) };
        if load.target != self.target || load.workers.len() < load.target {
            return self.begin(load, now);
        }
        let passed = now.saturating_sub(*begun);
        if passed < self.settings.window {
            return None;
        }
        let busy = average(&load.workers, before, passed);
        self.begin(load, now);
        Some(self.judge(load.target, busy?, now))
    }

    /// A new window begins.
    fn begin(&mut self, load: &Load, now: Duration) -> Option<Decision> {
        if load.target != self.target {
            self.idle = 0;
        }
        self.window = Some((now, load.workers.clone()));
        self.target = load.target;
        None
    }

    fn emergency(&mut self, load: &Load, now: Duration) -> Option<Decision> {
        self.backlog = if load.backlog > BACKLOG { self.backlog.saturating_add(1) } else { 0 };
        // The one that was started last has to serve before another one is.
        let is_due = self.backlog >= BACKLOG_LOOKS && load.workers.len() >= load.target;
        if !is_due || load.target >= self.settings.max {
            return None;
        }
        let waiting = load.backlog;
        Some(self.start(load.target, now, format!("{waiting} connections wait, more than {BACKLOG}")))
    }

    fn judge(&mut self, target: usize, busy: f64, now: Duration) -> Decision {
        let Settings { min, max, window, busy_max, busy_min } = self.settings;
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let seen =
            format!("workers were busy {} of the last {}", percent(busy), humantime::format_duration(window));
        let keep = |reason: String| Decision { target, reason };
        if busy > busy_max {
            self.idle = 0;
            if target >= max {
                return keep(format!("{seen}, but there are {max} already, the most allowed"));
            }
            return self.start(target, now, format!("{seen}, more than {}", percent(busy_max)));
        }
        if busy >= busy_min {
            self.idle = 0;
            return keep(format!("{seen}, which is as wanted"));
        }
        if target <= min {
            return keep(format!("{seen}, but there are only {min}, the fewest allowed"));
        }
        let fewer = target - 1;
        let then = busy * target as f64 / fewer as f64;
        if then > busy_max {
            self.idle = 0;
            return keep(format!("{seen}, but {fewer} would be busy {}", percent(then)));
        }
        self.idle += 1;
        let (idle, needed) = (self.idle, self.needed);
        if idle < needed {
            return keep(format!(
                "{seen}, less than {}, for {idle} of the {needed} windows before a stop",
                percent(busy_min)
            ));
        }
        self.stop(fewer, now, format!("{seen}, less than {} for {idle} windows in a row", percent(busy_min)))
    }

    fn start(&mut self, target: usize, now: Duration, reason: String) -> Decision {
        self.idle = 0;
        self.backlog = 0;
        self.window = None;
        let memory = self.settings.window * (self.needed + 1);
        let regretted = self.stopped.take().is_some_and(|stopped| now.saturating_sub(stopped) <= memory);
        let target = target + 1;
        if !regretted {
            self.needed = self.needed.saturating_sub(1).max(IDLE_WINDOWS);
            return Decision { target, reason };
        }
        self.needed = (self.needed + PENALTY).min(IDLE_WINDOWS_MAX);
        let needed = self.needed;
        let reason =
            format!("{reason}; the last stop was too early: the next one waits for {needed} windows");
        Decision { target, reason }
    }

    fn stop(&mut self, target: usize, now: Duration, reason: String) -> Decision {
        self.idle = 0;
        self.window = None;
        self.stopped = Some(now);
        Decision { target, reason }
    }
}

/// The average share of a window in which the workers that served all of it were at work; none if nobody did.
fn average(workers: &[Busy], before: &[Busy], window: Duration) -> Option<f64> {
    let share = |now: &Busy| {
        let then = before.iter().find(|then| then.worker == now.worker)?;
        let busy = now.busy.saturating_sub(then.busy).as_secs_f64() / window.as_secs_f64();
        Some(if now.silent { 1.0 } else { busy.min(1.0) })
    };
    let shares: Vec<f64> = workers.iter().filter_map(share).collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOK: Duration = Duration::from_millis(500);
    const WINDOW: Duration = Duration::from_secs(10);

    fn settings(min: usize, max: usize) -> Settings {
        Settings { min, max, window: WINDOW, busy_max: 0.5, busy_min: 0.25 }
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
        fn new(settings: Settings, target: usize) -> Self {
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
                self.now += LOOK;
                let share = (load / self.target as f64).min(1.0);
                for busy in &mut self.busy[..self.target] {
                    *busy += LOOK.mul_f64(share);
                }
                let worker = |(index, busy): (usize, &Duration)| Busy {
                    worker: index as u64,
                    busy: *busy,
                    silent: false,
                };
                let workers = self.busy[..self.target].iter().enumerate().map(worker).collect();
                let seen = Load { target: self.target, workers, backlog: self.backlog };
                if let Some(decision) = self.autoscaler.look(&seen, self.now)
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
        assert!(
            world.changes[0].2.contains("busy 100 % of the last 10s, more than 50 %"),
            "{:?}",
            world.changes
        );
        world.run(WINDOW * 2, 0.0);
        assert_eq!(world.target, 4, "two idle windows are too few");
        world.run(WINDOW * 20, 0.0);
        assert_eq!(world.target, 1);
        let steps: Vec<_> = world.changes.iter().map(|change| change.1).collect();
        assert_eq!(steps, [2, 3, 4, 3, 2, 1], "one at a time");
    }

    #[test]
    fn a_stop_that_others_could_not_bear_does_not_happen() {
        let bounds = Settings { busy_max: 0.5, busy_min: 0.45, ..settings(1, 4) };
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
        world.backlog = BACKLOG + 1;
        world.run(LOOK, 0.1);
        assert_eq!(world.target, 1, "one look may be a burst");
        world.run(LOOK, 0.1);
        assert_eq!(world.target, 2);
        assert!(world.changes[0].2.contains("34 connections wait"), "{:?}", world.changes);
        world.backlog = 0;
        world.run(WINDOW, 0.1);
        assert_eq!(world.target, 2);
    }

    #[test]
    fn nothing_more_is_started_while_the_last_one_boots() {
        let mut autoscaler = Autoscaler::new(settings(1, 4));
        let one = vec![Busy { worker: 1, busy: Duration::ZERO, silent: false }];
        for look in 0..100 {
            let load = Load { target: 2, workers: one.clone(), backlog: 1000 };
            assert_eq!(autoscaler.look(&load, LOOK * look), None);
        }
    }

    #[test]
    fn a_silent_loop_is_a_busy_one() {
        let mut autoscaler = Autoscaler::new(settings(1, 4));
        let worker = Busy { worker: 1, busy: Duration::ZERO, silent: true };
        let load = Load { target: 1, workers: vec![worker], backlog: 0 };
        assert_eq!(autoscaler.look(&load, Duration::ZERO), None);
        assert_eq!(autoscaler.look(&load, WINDOW).map(|decision| decision.target), Some(2));
    }

    #[test]
    fn an_operators_number_outside_the_bounds_is_brought_back() {
        let mut autoscaler = Autoscaler::new(settings(2, 4));
        let load = Load { target: 7, workers: Vec::new(), backlog: 0 };
        assert_eq!(autoscaler.look(&load, Duration::ZERO).map(|decision| decision.target), Some(4));
    }

    #[test]
    fn workers_that_were_replaced_within_the_window_say_nothing() {
        let mut autoscaler = Autoscaler::new(settings(1, 4));
        let load = |worker| {
            let busy = Busy { worker, busy: Duration::from_secs(1), silent: false };
            Load { target: 1, workers: vec![busy], backlog: 0 }
        };
        autoscaler.look(&load(1), Duration::ZERO);
        assert_eq!(autoscaler.look(&load(2), WINDOW), None);
        assert_eq!(autoscaler.look(&load(2), WINDOW * 2).map(|decision| decision.target), Some(1));
    }

    proptest! {
        #[test]
        fn the_target_is_always_within_the_bounds_and_moves_by_one(
            min in 1_usize..5, more in 0_usize..8, start in 0_usize..8,
            loads in prop::collection::vec((0.0_f64..20.0, 1_u32..40, 0_u32..60), 1..30),
        ) {
            let max = min + more;
            let mut world = World::new(settings(min, max), (min + start).min(max));
            let mut before = world.target;
            for (load, looks, backlog) in loads {
                world.backlog = backlog;
                for _ in 0..looks {
                    world.run(LOOK, load);
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
            let bounds = Settings { busy_max, busy_min: busy_max - below, ..settings(1, max) };
            let mut world = World::new(bounds, start.min(max));
            world.run(WINDOW * (IDLE_WINDOWS + 1) * 15, load);
            let rest = world.changes.len();
            world.run(WINDOW * 200, load);
            prop_assert_eq!(world.changes.len(), rest, "{:?}", world.changes);
        }
    }
}
