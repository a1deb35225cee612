//! What operators and bad days do to a fleet.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::fleet::TestFleet;
use crate::support::{process, wait};

/// Kills every process of a fleet, so that it leaves without a word.
pub(crate) fn kill(fleet: &mut TestFleet) {
    let workers = fleet.workers();
    workers.iter().for_each(|pid| process::stop(*pid));
    fleet.signal(Signal::SIGKILL);
    workers.iter().for_each(|pid| process::signal(*pid, Signal::SIGKILL));
    assert_eq!(fleet.exit_code(wait::LONG), -9);
}

/// Longest time for one rollout or one change of size on a busy machine.
pub(crate) const ROLLOUT: Duration = Duration::from_secs(60);

/// Begins a rollout by its signal and waits for its end, which has to be a good one.
#[track_caller]
pub(crate) fn rollout(fleet: &TestFleet, signal: Signal, verb: &str) {
    let (done, failed) = (format!("{verb} done"), format!("{verb} rolled back"));
    let before = fleet.log_lines(&done).len();
    let lost = fleet.log_lines(&failed).len();
    fleet.signal(signal);
    wait::until(&done, ROLLOUT, || {
        let back = fleet.log_lines(&failed);
        assert_eq!(back.len(), lost, "{back:?}");
        fleet.log_lines(&done).len() > before
    });
}

/// Waits until so many workers serve and no other is left.
#[track_caller]
pub(crate) fn settled(fleet: &TestFleet, workers: usize) {
    wait::until(&format!("{workers} workers, all ready"), ROLLOUT, || {
        let alive = fleet.workers();
        let ready = fleet.ready();
        alive.len() == workers && alive.iter().all(|pid| ready.iter().any(|(_, ready)| ready == pid))
    });
}

/// Waits until nothing is under way: the same workers, all of them ready, for longer than any step takes.
#[track_caller]
pub(crate) fn quiet(fleet: &TestFleet) {
    let mut last = (Vec::new(), Instant::now());
    wait::until("nothing is under way", 4 * ROLLOUT, || {
        let alive = fleet.workers();
        let ready = fleet.ready();
        let settled = alive.iter().all(|pid| ready.iter().any(|(_, ready)| ready == pid));
        if alive != last.0 || !settled {
            last = (alive, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(1500)
    });
}

/// Runs a command of the fleet's program against it.
#[track_caller]
pub(crate) fn operate(fleet: &TestFleet, words: &[&str]) {
    let mut command = Command::new(fleet.plan().file());
    command.arg("--run-dir").arg(fleet.plan().setting("REGATTA_RUN_DIR")).args(words).env_clear();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}\n{}", fleet.log());
}
