//! Processes: started and stopped by the benchmark, and what `/proc` says they used.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::signal;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::Outcome;

/// Microseconds in one tick of `/proc/PID/stat`: `USER_HZ` is 100 on every Linux this runs on (proc(5), times(2)).
const TICK_US: f64 = 10_000.0;

/// Longest wait for anything to start or stop.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(10);

/// A child process with its output in a file; asked to stop when dropped, and killed if it does not.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts the command.
    pub(crate) fn start(mut command: Command, log: &Path) -> Outcome<Self> {
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let program = command.get_program().to_owned();
        let child =
            command.spawn().map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        Ok(Self { child })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The child has not been waited for yet, so the number cannot belong to another process.
        let asked = kill(self.pid(), Signal::SIGTERM);
        let gone = || matches!(self.child.try_wait(), Ok(Some(_)) | Err(_));
        if asked.is_err() || wait_until("the process has left", gone).is_err() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Sends a signal.
pub(crate) fn kill(pid: u32, with: Signal) -> Outcome<()> {
    Ok(signal::kill(Pid::from_raw(i32::try_from(pid)?), with)?)
}

/// Looks again and again until the condition holds.
pub(crate) fn wait_until(what: &str, holds: impl FnMut() -> bool) -> Outcome<()> {
    wait_for(what, PATIENCE, holds)
}

/// The same with another deadline.
pub(crate) fn wait_for(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Outcome<()> {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > patience {
            return Err(format!("waited {} s in vain until {what}", patience.as_secs()).into());
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Children of a process, by their main thread's list in `/proc`, and theirs.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = list.split_whitespace().filter_map(|child| child.parse().ok());
    children.flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

/// CPU time used so far by these processes, their own and the kernel's for them, microseconds.
pub(crate) fn cpu_us(pids: &[u32]) -> Outcome<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in the second field may hold spaces and parentheses: fields are counted after the last one.
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
        let times = fields.split(' ').skip(11).take(2);
        ticks += times.map(|time| time.parse::<u32>().unwrap_or_default()).sum::<u32>();
    }
    Ok(f64::from(ticks) * TICK_US)
}

/// Memory no other process shares, kibibytes (`Private_*` of `smaps_rollup`): what one more worker costs.
pub(crate) fn private_kib(pid: u32) -> Outcome<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    Ok(private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
}
