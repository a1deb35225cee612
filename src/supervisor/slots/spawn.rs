//! Forks a worker into a slot.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::listener::SlotListeners;
use crate::listener::shared_queue::SharedQueue;
use crate::logging;
use crate::supervisor::settings::{WorkerHost, WorkerSpec};
use crate::sys::process::Pid;
use crate::sys::{application_fds, fd, fork, parent_exit, process};

/// Exit code of a worker that failed before its setup was complete.
const EXIT_SETUP_FAILED: u8 = 71;

/// What a new worker is made of, still the supervisor's own.
#[derive(Debug)]
pub(in crate::supervisor) struct SpawnRequest<'a> {
    pub(in crate::supervisor) slot: usize,
    pub(in crate::supervisor) cell: usize,
    pub(in crate::supervisor) generation: u64,
    pub(in crate::supervisor) listeners: &'a SlotListeners,
    pub(in crate::supervisor) shared_queue: Option<&'a SharedQueue>,
    pub(in crate::supervisor) lifeline: &'a OwnedFd,
}

/// Forks a worker; returns its process and the read end of its report.
///
/// # Errors
/// When the kernel refuses the pipe or the fork, or the fork law is broken.
pub(in crate::supervisor) fn spawn(
    given: &SpawnRequest<'_>,
    host: &dyn WorkerHost,
) -> io::Result<(Pid, OwnedFd)> {
    let supervisor = process::pid();
    let (report_read, report) = fd::pipe()?;
    let pid = fork::fork(move || {
        let set_up = || -> io::Result<WorkerSpec> {
            process::set_parent_death_signal(supervisor, parent_exit::PARENT_EXIT_SIGNAL)?;
            process::raise_oom_score();
            let spec = WorkerSpec {
                slot: given.slot,
                cell: given.cell,
                generation: given.generation,
                listeners: given.listeners.try_clone()?,
                shared_queue: given.shared_queue.map(SharedQueue::try_clone).transpose()?,
                status_pipe: report,
                lifeline: given.lifeline.try_clone()?,
            };
            application_fds::close_all_but(&descriptors(&spec))?;
            Ok(spec)
        };
        match set_up() {
            Ok(spec) => host.run_worker(spec),
            Err(error) => {
                tracing::error!(slot = given.slot, %error, "worker setup failed: {error}");
                EXIT_SETUP_FAILED
            }
        }
    })?;
    Ok((pid, report_read))
}

fn descriptors(spec: &WorkerSpec) -> Vec<RawFd> {
    let mut descriptors: Vec<_> = spec.listeners.all().map(AsRawFd::as_raw_fd).collect();
    descriptors.extend(spec.shared_queue.iter().flat_map(SharedQueue::descriptors));
    descriptors.extend([spec.status_pipe.as_raw_fd(), spec.lifeline.as_raw_fd()]);
    descriptors.extend(logging::log_fd());
    descriptors
}
