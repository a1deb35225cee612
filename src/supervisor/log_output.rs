//! The loop's wait, in which lines of the log that could not be written at once are written.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::logging;
use crate::logging::LogWait;
use crate::sys::fd::Interest;
use crate::sys::{clock, fd};

/// Waits for one of `fds`, until `wake_at`, or until lines of the log that wait can be written, and writes them.
pub(super) fn wait_for_fds<'a>(
    fds: impl Iterator<Item = (BorrowedFd<'a>, Interest)>,
    wake_at: Option<Duration>,
    now: Duration,
) -> io::Result<()> {
    let pending = logging::pending();
    let (end, flush_at) = match &pending {
        Some(LogWait::Writable(end)) => (Some(end), None),
        Some(LogWait::At(at)) => (None, Some(*at)),
        None => (None, None),
    };
    let timeout = wake_at.into_iter().chain(flush_at).min().map(|at| at.saturating_sub(now));
    let end = end.map(|end| (end.as_fd(), Interest::Write));
    let mut waited: Vec<_> = end.into_iter().collect();
    fds.for_each(|fd| waited.push(fd));
    let ready = fd::poll(&waited, timeout)?;
    let has_room = end.is_some() && ready.first().is_some_and(|end| end.any());
    // Asking a full log again before it has room would be taken for room that is none.
    if has_room || flush_at.is_some_and(|at| at <= clock::monotonic()) {
        logging::flush();
    }
    Ok(())
}
