//! The end of a process whose parent is gone, whatever its own code does.
//!
//! The kernel sends the worker a signal when its supervisor ends; the handler starts a timer, and the timer kills. None
//! of it needs the event loop, which may be the very thing that is stuck.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicPtr, AtomicU64};
use std::time::Duration;
use std::{io, ptr};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};

/// What the kernel sends to a worker when its supervisor ends. Without a handler it ends the process, which is right for
/// one that has not begun to serve.
pub const PARENT_EXIT_SIGNAL: Signal = Signal::SIGPWR;

/// Time from the parent's end to the process's own, milliseconds.
static GRACE_MS: AtomicU64 = AtomicU64::new(0);

/// The timer that kills; `timer_create(2)`.
static TIMER: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());

/// From now on the kernel kills this process `grace` after its parent has ended. May be called again with another time.
///
/// This is one of the two places where a signal handler does work: it makes one system call that is allowed there.
///
/// # Errors
/// When the kernel has no timer for it; then the process ends as soon as its parent does.
pub fn exit_after_parent(grace: Duration) -> io::Result<()> {
    GRACE_MS.store(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), Relaxed);
    if !TIMER.load(Relaxed).is_null() {
        return Ok(());
    }
    // SAFETY: the structure is plain data, for which all zeroes is a value.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    let mut timer: libc::timer_t = ptr::null_mut();
    // SAFETY: both pointers are to variables of this function; the kernel writes the timer's number.
    nix::errno::Errno::result(unsafe {
        libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
    })?;
    TIMER.store(timer.cast(), Relaxed);
    let action =
        SigAction::new(SigHandler::Handler(handle_parent_exit), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler starts a timer and touches nothing else.
    unsafe { nix::sys::signal::sigaction(PARENT_EXIT_SIGNAL, &action) }?;
    Ok(())
}

extern "C" fn handle_parent_exit(_: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    let grace = Duration::from_millis(GRACE_MS.load(Relaxed));
    let value = libc::timespec {
        tv_sec: libc::time_t::try_from(grace.as_secs()).unwrap_or(libc::time_t::MAX),
        // Zero would stop the timer.
        tv_nsec: libc::c_long::from(grace.subsec_nanos().max(1)),
    };
    let once = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    let timer: libc::timer_t = TIMER.load(Relaxed).cast();
    // SAFETY: the timer was made before this handler was; timer_settime may be called here, signal-safety(7).
    unsafe { libc::timer_settime(timer, 0, &raw const once, ptr::null_mut()) };
    nix::errno::Errno::set_raw(errno);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::ForkResult;

    use super::*;

    #[test]
    fn the_timer_ends_a_process_that_does_nothing_about_it() {
        // SAFETY: the child makes only system calls before it is killed.
        match unsafe { nix::unistd::fork() }.unwrap() {
            ForkResult::Child => {
                let armed = exit_after_parent(Duration::from_secs(600)).is_ok()
                    && exit_after_parent(Duration::from_millis(50)).is_ok()
                    && nix::sys::signal::raise(PARENT_EXIT_SIGNAL).is_ok();
                if armed {
                    loop {
                        std::hint::spin_loop();
                    }
                }
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(1) }
            }
            ForkResult::Parent { child } => {
                let begin = Instant::now();
                let status = waitpid(child, None).unwrap();
                assert_eq!(status, WaitStatus::Signaled(child, Signal::SIGKILL, false));
                assert!(begin.elapsed() >= Duration::from_millis(50));
            }
        }
    }
}
