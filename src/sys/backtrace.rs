//! Where a worker stands, reported without ending or stopping it.
//!
//! A hung thread may hold any lock, the allocator's too, and it may go on at any moment: so it must not be the one to
//! walk its stack, look up names and write. It forks a copy of its process instead, one system call, and the copy reports.
//! If the copy waits for a lock for ever, or crashes, the worker does not notice; an alarm ends the copy.

use std::backtrace::Backtrace;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};

use crate::sys::fd;
use crate::sys::fd::Interest;
use crate::sys::process::Pid;

/// What each line of a backtrace begins with on the pipe.
pub const FRAME_PREFIX: &str = "frame ";

/// The line after its last one.
pub const END_LINE: &str = "frames end";

/// The request. A process without a handler ignores this signal, so that a request that comes too early does no harm.
const REQUEST: Signal = Signal::SIGURG;

/// Longest line of a backtrace: with its end it is written in one piece (`PIPE_BUF`, pipe(7)), never into another line.
const LINE_MAX: usize = 2048;

/// Seconds that a copy may take; names of an unoptimised program are looked up in hundreds of megabytes.
const ALARM_SECONDS: libc::c_uint = 30;

/// How much less important the copy is than what serves.
const NICE: libc::c_int = 10;

/// Where the copies write; none before `report_on_request`.
static SINK_FD: AtomicI32 = AtomicI32::new(-1);

/// From now on this process writes to `report`, line by line, where its first thread stands, on every request.
///
/// This is one of the two places where a signal handler does work; see the module for what makes it safe.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn report_on_request(report: OwnedFd) -> io::Result<()> {
    // Never closed: a number that was used again would have the copy write into a visitor's connection.
    SINK_FD.store(report.into_raw_fd(), Relaxed);
    let action = SigAction::new(SigHandler::Handler(requested), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler makes one system call in this process; all else it does happens in a copy of it.
    unsafe { nix::sys::signal::sigaction(REQUEST, &action) }?;
    Ok(())
}

/// Asks a process where its first thread stands; that it is gone already is no error.
///
/// # Errors
/// When this process may not signal that one.
pub fn request(pid: Pid) -> io::Result<()> {
    let number = pid.as_raw();
    // To the thread and not to the process: another thread would report itself.
    // SAFETY: sends a signal, tgkill(2).
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, number, number, REQUEST as libc::c_int) };
    match (sent, nix::errno::Errno::last()) {
        (0, _) | (_, nix::errno::Errno::ESRCH) => Ok(()),
        (_, refused) => Err(refused.into()),
    }
}

extern "C" fn requested(_: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    // The copy is the supervisor's child, which reaps it: the worker's own loop may wait for other children.
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: a plain fork of this thread, clone(2), without what the C library's `fork` locks. The copy never returns.
    let copy = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    if copy == 0 {
        write_and_exit();
    }
    nix::errno::Errno::set_raw(errno);
}

/// All that the copy does.
fn write_and_exit() -> ! {
    let report = SINK_FD.load(Relaxed);
    prepare(report);
    // A panic must not leave the handler.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let text = Backtrace::force_capture().to_string();
        let _ = write_frames(report, strip_handler_frames(&text));
    }));
    // SAFETY: ends this process at once; exit handlers and destructors belong to the worker.
    unsafe { libc::_exit(0) }
}

/// Bounds the copy, and lets go of everything it shares with the worker: a connection that the worker closes is closed.
fn prepare(report: RawFd) {
    // SAFETY: the default action of SIGALRM ends this process, whatever the application made of it.
    unsafe { libc::signal(libc::SIGALRM, libc::SIG_DFL) };
    let _ = SigSet::from(Signal::SIGALRM).thread_unblock();
    // SAFETY: an alarm has no precondition.
    unsafe { libc::alarm(ALARM_SECONDS) };
    // The kernel kills the copy with the supervisor, because no process reads the report after that.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    // SAFETY: it concerns this process alone.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    for (first, last) in [(3, report - 1), (report + 1, RawFd::MAX)] {
        if first <= last {
            // SAFETY: this copy never uses or drops what owned these numbers in the worker. Where the kernel is too old
            // for close_range(2) they stay open until the copy ends.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

fn write_frames(report: RawFd, text: &str) -> io::Result<()> {
    // SAFETY: the number was given to `tell_on_request` to keep, and this copy of it has no other owner.
    let mut pipe = unsafe { File::from_raw_fd(report) };
    let lines = text
        .lines()
        .map(|line| format!("{FRAME_PREFIX}{}\n", truncate_line(line)))
        .chain([format!("{END_LINE}\n")]);
    for line in lines {
        // It never blocks, and takes a line of this length whole or not at all.
        while let Err(error) = pipe.write_all(line.as_bytes()) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
            fd::poll(&[(std::os::fd::AsFd::as_fd(&pipe), Interest::Write)], None)?;
        }
    }
    Ok(())
}

fn truncate_line(line: &str) -> &str {
    &line[..line.floor_char_boundary(LINE_MAX)]
}

/// The part of a backtrace below this handler.
///
/// The frames of the handler end with its own name, after which one nameless frame of the kernel's may follow.
fn strip_handler_frames(backtrace: &str) -> &str {
    let own = backtrace.rfind("sys::backtrace::requested").map(|at| &backtrace[at..]);
    let is_frame = |line: &str| line.split_once(": ").is_some_and(|(n, _)| n.trim().parse::<u32>().is_ok());
    let Some(mut rest) = own.and_then(|own| own.split_once('\n')).map(|(_, rest)| rest) else {
        return backtrace;
    };
    while let Some((line, after)) = rest.split_once('\n') {
        if is_frame(line) {
            break;
        }
        rest = after;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handlers_own_frames_are_left_out() {
        let text = "   0: std::backtrace::create\n             at x.rs:1\n   1: regatta::sys::backtrace::requested\n             at y.rs:2\n   2: <unknown>\n   3: app::stuck\n             at z.rs:3\n   4: main";
        assert_eq!(
            strip_handler_frames(text),
            "   2: <unknown>\n   3: app::stuck\n             at z.rs:3\n   4: main"
        );
        assert_eq!(strip_handler_frames("   0: other\n   1: main"), "   0: other\n   1: main");
    }

    #[test]
    fn a_line_of_a_backtrace_is_cut_where_a_letter_begins() {
        assert_eq!(truncate_line("frame"), "frame");
        let long = "ä".repeat(LINE_MAX);
        assert_eq!(truncate_line(&long).len(), LINE_MAX);
        assert!(truncate_line(&format!("x{long}")).len() < LINE_MAX);
    }

    #[test]
    fn a_request_to_a_process_that_is_gone_is_no_error() {
        request(Pid::from_raw(i32::MAX)).unwrap();
    }
}
