//! Workers of a fleet whose supervisor was killed: written down while they live, found by the next supervisor, and ended.
//!
//! They know by themselves that they are alone, and drain (`worker/drain.rs`); a timer of the kernel ends one that is
//! stuck (`sys/orphan.rs`). Here the next supervisor makes sure that they end and its fleet gets the port.

use std::io;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::supervisor::slots::plan::EXIT_GRACE;
use crate::sys::process::Pid;
use crate::sys::process_identity::{ProcessHandle, ProcessIdentity};
use crate::sys::signal::Signal;
use crate::sys::{path, process_identity};

/// File in the run folder that names the workers.
const WORKERS_FILE: &str = "workers";

/// Most bytes of it that are read.
const READ_MAX: u64 = 1 << 20;

/// Workers of the fleet before this one that still run.
#[derive(Debug, Default)]
pub struct OrphanedWorkers {
    workers: Vec<ProcessHandle>,
    /// When those that still run are killed; none before the fleet runs.
    kill_at: Option<Duration>,
}

impl OrphanedWorkers {
    /// Finds those that are written down in this folder, and tells them to leave; one that drains already goes on.
    ///
    /// The caller holds the folder's lock, so that none of them has a supervisor.
    pub fn find(folder: &Path) -> Self {
        let mut text = String::new();
        if let Some(file) = path::open_private_read_only(&folder.join(WORKERS_FILE)) {
            // A list that is not text names no worker.
            let _ = file.take(READ_MAX).read_to_string(&mut text);
        }
        let boot = process_identity::boot_id().unwrap_or_default();
        let workers: Vec<_> = parse(&text, &boot).filter_map(open_handle).collect();
        for worker in &workers {
            let pid = worker.pid().as_raw();
            tracing::warn!(pid, "draining a worker of the previous fleet");
            send_signal(worker, Signal::SIGTERM);
        }
        Self { workers, kill_at: None }
    }

    /// Whether there are any.
    pub fn has_workers(&self) -> bool {
        !self.workers.is_empty()
    }

    /// Kills those that still listen: a worker that drains has stopped within moments, and what is put into the queue of
    /// one that is stuck is never answered. `listens` says what counts as that. Whether there were any.
    pub fn kill_listening(&mut self, listens: fn(&ProcessHandle) -> bool) -> bool {
        let listening: Vec<_> = self.workers.iter().filter(|worker| listens(worker)).collect();
        for worker in &listening {
            let pid = worker.pid().as_raw();
            tracing::warn!(pid, "killing a worker of the previous fleet: it keeps the port");
            send_signal(worker, Signal::SIGKILL);
        }
        !listening.is_empty()
    }

    /// Stores the list of workers, `own` and those of the previous fleet.
    pub(super) fn save_list(&self, folder: &Path, own: impl Iterator<Item = Pid>) {
        let all = own.chain(self.workers.iter().map(ProcessHandle::pid));
        if let Err(error) = write(folder, all) {
            tracing::warn!(%error, "cannot store the list of workers in run_dir: the next fleet would not find them: {error}");
        }
    }

    /// Whether the list is in this folder.
    pub(super) fn has_list(folder: &Path) -> bool {
        path::FileId::from_entry(&folder.join(WORKERS_FILE)).is_ok()
    }

    /// Kills those that should have exited long ago; when to look again.
    pub(super) fn kill_overdue(&mut self, drain_timeout: Duration, now: Duration) -> Option<Duration> {
        self.workers.retain(ProcessHandle::is_alive);
        if self.workers.is_empty() {
            return None;
        }
        let at = *self.kill_at.get_or_insert(now + drain_timeout + EXIT_GRACE * 2);
        if at > now {
            return Some(at);
        }
        for worker in self.workers.drain(..) {
            let pid = worker.pid().as_raw();
            tracing::warn!(pid, "killing a worker of the previous fleet: it did not exit in time");
            send_signal(&worker, Signal::SIGKILL);
        }
        None
    }
}

/// Gets hold of a process that still runs.
fn open_handle(worker: ProcessIdentity) -> Option<ProcessHandle> {
    let held = worker.open();
    if held.is_none() && ProcessIdentity::from_pid(worker.pid) == Some(worker) {
        let pid = worker.pid.as_raw();
        tracing::warn!(
            pid,
            "a worker of the previous fleet still runs and cannot be signalled (pidfd_open): it exits by itself"
        );
    }
    held
}

fn send_signal(worker: &ProcessHandle, signal: Signal) {
    if let Err(error) = worker.send(signal) {
        tracing::error!(pid = worker.pid().as_raw(), %signal, %error, "cannot signal a worker of the previous fleet");
    }
}

/// The file's processes, if it is of this boot. What is no line of it is passed over.
fn parse(text: &str, boot: &str) -> impl Iterator<Item = ProcessIdentity> {
    let mut lines = text.lines();
    let same = lines.next().is_some_and(|first| first == boot);
    lines.filter(move |_| same).filter_map(|line| {
        let mut fields = line.split(' ');
        let pid = Pid::from_raw(fields.next()?.parse().ok().filter(|pid| *pid > 1)?);
        let mut number = || fields.next()?.parse::<u64>().ok();
        Some(ProcessIdentity { pid, started: number()?, program: (number()?, number()?) })
    })
}

fn render(boot: &str, workers: impl Iterator<Item = ProcessIdentity>) -> String {
    let line = |ProcessIdentity { pid, started, program: (device, inode) }: ProcessIdentity| {
        format!("{pid} {started} {device} {inode}\n")
    };
    std::iter::once(format!("{boot}\n")).chain(workers.map(line)).collect()
}

/// Writes them down, all at once: a reader finds the old list or the new one.
fn write(folder: &Path, workers: impl Iterator<Item = Pid>) -> io::Result<()> {
    let boot =
        process_identity::boot_id().ok_or_else(|| io::Error::other("the kernel does not name its boot"))?;
    path::replace_file(
        &folder.join(WORKERS_FILE),
        render(&boot, workers.filter_map(ProcessIdentity::from_pid)).as_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;

    #[test]
    fn what_is_written_down_is_found_in_the_same_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), [process::pid(), Pid::from_raw(i32::MAX)].into_iter()).unwrap();
        let text = std::fs::read_to_string(folder.path().join(WORKERS_FILE)).unwrap();
        let (boot, own) =
            (process_identity::boot_id().unwrap(), ProcessIdentity::from_pid(process::pid()).unwrap());
        assert_eq!(parse(&text, &boot).collect::<Vec<_>>(), [own]);
        assert_eq!(parse(&text, "another").count(), 0);
        assert_eq!(parse("", "").count(), 0);
    }

    #[test]
    fn an_invalid_line_kills_no_process() {
        let text = "boot\n\n0 1 1 1\n-1 1 1 1\n1 1 1 1\n7\n7 x 1 1\n8 5 1\n9 5 6 7 8\nnoise\n";
        let found: Vec<_> = parse(text, "boot").map(|process| process.pid.as_raw()).collect();
        assert_eq!(found, [9]);
    }

    #[test]
    fn one_that_has_not_left_in_time_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let worker = ProcessIdentity::from_pid(pid).and_then(ProcessIdentity::open).unwrap();
        let mut leftovers = OrphanedWorkers { workers: vec![worker], kill_at: None };
        let (second, now) = (Duration::from_secs(1), Duration::from_secs(100));
        let at = now + second + EXIT_GRACE * 2;
        assert_eq!(leftovers.kill_overdue(second, now), Some(at));
        assert_eq!(leftovers.kill_overdue(second * 9, now + second), Some(at), "its time was set");
        assert_eq!(leftovers.kill_overdue(second, at), None);
        assert!(!child.wait().unwrap().success());
        assert!(!leftovers.kill_listening(ProcessHandle::is_listening));
    }
}
