//! The last word of a worker that hangs: where it stood when it was sent SIGABRT.

use std::backtrace::Backtrace;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;

use nix::sys::signal::SaFlags;
use nix::sys::signal::SigAction;
use nix::sys::signal::SigHandler;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;

/// Says where the process stood: frames, the innermost first.
pub type Tell = fn(&str);

static TELL: OnceLock<Tell> = OnceLock::new();

/// From now on a SIGABRT has the thread that receives it (the first one, if it can) tell its backtrace before the
/// process ends by that signal.
///
/// This is the one place where a signal handler does work. It allocates and takes locks that the interrupted
/// code may hold: whoever sends the signal must follow it with SIGKILL after a while. Nothing is lost by that,
/// because the process is to end anyway.
///
/// # Errors
/// When the kernel refuses the handler, or there is one already.
pub fn tell_on_abort(tell: Tell) -> io::Result<()> {
    TELL.set(tell).map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
    // Reset first: an abort of the handler itself, or a second signal, ends the process at once.
    let action = SigAction::new(SigHandler::Handler(aborted), SaFlags::SA_RESETHAND, SigSet::empty());
    // SAFETY: the handler is a function of this program. It may deadlock or crash, as the contract above says.
    unsafe { nix::sys::signal::sigaction(Signal::SIGABRT, &action) }?;
    Ok(())
}

extern "C" fn aborted(_: libc::c_int) {
    // A panic must not leave the handler; the process ends in any case.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
        if let Some(tell) = TELL.get() {
            tell(&interrupted(&Backtrace::force_capture().to_string()));
        }
    }));
    // The signal is blocked while its handler runs, so it comes again at the return, and then by default.
    let _ = nix::sys::signal::raise(Signal::SIGABRT);
}

/// The part of a backtrace below this handler.
///
/// The frames of the handler end with its own name, after which one nameless frame of the kernel's may follow.
fn interrupted(backtrace: &str) -> String {
    let lines: Vec<_> = backtrace.lines().collect();
    let own = lines.iter().rposition(|line| line.contains("sys::abort::aborted"));
    let Some(own) = own else { return backtrace.to_owned() };
    let is_frame = |line: &&str| line.split_once(": ").is_some_and(|(n, _)| n.trim().parse::<u32>().is_ok());
    let rest = &lines[own + 1..];
    let first = rest.iter().position(is_frame).unwrap_or(rest.len());
    rest[first..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handlers_own_frames_are_left_out() {
        let text = "   0: std::backtrace::create\n             at x.rs:1\n   1: regatta::sys::abort::aborted\n             at y.rs:2\n   2: <unknown>\n   3: app::stuck\n             at z.rs:3\n   4: main";
        assert_eq!(
            interrupted(text),
            "   2: <unknown>\n   3: app::stuck\n             at z.rs:3\n   4: main"
        );
        assert_eq!(interrupted("   0: other\n   1: main"), "   0: other\n   1: main");
    }
}
