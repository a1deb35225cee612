//! Fork without exec, and the law that makes it safe.
//!
//! A forked child may use tokio only if its parent never did, and may use anything only if no other thread held
//! a lock at that moment. So [`fork`] refuses to run in a process that has a second thread.

use std::io;
use std::panic::AssertUnwindSafe;

use nix::unistd::ForkResult;
use nix::unistd::Pid;

/// Exit code of a child that ended by a panic.
pub const PANICKED: u8 = 101;

/// Threads of this process, as `/proc/self/task` lists them; proc(5).
///
/// # Errors
/// When `/proc` cannot be read.
pub fn threads() -> io::Result<usize> {
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
/// caller's descriptors, and closing them is the first thing its code should see to.
///
/// # Errors
/// When a second thread runs in this process, or the kernel refuses the fork.
pub fn fork(child: impl FnOnce() -> u8) -> io::Result<Pid> {
    let threads = threads()?;
    if threads != 1 {
        let text = format!(
            "a process with {threads} threads must not fork: something started a thread in the supervisor"
        );
        return Err(io::Error::other(text));
    }
    // SAFETY: this process has one thread, so no lock is held by anyone and the child may do what it likes.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = std::panic::catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
            // SAFETY: ends this process at once; exit handlers and destructors belong to the process that forked.
            unsafe { libc::_exit(i32::from(code)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_second_thread_must_not_fork() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        let refused = fork(|| 0).unwrap_err().to_string();
        assert!(refused.contains("must not fork"), "{refused}");
        drop(stop);
        assert!(thread.join().unwrap().is_err());
    }
}
