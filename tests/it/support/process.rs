//! Processes from outside, as proc(5) shows them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::wait;

/// Sends a signal to a process that this test started.
#[track_caller]
pub(crate) fn signal(pid: u32, signal: Signal) {
    let target = Pid::from_raw(i32::try_from(pid).unwrap());
    kill(target, signal).unwrap_or_else(|error| panic!("{signal} to {pid}: {error}"));
}

/// Stops a process and returns only when it stands still.
#[track_caller]
pub(crate) fn stop(pid: u32) {
    signal(pid, Signal::SIGSTOP);
    wait::until("the process stands still", wait::LONG, || matches!(state(pid), Some('T')));
}

/// The state letter of proc(5), `None` when there is no such process.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether it runs: a zombie does not.
pub(crate) fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// Direct children, in the order of their start.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// The program a process runs.
pub(crate) fn program(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// How many threads it has.
pub(crate) fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// What its descriptors are, numbers of inodes left out, sorted.
pub(crate) fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let kind = |target: PathBuf| {
        let name = target.to_string_lossy().into_owned();
        name.split(":[").next().unwrap_or(&name).to_owned()
    };
    let mut kinds: Vec<_> =
        entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).map(kind).collect();
    kinds.sort();
    kinds
}

/// Private memory in bytes.
pub(crate) fn private_memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kilobytes = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    lines.filter_map(kilobytes).sum::<u64>() * 1024
}

/// Processor time used so far.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let ticks = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(11).take(2);
    // USER_HZ is 100 on every Linux there is.
    Duration::from_millis(ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// Signals of a line of `/proc/PID/status`, without the two that the C library keeps for itself.
#[track_caller]
pub(crate) fn signals(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{status}"));
    u64::from_str_radix(line.trim(), 16).unwrap() & 0x7fff_ffff
}
