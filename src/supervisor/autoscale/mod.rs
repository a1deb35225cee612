//! How many workers the load wants: busyness over a window → another target, with its reason; pure.
//!
//! The rule is uWSGI's (`cheaper_busyness`): the average share of a window in which event loops were at work asks for
//! one worker more above `busy_max`, and for one less after several windows in a row below `busy_min`. A stop that
//! was soon regretted lengthens the wait before the next one, so that a load that comes and goes does not have
//! workers start and stop for ever. Connections that wait unaccepted ask for a worker at once.
//!
//! Two things differ from uWSGI. A worker is never stopped if the others would then be busier than `busy_max`: they
//! would call it back. And an emergency does not forget what regret has taught.

#[cfg(test)]
mod tests;

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
    /// Since when workers have been missing.
    missing: Option<Duration>,
}

impl Autoscaler {
    /// One that knows nothing of the load yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            window: None,
            target: 0,
            idle: 0,
            needed: IDLE_WINDOWS,
            stopped: None,
            backlog: 0,
            missing: None,
        }
    }

    /// The bounds it was made with.
    pub fn settings(&self) -> Settings {
        self.settings
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
        let complete = self.is_complete(load, now);
        if let Some(decision) = self.emergency(load, complete, now) {
            return Some(decision);
        }
        // Somebody else has changed the number, or workers are still missing: the load of the others says nothing.
        let Some((begun, before)) = &self.window else { return self.begin(load, now) };
        if load.target != self.target || !complete {
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

    /// Whether all workers serve that can be expected to: one that has been missing for a whole window is not.
    fn is_complete(&mut self, load: &Load, now: Duration) -> bool {
        if load.workers.len() >= load.target {
            self.missing = None;
            return true;
        }
        now.saturating_sub(*self.missing.get_or_insert(now)) >= self.settings.window
    }

    fn emergency(&mut self, load: &Load, complete: bool, now: Duration) -> Option<Decision> {
        self.backlog = if load.backlog > BACKLOG { self.backlog.saturating_add(1) } else { 0 };
        // The one that was started last has to serve before another one is.
        let is_due = self.backlog >= BACKLOG_LOOKS && complete;
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
        self.missing = None;
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
