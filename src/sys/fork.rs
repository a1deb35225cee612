//! Fork without exec, the law that makes it safe, and a thread for the child that has no past.
//!
//! A forked child may use tokio only if its parent never did, and may use anything only if no other thread held
//! a lock at that moment. So [`fork`] refuses to run in a process that has a second thread.
//!
//! What libraries keep per thread, a fork copies: generators of random numbers above all, of which two workers would
//! draw the same numbers, whatever the library. So a process in between is forked, makes a thread, and it is that
//! thread which forks the child: only the thread that forks lives on in it, and this one has used nothing before. Then
//! the process in between ends, and the kernel makes the child that of the parent, which adopts orphans.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;
use std::{io, thread};

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};

use crate::sys::{clock, fd};

/// Exit code of a child that ended by a panic.
pub const EXIT_PANIC: u8 = 101;

/// Exit code of a child whose parent did not adopt it in time.
const EXIT_ABANDONED: u8 = 72;

/// How long a fork may take. It takes a millisecond, and longer on a host that stands still for a while.
const FORK_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two looks of a child whether it has its parent.
const ADOPTION_POLL_INTERVAL: Duration = Duration::from_micros(100);

/// Stack of the child's thread: what the first thread of a process usually has. Untouched pages cost nothing.
const STACK_SIZE: usize = 8 << 20;

/// Whether orphans become children of this process.
static IS_SUBREAPER: AtomicBool = AtomicBool::new(false);

/// Orphans become children of this process from now on.
pub(super) fn set_subreaper() {
    IS_SUBREAPER.store(true, Relaxed);
}

/// Threads of this process, as `/proc/self/task` lists them; proc(5).
///
/// # Errors
/// When `/proc` cannot be read.
pub fn thread_count() -> io::Result<usize> {
    let listed = std::fs::read_dir("/proc/self/task").map_err(|error| {
        let text = format!(
            "cannot read /proc/self/task ({error}): a fleet needs /proc mounted (mount -t proc proc /proc). It counts its \
             threads there before it forks, and sees there what its workers do"
        );
        io::Error::new(error.kind(), text)
    })?;
    Ok(listed.count())
}

/// Makes a child that runs `child` and ends with the code it returns.
///
/// The child never returns from this function and runs no destructor of what the caller owns: it shares the
/// caller's descriptors, and closing them is the first thing its code should see to. It has one thread, in which
/// nothing that is kept per thread was used before; where this process may not adopt orphans, it has a copy of this
/// thread instead, whose generator of random numbers is seeded anew.
///
/// # Errors
/// When a second thread runs in this process, or the kernel refuses a fork or a thread.
pub fn fork(child: impl FnOnce() -> u8) -> io::Result<Pid> {
    let threads = thread_count()?;
    if threads != 1 {
        let text = format!(
            "a process with {threads} threads must not fork: something started a thread in the supervisor"
        );
        return Err(io::Error::other(text));
    }
    if !IS_SUBREAPER.load(Relaxed) && nix::unistd::getpid().as_raw() != 1 {
        return fork_directly(child);
    }
    let parent = nix::unistd::getpid();
    let deadline = clock::monotonic() + FORK_TIMEOUT;
    let (read, write) = fd::pipe()?;
    // SAFETY: this process has one thread, so no lock is held and the child may call anything.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child: between } => {
            drop(write);
            let pid = receive_pid(read, deadline);
            if pid.is_err() {
                // No child is left behind: one that is adopted after the deadline ends by itself.
                let _ = nix::sys::signal::kill(between, nix::sys::signal::Signal::SIGKILL);
            }
            // It ends as soon as it has spoken.
            while nix::sys::wait::waitpid(between, None) == Err(Errno::EINTR) {}
            pid
        }
        ForkResult::Child => {
            drop(read);
            fork_from_thread(child, parent, deadline, write)
        }
    }
}

/// A child with a copy of this thread.
#[allow(clippy::disallowed_methods, reason = "the copy of this generator is what is seeded anew")]
fn fork_directly(child: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: as in `fork`, which has counted the threads.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => run_and_exit(move || match rand::rng().reseed() {
            Ok(()) => child(),
            Err(_) => EXIT_PANIC,
        }),
    }
}

/// Waits until the process in between has reported the child's pid.
///
/// It gives up only after a last look behind the deadline: a child that was adopted before that has been reported.
fn receive_pid(read: OwnedFd, deadline: Duration) -> io::Result<Pid> {
    let mut bytes = [0; 4];
    loop {
        let left = clock::until(deadline);
        if fd::wait_readable(&[read.as_fd()], Some(left))?[0] {
            break;
        }
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    std::fs::File::from(read).read_exact(&mut bytes)?;
    match i32::from_ne_bytes(bytes) {
        refused @ ..=0 => Err(io::Error::from_raw_os_error(-refused)),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// What a thread takes along although it is another thread's.
struct SendCell<T>(T);

// SAFETY: the thread that hands it over waits for the other one and does not touch it meanwhile.
unsafe impl<T> Send for SendCell<T> {}

/// What the process in between does: it makes the child, reports its pid and exits.
fn fork_from_thread(child: impl FnOnce() -> u8, parent: Pid, deadline: Duration, write: OwnedFd) -> ! {
    let between = nix::unistd::getpid();
    let waits = AtomicBool::new(false);
    let carried = SendCell(child);
    let work = || {
        // The other thread may still be in the allocator.
        while !waits.load(Acquire) {
            thread::yield_now();
        }
        // As a whole, or only what is in it would be carried.
        let SendCell(child) = { carried };
        // SAFETY: the only other thread of this process waits for this one and holds nothing.
        match unsafe { nix::unistd::fork() } {
            Ok(ForkResult::Parent { child }) => child.as_raw(),
            Ok(ForkResult::Child) => {
                run_and_exit(
                    move || if adopted_by(parent, between, deadline) { child() } else { EXIT_ABANDONED },
                )
            }
            Err(refused) => -(refused as i32),
        }
    };
    let builder = thread::Builder::new().name(process_name()).stack_size(STACK_SIZE);
    // SAFETY: what it borrows outlives it, because it is joined below, and this function never returns.
    let thread = unsafe { builder.spawn_unchecked(work) };
    waits.store(true, Release);
    let reply = match thread.map(thread::JoinHandle::join) {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) => -libc::EIO,
        Err(refused) => -refused.raw_os_error().unwrap_or(libc::EAGAIN),
    };
    let _ = std::fs::File::from(write).write_all(&reply.to_ne_bytes());
    // SAFETY: ends this process at once; exit handlers and destructors belong to the process that forked it.
    unsafe { libc::_exit(0) }
}

/// The name that `ps` shows, which a thread that is given none or another one would change.
fn process_name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    name.trim_end().replace('\0', "")
}

/// Waits until the process in between is gone; whether `parent` has this one then. It has not if it has ended, too.
///
/// After the deadline the parent kills the process in between, and may have this one without knowing of it.
fn adopted_by(parent: Pid, between: Pid, deadline: Duration) -> bool {
    while nix::unistd::getppid() == between && clock::monotonic() < deadline {
        thread::sleep(ADOPTION_POLL_INTERVAL);
    }
    nix::unistd::getppid() == parent && clock::monotonic() < deadline
}

/// Ends this process with the code that `life` returns.
fn run_and_exit(life: impl FnOnce() -> u8) -> ! {
    let code = std::panic::catch_unwind(AssertUnwindSafe(life)).unwrap_or(EXIT_PANIC);
    // SAFETY: ends this process at once; exit handlers and destructors belong to the process that forked.
    unsafe { libc::_exit(i32::from(code)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_second_thread_must_not_fork() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = thread::spawn(move || stopped.recv());
        let refused = fork(|| 0).unwrap_err().to_string();
        assert!(refused.contains("must not fork"), "{refused}");
        drop(stop);
        assert!(thread.join().unwrap().is_err());
    }

    #[test]
    fn a_child_that_is_adopted_too_late_is_abandoned() {
        let (parent, gone) = (nix::unistd::getppid(), Pid::from_raw(i32::MAX));
        assert!(adopted_by(parent, gone, clock::monotonic() + FORK_TIMEOUT));
        assert!(!adopted_by(parent, gone, clock::monotonic()));
        assert!(!adopted_by(gone, parent, clock::monotonic()));
    }
}
