//! Signals as values: blocked, then read from a descriptor in the one loop. No handler does any work.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use nix::sys::signal::SigHandler;
use nix::sys::signal::SigSet;
use nix::sys::signal::SigmaskHow;
use nix::sys::signalfd::SfdFlags;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

pub use nix::sys::signal::Signal;

/// The signals of a set, readable as values; signalfd(2).
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks `signals` for this process and makes them readable.
    ///
    /// # Errors
    /// When the kernel refuses the descriptor.
    pub fn take(signals: &[Signal]) -> io::Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block()?;
        Ok(Self { fd: SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)? })
    }

    /// The next signal that has come, if any.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let Some(info) = self.fd.read_signal()? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo).unwrap_or(0);
        Ok(Signal::try_from(number).ok())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sends a signal; a process that is gone already is no error.
///
/// # Errors
/// When this process may not signal that one.
pub fn send(pid: Pid, signal: Signal) -> io::Result<()> {
    match nix::sys::signal::kill(pid, signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(refused) => Err(refused.into()),
    }
}

/// Sends a signal to a process that leads a group, and to all it started; that they are gone already is no error.
///
/// # Errors
/// When this process may not signal them.
pub fn send_group(leader: Pid, signal: Signal) -> io::Result<()> {
    match nix::sys::signal::killpg(leader, signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(refused) => Err(refused.into()),
    }
}

/// A write beyond the largest size a file may have (`RLIMIT_FSIZE`) is an error from now on, as one to a full disk is;
/// without this its signal ends the process.
///
/// # Errors
/// When the kernel refuses.
pub fn outlive_file_limits() -> io::Result<()> {
    // SAFETY: no handler is installed; the signal is ignored.
    unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
    Ok(())
}

/// Lets every signal through but these, as a newly forked worker needs it.
///
/// # Errors
/// When the kernel refuses the mask.
pub fn block_only(signals: &[Signal]) -> io::Result<()> {
    let set: SigSet = signals.iter().copied().collect();
    Ok(nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None)?)
}
