//! Looks now and then whether the files are there that others find the fleet by, and puts back what a cleaner removed.

use std::time::Duration;

use crate::supervisor::Supervisor;
use crate::supervisor::history::happened;
use crate::supervisor::plan::Target;

/// Time between two looks. The loop wakes up as often for its figures, so that no look wakes it.
const LOOK: Duration = Duration::from_millis(900);

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    due: Duration,
    /// What could not be put back; it is said once.
    told: Option<String>,
}

impl Supervisor<'_> {
    /// Looks, if it is time, and puts back what is missing.
    pub(super) fn keep_places(&mut self, now: Duration) {
        if now < self.keeper.due || self.target != Target::Serve {
            return;
        }
        self.keeper.due = now + LOOK;
        let trouble = match self.run_dir.keep(&mut self.control) {
            Ok(restored) if restored.is_empty() => None,
            Ok(restored) => {
                let (what, folder) = (restored.join(", "), self.run_dir.path().display());
                let sentence = format!("{what} of {folder} (run_dir) had been removed and is there again");
                tracing::warn!("{sentence}");
                self.note(happened("run_dir_restored", sentence));
                None
            }
            Err(trouble) => Some(trouble),
        };
        if let (Some(trouble), true) = (&trouble, self.keeper.told != trouble) {
            tracing::error!("{trouble}; operators may not find this fleet until that is mended");
            self.note(happened("run_dir_lost", trouble.clone()));
        }
        let lost = trouble.is_some();
        self.keeper.told = trouble;
        if !lost && !self.workers_are_written_down() {
            self.write_down_workers();
        }
        self.keep_private_socket(now);
    }
}
