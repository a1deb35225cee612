//! What a worker does for its log: lines that could not be written at once, and rotations of the file.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::Signal;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::sys::sink::End;
use crate::sys::time;
use crate::telemetry;
use crate::telemetry::Pending;

/// How often is looked where the kernel cannot tell when there is room.
const LOOK: Duration = Duration::from_secs(1);

/// Writes what waits as soon as there is room, and opens the file again whenever the supervisor says that it was
/// renamed. It sleeps while no line waits.
pub(super) async fn follow(mut rotated: Signal) {
    let waiting = Arc::new(Notify::new());
    let wake = Arc::clone(&waiting);
    telemetry::on_backlog(move || wake.notify_one());
    loop {
        tokio::select! {
            order = rotated.recv() => match order {
                Some(()) => telemetry::reopen(),
                None => return,
            },
            () = due(&waiting) => telemetry::flush(),
        }
    }
}

/// Waits until there is something to write, and room for it.
async fn due(waiting: &Notify) {
    loop {
        match telemetry::pending() {
            None => waiting.notified().await,
            Some(Pending::Room(end)) => return room(end).await,
            Some(Pending::At(at)) => return sleep(at.saturating_sub(time::monotonic())).await,
        }
    }
}

#[allow(
    deprecated,
    reason = "what takes its place is unsafe; this end owns its descriptor, or is standard error"
)]
async fn room(end: End) {
    // Registered for this wait only: a descriptor in epoll(7) would wake the loop whenever its reader reads.
    match AsyncFd::with_interest(end, Interest::WRITABLE) {
        Ok(end) => drop(end.writable().await),
        Err(_) => sleep(LOOK).await,
    }
}
