//! What a worker does for its log: lines that could not be written at once, and rotations of the file.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::Signal;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::logging;
use crate::logging::LogWait;
use crate::sys::clock;
use crate::sys::sink::SinkTarget;

/// Time between two attempts where the kernel cannot report that there is room.
const ROOM_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Writes what waits as soon as there is room, and opens the file again whenever the supervisor signals that it
/// was renamed. It sleeps while no line waits.
pub(in crate::worker) async fn run(mut rotated: Signal) {
    let waiting = Arc::new(Notify::new());
    let wake = Arc::clone(&waiting);
    logging::on_backlog(move || wake.notify_one());
    loop {
        tokio::select! {
            signal = rotated.recv() => match signal {
                Some(()) => logging::reopen(),
                None => return,
            },
            () = wait_until_due(&waiting) => logging::flush(),
        }
    }
}

/// Waits until there is something to write, and room for it.
async fn wait_until_due(waiting: &Notify) {
    loop {
        match logging::pending() {
            None => waiting.notified().await,
            Some(LogWait::Writable(end)) => return wait_for_room(end).await,
            Some(LogWait::At(at)) => return sleep(at.saturating_sub(clock::monotonic())).await,
        }
    }
}

#[allow(
    deprecated,
    reason = "what takes its place is unsafe; this end owns its descriptor, or is standard error"
)]
async fn wait_for_room(end: SinkTarget) {
    // Registered for this wait only: a descriptor in epoll(7) would wake the loop whenever its reader reads.
    match AsyncFd::with_interest(end, Interest::WRITABLE) {
        Ok(end) => drop(end.writable().await),
        Err(_) => sleep(ROOM_RETRY_INTERVAL).await,
    }
}
