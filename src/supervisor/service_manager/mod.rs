//! Messages to the service manager, and when they are sent.

pub(in crate::supervisor) mod protocol;

use std::time::Duration;

use crate::supervisor::service_manager::protocol::{ServiceMessage, ServiceNotifier};
use crate::supervisor::settings::WorkerHost;
use crate::supervisor::slots::plan::EXIT_GRACE;
use crate::sys::process;

/// How long the private Redis, and what else ends with a fleet, may take after the workers.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(15);

/// The manager that this process was started by, if one was.
pub(super) fn service_notifier(host: &dyn WorkerHost) -> ServiceNotifier {
    ServiceNotifier::new(&host.config_inputs(0).environment, process::pid().as_raw().unsigned_abs())
        .unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot notify the service manager: {error}");
            ServiceNotifier::default()
        })
}

/// Everything is as it should be, at first or again.
pub(super) fn notify_ready(manager: &ServiceNotifier, status: &str) {
    manager.send(&ServiceMessage::Ready { pid: process::pid().as_raw().unsigned_abs(), status });
}

/// A new generation is on its way; [`notify_ready`] follows when it has ended, whichever way.
pub(super) fn notify_reloading(manager: &ServiceNotifier, status: &str, now: Duration) {
    manager.send(&ServiceMessage::Reloading { now, status });
}

/// The fleet drains, and how long that may take.
pub(super) fn notify_stopping(manager: &ServiceNotifier, drain_timeout: Duration) {
    manager.send(&ServiceMessage::Stopping { within: drain_timeout + EXIT_GRACE + SHUTDOWN_GRACE });
}
