//! Signals from everywhere at once: whatever they ask for, it is bounded, and afterwards everything works.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::operate::quiet;
use crate::support::traffic::Scene;
use crate::support::traffic::{Census, MOST};
use crate::support::{soak, wait};

/// Signals of one storm, and how long it takes.
const STORM: (u32, Duration) = (1000, Duration::from_secs(1));

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
