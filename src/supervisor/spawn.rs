//! Forks a worker into a slot.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;

use crate::listener::SlotListeners;
use crate::listener::shared::SharedQueue;
use crate::supervisor::WorkerHost;
use crate::sys::fd;
use crate::sys::fork;
use crate::sys::open;
use crate::sys::orphan;
use crate::sys::proc;
use crate::sys::proc::Pid;
use crate::telemetry;

/// Exit code of a worker that could not even take its seat.
const EXIT_SETUP_FAILED: u8 = 71;

/// What a new worker is given. Everything else that the supervisor opened is closed; what the application had open
/// before its fleet began stays.
#[derive(Debug)]
pub struct WorkerSpec {
    /// Index of its slot.
    pub slot: usize,
    /// Its cell in the slot's row.
    pub cell: usize,
    /// Generation it belongs to.
    pub generation: u64,
    /// The slot's listeners.
    pub listeners: SlotListeners,
    /// The fleet's shared queue, where the kernel has given one.
    pub shared_queue: Option<SharedQueue>,
    /// Pipe to the supervisor, a line each: `ready`, or `failed` and the reason; `leaving`; `closed`;
    /// and where it stands, when it is asked.
    pub status_pipe: OwnedFd,
    /// Pipe that is readable (at its end) as soon as the supervisor is gone.
    pub lifeline: OwnedFd,
}

/// What a worker's seat is made of, still the supervisor's own.
#[derive(Debug)]
pub(super) struct SpawnRequest<'a> {
    pub(super) slot: usize,
    pub(super) cell: usize,
    pub(super) generation: u64,
    pub(super) listeners: &'a SlotListeners,
    pub(super) shared_queue: Option<&'a SharedQueue>,
    pub(super) lifeline: &'a OwnedFd,
}

/// Forks a worker; returns its process and the read end of its report.
///
/// # Errors
/// When the kernel refuses the pipe or the fork, or the fork law is broken.
pub(super) fn spawn(given: &SpawnRequest<'_>, host: &dyn WorkerHost) -> io::Result<(Pid, OwnedFd)> {
    let supervisor = proc::pid();
    let (report_read, report) = fd::pipe()?;
    let pid = fork::fork(move || {
        let set_up = || -> io::Result<WorkerSpec> {
            proc::set_parent_death_signal(supervisor, orphan::PARENT_EXIT_SIGNAL)?;
            proc::raise_oom_score();
            let spec = WorkerSpec {
                slot: given.slot,
                cell: given.cell,
                generation: given.generation,
                listeners: given.listeners.try_clone()?,
                shared_queue: given.shared_queue.map(SharedQueue::try_clone).transpose()?,
                status_pipe: report,
                lifeline: given.lifeline.try_clone()?,
            };
            open::close_all_but(&descriptors(&spec))?;
            Ok(spec)
        };
        match set_up() {
            Ok(spec) => host.run_worker(spec),
            Err(error) => {
                tracing::error!(slot = given.slot, %error, "worker cannot take its seat: {error}");
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
    descriptors.extend(telemetry::log_fd());
    descriptors
}
