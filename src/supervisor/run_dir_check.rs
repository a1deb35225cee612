//! Checks that the files by which the fleet is found are there, and puts back what a cleaner removed.

use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::control::events::FleetEvent;
use crate::control::server::ControlServer;
use crate::supervisor::effects::event_now;
use crate::supervisor::run_dir::RunDir;

/// Time between two checks. The loop wakes up as often for its rates, so that no check wakes it.
const CHECK_INTERVAL: Duration = Duration::from_millis(900);

/// The run folder, and what is recorded between two checks.
#[derive(Debug)]
pub(super) struct RunDirCheck<'a> {
    pub(super) folder: &'a RunDir,
    due: Duration,
    /// What could not be put back; it is reported once.
    reported: Option<String>,
}

impl<'a> RunDirCheck<'a> {
    pub(super) fn new(folder: &'a RunDir) -> Self {
        Self { folder, due: Duration::ZERO, reported: None }
    }

    /// Whether it is time for the next check.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.due
    }

    /// Puts back what is missing; whether all is there again, and what is to be reported.
    pub(super) fn restore(
        &mut self,
        control: &mut ControlServer,
        now: Duration,
    ) -> (bool, Option<FleetEvent>) {
        self.due = now + CHECK_INTERVAL;
        match self.folder.restore_files(control) {
            Ok(restored) => {
                self.reported = None;
                let (what, folder) = (restored.join(", "), self.folder.path().display());
                let message = format!("{what} of {folder} (run_dir) had been removed and is there again");
                let event = (!restored.is_empty()).then(|| {
                    tracing::warn!("{message}");
                    event_now(EventKind::RunDirRestored, message)
                });
                (true, event)
            }
            Err(trouble) => {
                let is_new = self.reported.as_ref() != Some(&trouble);
                self.reported = Some(trouble.clone());
                let event = is_new.then(|| {
                    tracing::error!("{trouble}; operators may not find this fleet until it is repaired");
                    event_now(EventKind::RunDirLost, trouble)
                });
                (false, event)
            }
        }
    }
}
