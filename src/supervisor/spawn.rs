//! Forks a worker into a slot.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;

use crate::listener::SlotListeners;
use crate::sys::fd;
use crate::sys::fork;
use crate::sys::proc;
use crate::sys::proc::Pid;
use crate::sys::signal::Signal;

/// Exit code of a worker that could not even take its seat.
const SEATLESS: u8 = 71;

/// What a new worker is given; everything else it inherited is closed.
#[derive(Debug)]
pub struct Seat {
    /// Index of its slot.
    pub slot: usize,
    /// Its cell in the slot's row.
    pub cell: usize,
    /// Generation it belongs to.
    pub generation: u64,
    /// The slot's listeners.
    pub listeners: SlotListeners,
    /// Pipe to the supervisor: `ready`, or `failed` and the reason, each a line.
    pub report: OwnedFd,
    /// Pipe that is readable (at its end) as soon as the supervisor is gone.
    pub lifeline: OwnedFd,
}

/// A worker's whole life: from its seat to its exit code.
pub type Entry<'a> = &'a dyn Fn(Seat) -> u8;

/// Forks a worker; returns its process and the read end of its report.
///
/// # Errors
/// When the kernel refuses the pipe or the fork, or the fork law is broken.
pub(super) fn spawn(
    slot: usize,
    cell: usize,
    generation: u64,
    listeners: &SlotListeners,
    lifeline: &OwnedFd,
    entry: Entry<'_>,
) -> io::Result<(Pid, OwnedFd)> {
    let supervisor = proc::pid();
    let (report_read, report) = fd::pipe()?;
    let pid = fork::fork(move || {
        let seated = || -> io::Result<Seat> {
            proc::die_with(supervisor, Signal::SIGTERM)?;
            let seat = Seat {
                slot,
                cell,
                generation,
                listeners: listeners.try_clone()?,
                report,
                lifeline: lifeline.try_clone()?,
            };
            fd::close_all_but(&descriptors(&seat))?;
            Ok(seat)
        };
        match seated() {
            Ok(seat) => entry(seat),
            Err(_) => SEATLESS,
        }
    })?;
    Ok((pid, report_read))
}

fn descriptors(seat: &Seat) -> Vec<RawFd> {
    let mut descriptors: Vec<_> = seat.listeners.public.iter().map(AsRawFd::as_raw_fd).collect();
    descriptors.extend([
        seat.listeners.admin.as_raw_fd(),
        seat.report.as_raw_fd(),
        seat.lifeline.as_raw_fd(),
    ]);
    descriptors
}
