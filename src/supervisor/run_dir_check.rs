//! Looks now and then whether the files are there that others find the fleet by, and puts back what a cleaner removed.

use std::time::Duration;

use crate::supervisor::Supervisor;
use crate::supervisor::effects::event_now;
use crate::supervisor::slots::plan::DesiredState;

/// Time between two looks. The loop wakes up as often for its figures, so that no look wakes it.
const CHECK_INTERVAL: Duration = Duration::from_millis(900);

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(super) struct RunDirCheck {
    due: Duration,
    /// What could not be put back; it is said once.
    reported: Option<String>,
}

impl Supervisor<'_> {
    /// Looks, if it is time, and puts back what is missing.
    pub(super) fn restore_run_dir(&mut self, now: Duration) {
        if now < self.run_dir_check.due || self.desired_state != DesiredState::Running {
            return;
        }
        self.run_dir_check.due = now + CHECK_INTERVAL;
        let trouble = match self.run_dir.restore_files(&mut self.control) {
            Ok(restored) if restored.is_empty() => None,
            Ok(restored) => {
                let (what, folder) = (restored.join(", "), self.run_dir.path().display());
                let message = format!("{what} of {folder} (run_dir) had been removed and is there again");
                tracing::warn!("{message}");
                self.record_event(event_now("run_dir_restored", message));
                None
            }
            Err(trouble) => Some(trouble),
        };
        if let (Some(trouble), true) = (&trouble, self.run_dir_check.reported != trouble) {
            tracing::error!("{trouble}; operators may not find this fleet until that is mended");
            self.record_event(event_now("run_dir_lost", trouble.clone()));
        }
        let lost = trouble.is_some();
        self.run_dir_check.reported = trouble;
        if !lost && !self.has_worker_list() {
            self.save_worker_list();
        }
        self.restore_private_socket(now);
    }
}
