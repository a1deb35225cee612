//! What the service manager is told, and when.

use std::time::Duration;

use crate::supervisor::Host;
use crate::supervisor::Supervisor;
use crate::supervisor::notify::Message;
use crate::supervisor::notify::Notifier;
use crate::supervisor::plan::LEAVE_MARGIN;
use crate::sys::proc;

/// How long the private Redis, and what else ends with a fleet, may take after the workers.
const AFTERWARDS: Duration = Duration::from_secs(15);

/// The manager that this process was started by, if one was.
pub(super) fn manager(host: &dyn Host) -> Notifier {
    Notifier::new(&host.inputs(0).environment, proc::pid().as_raw().unsigned_abs()).unwrap_or_else(|error| {
        tracing::warn!(%error, "the service manager cannot be told anything: {error}");
        Notifier::default()
    })
}

impl Supervisor<'_> {
    /// Everything is as it should be, at first or again.
    pub(super) fn tell_ready(&self, status: &str) {
        self.service.send(&Message::Ready { pid: proc::pid().as_raw().unsigned_abs(), status });
    }

    /// A new generation is on its way; [`Supervisor::tell_ready`] says when it has ended, whichever way.
    pub(super) fn tell_reloading(&self, status: &str, now: Duration) {
        self.service.send(&Message::Reloading { now, status });
    }

    /// The fleet drains, and how long that may take.
    pub(super) fn tell_stopping(&self) {
        let within = self.settings.drain_timeout + LEAVE_MARGIN + AFTERWARDS;
        self.service.send(&Message::Stopping { within });
    }
}
