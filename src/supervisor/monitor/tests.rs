//! What one sample after the other finds, without a process.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::*;
use crate::scoreboard::Scoreboard;
use crate::supervisor::monitor::autoscaler::{AutoscaleSettings, LoadSample, WorkerLoad};
use crate::supervisor::monitor::hang::{HangSample, Stall, StallKind};
use crate::supervisor::monitor::recycling::{RecycleCause, RecycleDecision, RecycleLimits};
use crate::supervisor::monitor::tick::HangFinding;
use crate::sys::thread::{ThreadSample, ThreadState};

const START: Duration = Duration::from_secs(1000);

fn worker(is_hung: bool) -> ServingWorker {
    let scoreboard = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
    scoreboard.cell(0, 0).reset(1, 0);
    scoreboard.cell(0, 0).set_pid(10);
    ServingWorker {
        slot: 0,
        pid: Pid::from_raw(10),
        since: START,
        is_hung,
        is_retiring: false,
        progress: LoopProgress::default(),
        snapshot: scoreboard.cell(0, 0).snapshot().unwrap(),
    }
}

fn settings(hang_timeout: Duration) -> MonitorSettings {
    MonitorSettings {
        hang_timeout,
        hang_kill: hang_timeout * 10,
        limits: RecycleLimits::default(),
        scaling: None,
        dry_run: false,
    }
}

/// What is found of a worker that sleeps from `START` on.
fn find(monitor: &mut HealthMonitor, worker: &ServingWorker, at: Duration) -> HangFinding {
    let (last_heartbeat, progress) = (worker.last_heartbeat(), worker.progress);
    let sample = HangSample { last_heartbeat, progress, accepted: 0, queued_connections: 0 };
    let thread = ThreadSample { state: ThreadState::Sleeping, cpu: START, cpu_wait: START };
    monitor.check_hang(worker, &sample, &settings(Duration::from_secs(3)), at, || Some(thread))
}

#[test]
fn a_worker_that_sleeps_is_suspect_then_hung_then_lost_and_each_is_found_once() {
    let (mut monitor, mut seen) = (HealthMonitor::new(), worker(false));
    let mut found = Vec::new();
    for tick in 0..400_u32 {
        let finding = find(&mut monitor, &seen, START + Duration::from_millis(100) * tick);
        match finding {
            HangFinding::Unchanged => continue,
            HangFinding::Hung(_) => seen.is_hung = true,
            _ => {}
        }
        found.push(finding);
        if finding == HangFinding::Lost {
            break;
        }
    }
    let kinds: Vec<_> = found.iter().map(std::mem::discriminant).collect();
    let stall = Stall { silent: START, kind: StallKind::Blocked, queued_connections: 0 };
    let expected = [HangFinding::Suspect(stall), HangFinding::Hung(stall), HangFinding::Lost];
    assert_eq!(kinds, expected.iter().map(std::mem::discriminant).collect::<Vec<_>>(), "{found:?}");
}

#[test]
fn a_watch_that_is_switched_off_lets_a_hung_worker_go() {
    let mut monitor = HealthMonitor::new();
    let sample = HangSample {
        last_heartbeat: START,
        progress: LoopProgress::default(),
        accepted: 0,
        queued_connections: 0,
    };
    for (is_hung, expected) in [(true, HangFinding::Recovered), (false, HangFinding::Unchanged)] {
        let off = settings(Duration::ZERO);
        assert_eq!(monitor.check_hang(&worker(is_hung), &sample, &off, START, || None), expected);
    }
}

#[test]
fn a_worker_that_has_done_enough_stays_while_a_rollout_is_under_way() {
    let mut monitor = HealthMonitor::new();
    let limits = RecycleLimits { requests: Some(1), ..RecycleLimits::default() };
    let mut seen = worker(false);
    seen.snapshot.requests = 2;
    let mut decide =
        |seen: &ServingWorker, in_rollout| monitor.check_recycling(seen, &limits, in_rollout, START, || None);
    assert_eq!(decide(&seen, true), RecycleDecision::Keep);
    assert_eq!(decide(&seen, false), RecycleDecision::Replace(RecycleCause::Requests(2)));
    seen.is_retiring = true;
    assert_eq!(decide(&seen, false), RecycleDecision::Keep, "it retires already");
}

#[test]
fn a_worker_that_holds_too_much_is_killed_even_in_a_rollout() {
    let mut monitor = HealthMonitor::new();
    let limits = RecycleLimits { memory_hard: Some(10), ..RecycleLimits::default() };
    let decision = monitor.check_recycling(&worker(false), &limits, true, START, || Some(11));
    assert_eq!(decision, RecycleDecision::Kill(RecycleCause::Memory { held: 11, limit: 10 }));
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_it_would_do() {
    let window = Duration::from_secs(10);
    let settings = AutoscaleSettings { min: 1, max: 4, window, busy_max: 0.5, busy_min: 0.25 };
    for dry_run in [true, false] {
        let mut monitor = HealthMonitor::new();
        let mut busy = Duration::ZERO;
        let decided = (0..600_u32).find_map(|tick| {
            busy += Duration::from_millis(100);
            let workers = vec![WorkerLoad { worker: 10, busy, silent: false }];
            let load = LoadSample { target: 1, workers, backlog: 0 };
            monitor.check_load(&load, settings, dry_run, START + Duration::from_millis(100) * tick)
        });
        assert_eq!(decided.is_some(), !dry_run);
        assert!(monitor.scaling_decision.is_some_and(|decision| decision.target > 1), "the status shows it");
    }
}
