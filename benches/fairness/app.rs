//! The fleet that is measured with `listen.balance` on and off: the benchmark's own program, started again.

use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use nix::time::{ClockId, clock_gettime};
use regatta::{Context, Fleet, Worker};

use crate::pages::{hello, visit};

/// CPU time of a request that is work.
pub(crate) const WORK: Duration = Duration::from_millis(1);

/// Serves until it is told to stop.
pub(crate) fn serve() -> ExitCode {
    Fleet::new(app).run()
}

async fn app(_: Context) -> Router {
    Router::new().route("/hello", get(hello)).route("/", get(visit)).route("/work", get(work))
}

/// Keeps the worker's one thread, so that all other requests of this worker wait.
async fn work(worker: Worker) -> String {
    let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    if let Ok(begun) = used() {
        while used().is_ok_and(|used| used.saturating_sub(begun) < WORK) {
            std::hint::spin_loop();
        }
    }
    format!("Handled by worker {}\n", worker.pid())
}
