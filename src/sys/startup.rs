//! What this process was started with, brought to what a fleet needs; `docs/operations/process.md`.

use std::io;

use nix::sys::stat::{Mode, umask};

use crate::sys::process::Pid;
use crate::sys::{application_fds, fork, random, signal};

/// Bits that no file made here lacks or has, whatever the umask: its owner may always, and other users never
/// write.
const OWNER: Mode = Mode::S_IRWXU;
const OTHERS: Mode = Mode::S_IWOTH;

/// Prepares this process for any command.
///
/// Standard descriptors are open, and the end of a child is reported. To be called once, first thing: what is open now
/// is the application's.
///
/// # Errors
/// When something that nothing works without is missing; the error names it.
pub fn prepare_process() -> io::Result<()> {
    application_fds::open_standard_fds()?;
    // Where the kernel gives random numbers by a file only, the standard library keeps it open from its first use on:
    // what it opens for itself must stay open in the workers as well.
    let _ = std::hash::RandomState::new();
    let _ = random::number();
    application_fds::record_application_fds()?;
    signal::reset_sigchld()
}

/// Prepares this process for a fleet: the umask and `/proc`.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn prepare_fleet() -> io::Result<()> {
    let inherited = umask(Mode::empty());
    umask((inherited & !OWNER) | OTHERS);
    fork::thread_count().map(drop)
}

/// Whether this process has a terminal that can be closed under it; field 7 of `/proc/self/stat`, proc(5).
pub fn has_terminal() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let device = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split_ascii_whitespace().nth(4));
    device.is_some_and(|device| device != "0")
}

/// Whether that process leads the session of this one, as an interactive shell does for its jobs.
pub fn is_session_leader(pid: Pid) -> bool {
    nix::unistd::getsid(None).is_ok_and(|leader| leader == pid)
}
