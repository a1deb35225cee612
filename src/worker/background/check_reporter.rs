//! Reports the application's checks to the supervisor while it wants them: in the first worker of a rollout, and in the
//! one that this would replace.

use std::fs::File;
use std::io;
use std::io::Write;
use std::sync::Arc;

use crate::http::checks::AppChecks;
use crate::scoreboard::Scoreboard;
use crate::status::check_result::CheckResult;
use crate::sys::clock;
use crate::worker::background::heartbeat::HEARTBEAT_TICKS;
use crate::worker::interval;

/// Where a worker's checks are reported, and whether they are to be.
pub(in crate::worker) struct CheckReporter {
    pub(in crate::worker) checks: Arc<AppChecks>,
    pub(in crate::worker) status_pipe: File,
    pub(in crate::worker) scoreboard: Arc<Scoreboard>,
    pub(in crate::worker) slot: usize,
    pub(in crate::worker) cell: usize,
}

impl CheckReporter {
    /// Reports whenever it is wanted, as long as the worker lives.
    ///
    /// # Cancel safety
    /// A report whose end is missing counts for nothing.
    pub(in crate::worker) async fn run(mut self) {
        let mut ticks = interval::aligned_interval(HEARTBEAT_TICKS * clock::TICK);
        loop {
            let now_ms = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX);
            if self.scoreboard.cell(self.slot, self.cell).are_checks_requested(now_ms) {
                self.report().await;
            }
            ticks.tick().await;
        }
    }

    async fn report(&mut self) {
        for (name, failure) in self.checks.results().await {
            if self.send(CheckResult::new(name, failure).to_line()).is_err() {
                // The supervisor is slow. Without its last line this report counts for nothing; the next one comes soon.
                return;
            }
        }
        let _ = self.send(CheckResult::END_LINE.to_owned());
    }

    /// Writes a line in one piece: a backtrace may be written beside it.
    fn send(&mut self, mut line: String) -> io::Result<()> {
        line.push('\n');
        self.status_pipe.write_all(line.as_bytes())
    }
}
