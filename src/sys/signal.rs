//! Signals as values: blocked, then read from a descriptor in the one loop. No handler does any work.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

pub use nix::sys::signal::Signal;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::sys::application_fds;

/// The signals of a set, readable as values; signalfd(2).
#[derive(Debug)]
pub struct SignalReader {
    fd: SignalFd,
}

/// A signal that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedSignal {
    /// Which one.
    pub signal: Signal,
    /// The process that sent it; none when the kernel did.
    pub sender: Option<Pid>,
}

impl SignalReader {
    /// Blocks these signals, and no others, for this process and makes them readable.
    ///
    /// What a parent left blocked or ignored would else stay so: a blocked or ignored signal survives fork and exec.
    ///
    /// # Errors
    /// When the kernel refuses the descriptor.
    pub fn block(signals: &[Signal]) -> io::Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None)?;
        reset_ignored();
        let opened = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        let fd = opened.map_err(super::named("signalfd"))?;
        application_fds::claim_opened(&fd);
        Ok(Self { fd })
    }

    /// The next signal that has come, if any.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn next(&self) -> io::Result<Option<ReceivedSignal>> {
        let Some(info) = self.fd.read_signal()? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo).unwrap_or(0);
        let sender = (info.ssi_code <= 0).then(|| Pid::from_raw(info.ssi_pid.cast_signed()));
        Ok(Signal::try_from(number).ok().map(|signal| ReceivedSignal { signal, sender }))
    }
}

impl AsFd for SignalReader {
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

/// Signals that stay ignored if they were when this process began.
///
/// A broken pipe is an error of the write for every Rust program. A hang-up that is ignored is what `nohup` asks for,
/// and leaving it so has the kernel tell it to the program after an upgrade too. Both are still read as values: the
/// kernel queues what is blocked, ignored or not.
const STAY_IGNORED: &[Signal] = &[Signal::SIGPIPE, Signal::SIGHUP];

/// Gives every signal that a parent left ignored its default action.
fn reset_ignored() {
    for number in 1..=libc::SIGRTMAX() {
        let stays = STAY_IGNORED.iter().any(|signal| *signal as i32 == number);
        if !stays && current_action(number).is_some_and(|action| action.sa_sigaction == libc::SIG_IGN) {
            // SAFETY: the default action is no handler. Numbers that the C library keeps for itself are refused.
            unsafe { libc::signal(number, libc::SIG_DFL) };
        }
    }
    // A handler of the application would never run here, but one flag of it hides the ends of children.
    let _ = reset_sigchld();
}

/// What this process does at a signal.
fn current_action(number: i32) -> Option<libc::sigaction> {
    // SAFETY: a struct of integers, for which all zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set; the kernel writes into the struct.
    let result = unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) };
    (result == 0).then_some(action)
}

/// Whether this process was started so that a hang-up does not end it, as `nohup` does.
pub fn ignores_hangup() -> bool {
    current_action(libc::SIGHUP).is_some_and(|action| action.sa_sigaction == libc::SIG_IGN)
}

/// Has the kernel keep the exit of a child until it is collected. A parent that ignores SIGCHLD leaves it ignored,
/// and then a child that ends is gone without a word.
///
/// # Errors
/// When the kernel refuses.
pub fn reset_sigchld() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action is no handler.
    unsafe { nix::sys::signal::sigaction(Signal::SIGCHLD, &default) }?;
    Ok(())
}

/// Lets every signal through, whatever a parent has blocked.
///
/// # Errors
/// When the kernel refuses the mask.
pub fn unblock_all() -> io::Result<()> {
    Ok(nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// Gives a program that is about to be executed what it expects: no signal is blocked, and none ignored.
///
/// Makes system calls only, so that it may run between fork and exec.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn reset_for_exec() -> io::Result<()> {
    for signal in STAY_IGNORED {
        // SAFETY: the default action is no handler.
        unsafe { nix::sys::signal::signal(*signal, SigHandler::SigDfl) }?;
    }
    unblock_all()
}

/// A write beyond the largest size a file may have (`RLIMIT_FSIZE`) is an error from now on, as one to a full disk is;
/// without this its signal ends the process.
///
/// # Errors
/// When the kernel refuses.
pub fn disarm_file_size_signal() -> io::Result<()> {
    install_noop_handler(Signal::SIGXFSZ)
}

/// Has these signals do nothing in this process, and lets all others through, as a worker needs it.
///
/// They are not blocked or ignored, because programs that the application starts would inherit that; a handler they do
/// not.
///
/// # Errors
/// When the kernel refuses.
pub fn install_noop_handlers(signals: &[Signal]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| install_noop_handler(*signal))?;
    install_noop_handler(Signal::SIGPIPE)?;
    unblock_all()
}

fn install_noop_handler(signal: Signal) -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(noop), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { nix::sys::signal::sigaction(signal, &action) }?;
    Ok(())
}

extern "C" fn noop(_: libc::c_int) {}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::ForkResult;

    use super::*;

    /// Runs this in a process of its own, so that no other test sees its signals; whether it returned true.
    fn apart(check: fn() -> bool) -> bool {
        // SAFETY: the child makes system calls and ends.
        match unsafe { nix::unistd::fork() }.unwrap() {
            // SAFETY: ends the child at once.
            ForkResult::Child => unsafe { libc::_exit(i32::from(!check())) },
            ForkResult::Parent { child } => waitpid(child, None).unwrap() == WaitStatus::Exited(child, 0),
        }
    }

    fn ignore(number: i32) {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }

    fn is(number: i32, handler: libc::sighandler_t) -> bool {
        current_action(number).is_some_and(|action| action.sa_sigaction == handler)
    }

    #[test]
    fn what_a_parent_ignored_is_reset_but_for_hang_ups_and_pipes() {
        assert!(apart(|| {
            let numbers: Vec<_> = (1..=31).filter(|n| ![libc::SIGKILL, libc::SIGSTOP].contains(n)).collect();
            numbers.iter().for_each(|number| ignore(*number));
            let taken = SignalReader::block(&[Signal::SIGTERM, Signal::SIGCHLD]).is_ok();
            let kept = [libc::SIGHUP, libc::SIGPIPE];
            taken
                && ignores_hangup()
                && numbers
                    .iter()
                    .all(|n| is(*n, if kept.contains(n) { libc::SIG_IGN } else { libc::SIG_DFL }))
        }));
    }

    #[test]
    fn only_what_is_taken_is_blocked_and_an_ignored_signal_is_still_read() {
        assert!(apart(|| {
            let _ = SigSet::all().thread_block();
            ignore(libc::SIGHUP);
            let Ok(signals) = SignalReader::block(&[Signal::SIGHUP, Signal::SIGTERM]) else { return false };
            let Ok(mask) = SigSet::thread_get_mask() else { return false };
            let sent = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGHUP).is_ok();
            let own = ReceivedSignal { signal: Signal::SIGHUP, sender: Some(nix::unistd::getpid()) };
            sent && signals.next().is_ok_and(|next| next == Some(own))
                && mask.contains(Signal::SIGTERM)
                && !mask.contains(Signal::SIGUSR1)
        }));
    }

    #[test]
    fn a_signal_that_does_nothing_is_default_in_another_program() {
        assert!(apart(|| {
            let _ = SigSet::all().thread_block();
            let done = install_noop_handlers(&[Signal::SIGINT, Signal::SIGHUP]).is_ok();
            let raised = nix::sys::signal::raise(Signal::SIGINT).is_ok();
            let script = "kill -INT $$; exit 3";
            let shell = std::process::Command::new("sh").args(["-c", script]).status();
            let interrupted = shell.is_ok_and(|status| {
                std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGINT)
            });
            done && raised && interrupted
        }));
    }
}
