//! How many workers the load wants: busyness over a window → another target, with its reason; pure.
//!
//! The rule is uWSGI's (`cheaper_busyness`): the average share of a window in which event loops were at work asks for
//! one worker more above `busy_max`, and for one less after several windows in a row below `busy_min`. If a worker is
//! wanted again soon after one was stopped, the wait before the next stop gets longer: a load that comes and goes would
//! start and stop workers for ever. Connections that wait unaccepted ask for a worker at once.
//!
//! Two things differ from uWSGI. A worker is never stopped if the others would then be busier than `busy_max`, because it
//! would be started again at once. And a start for waiting connections does not shorten the wait before the next stop.

#[cfg(test)]
mod tests;

use std::time::Duration;

/// Idle windows in a row before a worker is stopped, as long as no stop was regretted: no worker was wanted again soon
/// after one was stopped.
const IDLE_WINDOWS: u32 = 3;

/// What each regretted stop adds to them.
const FLAPPING_PENALTY: u32 = 2;

/// Most idle windows that are waited for.
const IDLE_WINDOWS_MAX: u32 = 60;

/// Connections that wait on all slots together, above which a worker is started at once.
const BACKLOG_MAX: u32 = 33;

/// Samples in a row that must find them: a burst that is accepted by the next sample is no emergency.
const BACKLOG_SAMPLES: u32 = 2;

/// The operator's bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AutoscaleSettings {
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

/// One sample of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadSample {
    /// Workers wanted now.
    pub target: usize,
    /// Each worker that serves.
    pub workers: Vec<WorkerLoad>,
    /// Connections that wait on all slots.
    pub backlog: u32,
}

/// How long one worker's loop was at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Tells it from others, its successors too.
    pub worker: u64,
    /// Since its start.
    pub busy: Duration,
    /// Whether its loop does not even beat: then it is busy, though it cannot say so.
    pub silent: bool,
}

/// What is decided at the end of a window, or in an emergency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoscaleDecision {
    /// Workers wanted from now on; one more, one less, or as many as before.
    pub target: usize,
    /// Why, in one sentence for people.
    pub reason: String,
}

/// What is recorded between two samples.
#[derive(Debug, Clone)]
pub struct Autoscaler {
    settings: AutoscaleSettings,
    /// When the window began and what each worker's busy time was then; none before the first sample.
    window: Option<(Duration, Vec<WorkerLoad>)>,
    /// Target that the window was measured under.
    target: usize,
    /// Idle windows in a row.
    idle_windows: u32,
    /// How many of them a stop needs.
    idle_windows_required: u32,
    /// When a worker was last stopped.
    last_stop: Option<Duration>,
    /// Samples in a row that found a backlog.
    backlog_samples: u32,
    /// Since when workers have been missing.
    missing_since: Option<Duration>,
}

impl Autoscaler {
    /// One that knows nothing of the load yet.
    pub fn new(settings: AutoscaleSettings) -> Self {
        Self {
            settings,
            window: None,
            target: 0,
            idle_windows: 0,
            idle_windows_required: IDLE_WINDOWS,
            last_stop: None,
            backlog_samples: 0,
            missing_since: None,
        }
    }

    /// The bounds it was made with.
    pub fn settings(&self) -> AutoscaleSettings {
        self.settings
    }

    /// Takes a sample; decides at the end of each window and in an emergency.
    pub fn observe(&mut self, load: &LoadSample, now: Duration) -> Option<AutoscaleDecision> {
        let AutoscaleSettings { min, max, .. } = self.settings;
        let desired = load.target.clamp(min, max);
        if desired != load.target {
            self.start_window(load, now);
            let target = load.target;
            return Some(AutoscaleDecision {
                target: desired,
                reason: format!("{target} is not within {min} to {max}"),
            });
        }
        let complete = self.is_complete(load, now);
        if let Some(decision) = self.check_backlog(load, complete, now) {
            return Some(decision);
        }
        // The number has changed meanwhile, or workers are still missing: the load of the others is no measure.
        let Some((started, before)) = &self.window else { return self.start_window(load, now) };
        if load.target != self.target || !complete {
            return self.start_window(load, now);
        }
        let passed = now.saturating_sub(*started);
        if passed < self.settings.window {
            return None;
        }
        let busy = average_busy_share(&load.workers, before, passed);
        self.start_window(load, now);
        Some(self.evaluate_window(load.target, busy?, now))
    }

    /// A new window begins.
    fn start_window(&mut self, load: &LoadSample, now: Duration) -> Option<AutoscaleDecision> {
        if load.target != self.target {
            self.idle_windows = 0;
        }
        self.window = Some((now, load.workers.clone()));
        self.target = load.target;
        None
    }

    /// Whether all workers serve that can be expected to: one that has been missing for a whole window is not.
    fn is_complete(&mut self, load: &LoadSample, now: Duration) -> bool {
        if load.workers.len() >= load.target {
            self.missing_since = None;
            return true;
        }
        now.saturating_sub(*self.missing_since.get_or_insert(now)) >= self.settings.window
    }

    fn check_backlog(
        &mut self,
        load: &LoadSample,
        complete: bool,
        now: Duration,
    ) -> Option<AutoscaleDecision> {
        self.backlog_samples =
            if load.backlog > BACKLOG_MAX { self.backlog_samples.saturating_add(1) } else { 0 };
        // The one that was started last has to serve before another one is.
        let is_due = self.backlog_samples >= BACKLOG_SAMPLES && complete;
        if !is_due || load.target >= self.settings.max {
            return None;
        }
        let waiting = load.backlog;
        Some(self.add_worker(
            load.target,
            now,
            format!("{waiting} connections wait, more than {BACKLOG_MAX}"),
        ))
    }

    fn evaluate_window(&mut self, target: usize, busy: f64, now: Duration) -> AutoscaleDecision {
        let AutoscaleSettings { min, max, window, busy_max, busy_min } = self.settings;
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let seen =
            format!("workers were busy {} of the last {}", percent(busy), humantime::format_duration(window));
        let keep = |reason: String| AutoscaleDecision { target, reason };
        if busy > busy_max {
            self.idle_windows = 0;
            if target >= max {
                return keep(format!("{seen}, but there are {max} already, the most allowed"));
            }
            return self.add_worker(target, now, format!("{seen}, more than {}", percent(busy_max)));
        }
        if busy >= busy_min {
            self.idle_windows = 0;
            return keep(format!("{seen}, which is as wanted"));
        }
        if target <= min {
            return keep(format!("{seen}, but there are only {min}, the fewest allowed"));
        }
        let fewer = target - 1;
        let then = busy * target as f64 / fewer as f64;
        if then > busy_max {
            self.idle_windows = 0;
            return keep(format!("{seen}, but {fewer} would be busy {}", percent(then)));
        }
        self.idle_windows += 1;
        let (idle, needed) = (self.idle_windows, self.idle_windows_required);
        if idle < needed {
            return keep(format!(
                "{seen}, less than {}, for {idle} of the {needed} windows before a stop",
                percent(busy_min)
            ));
        }
        self.remove_worker(
            fewer,
            now,
            format!("{seen}, less than {} for {idle} windows in a row", percent(busy_min)),
        )
    }

    fn add_worker(&mut self, target: usize, now: Duration, reason: String) -> AutoscaleDecision {
        self.idle_windows = 0;
        self.backlog_samples = 0;
        self.window = None;
        self.missing_since = None;
        let memory = self.settings.window * (self.idle_windows_required + 1);
        let regretted = self.last_stop.take().is_some_and(|stopped| now.saturating_sub(stopped) <= memory);
        let target = target + 1;
        if !regretted {
            self.idle_windows_required = self.idle_windows_required.saturating_sub(1).max(IDLE_WINDOWS);
            return AutoscaleDecision { target, reason };
        }
        self.idle_windows_required = (self.idle_windows_required + FLAPPING_PENALTY).min(IDLE_WINDOWS_MAX);
        let needed = self.idle_windows_required;
        let reason =
            format!("{reason}; the last stop was too early: the next one waits for {needed} windows");
        AutoscaleDecision { target, reason }
    }

    fn remove_worker(&mut self, target: usize, now: Duration, reason: String) -> AutoscaleDecision {
        self.idle_windows = 0;
        self.window = None;
        self.last_stop = Some(now);
        AutoscaleDecision { target, reason }
    }
}

/// The average share of a window in which the workers that served all of it were at work; none without such a worker.
fn average_busy_share(workers: &[WorkerLoad], before: &[WorkerLoad], window: Duration) -> Option<f64> {
    let share = |now: &WorkerLoad| {
        let then = before.iter().find(|then| then.worker == now.worker)?;
        let busy = now.busy.saturating_sub(then.busy).as_secs_f64() / window.as_secs_f64();
        Some(if now.silent { 1.0 } else { busy.min(1.0) })
    };
    let shares: Vec<f64> = workers.iter().filter_map(share).collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}
