//! Signals from everywhere at once: whatever they ask for, it is bounded, and afterwards everything works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::soak::zero_loss::Scene;
use crate::support::operate::quiet;
use crate::support::{process, soak, wait};

/// Signals of one storm, and how long it takes.
const STORM: (u32, Duration) = (1000, Duration::from_secs(1));

/// Processes of two slots: in each one that serves, one that boots, and `drain.max_draining_workers` that leave.
pub(super) const MOST: usize = 2 * (1 + 1 + 3);

/// Looks again and again how many children a process has.
pub(super) struct Census {
    ended: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
    watcher: Option<JoinHandle<()>>,
}

impl Census {
    pub(super) fn of(pid: u32) -> Self {
        let (ended, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (end, highest) = (Arc::clone(&ended), Arc::clone(&most));
        let watcher = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                highest.fetch_max(process::children(pid).len(), Ordering::Relaxed);
                wait::pace(Duration::from_millis(10));
            }
        });
        Self { ended, most, watcher: Some(watcher) }
    }

    /// The most it ever had.
    pub(super) fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Census {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// A second of signals, each drawn from these; then quiet, and one reload that has to work.
fn storm(name: &'static str, signals: &[Signal], leaving: usize, most: usize) {
    let mut scene =
        Scene::start(name, |plan| plan.set("REGATTA_DRAIN__MAX_DRAINING_WORKERS", &leaving.to_string()));
    let census = Census::of(scene.fleet.pid());
    for _ in 0..soak::length(1, 5) {
        let (count, time) = STORM;
        let begin = Instant::now();
        for number in 0..count {
            scene.fleet.signal(signals[rand::random_range(0..signals.len())]);
            let next = begin + time * number / count;
            wait::pace(next.saturating_duration_since(Instant::now()));
        }
        scene.volley.more(50);
    }
    quiet(&scene.fleet);
    scene.rollout(Signal::SIGHUP, "reload");
    let workers = scene.fleet.workers().len();
    soak::log(name, &format!("at most {} processes, then {workers} workers", census.most()));
    assert!(census.most() <= most, "{} processes at a time", census.most());
    drop(census);
    scene.end();
}

#[test]
fn a_thousand_reloads_in_a_second_are_few() {
    let reload = [Signal::SIGHUP];
    storm("storm of reloads", &reload, 3, MOST);
}

#[test]
fn a_storm_of_every_signal_is_survived() {
    let all = [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGPIPE,
        Signal::SIGCHLD,
    ];
    // A fleet that was scaled to one worker has a rollout every 350 ms: the longest streams outlive three of them.
    storm("storm of every signal", &all, 6, 200);
}
