//! Work that any worker of the fleet takes from a queue.

use std::time::Duration;

use crate::config::setting::settings;
use crate::config::settings::reference_phrases::DURATION;
use crate::config::value::{basic, bounds};

settings! {
    /// Work that any worker of the fleet takes from a queue.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct TasksConfig {
        /// Tasks that run at once in a worker; 0: this instance runs none.
        concurrency: usize = required(
            "tasks.concurrency", bounds::task_concurrency; "1", "a number from 0 to 64", Reload,
            formerly = &["tasks.running"]
        );
        /// Tasks that may wait in the fleet; then 503.
        max_queued: u64 = required(
            "tasks.max_queued", |text| basic::number(text, 1_000_000);
            "1000", "a number from 1 to 1000000", Reload,
            formerly = &["tasks.queue"]
        );
        /// Times a task is begun before it is given up.
        max_attempts: u64 = required(
            "tasks.max_attempts", |text| basic::number(text, 100); "3", "a number from 1 to 100", Reload,
            formerly = &["tasks.attempts"]
        );
        /// A task whose worker was not heard of for this long is taken over.
        lease: Duration = required(
            "tasks.lease", bounds::task_lease; "3s", "a duration from 1s to 1m", Reload
        );
        /// A task that runs for longer has failed.
        timeout: Duration = required("tasks.timeout", basic::positive_duration; "10m", DURATION, Reload);
        /// A task and its result are forgotten this long after its end.
        retention: Duration = required(
            "tasks.retention", basic::positive_duration; "1h", DURATION, Reload,
            formerly = &["tasks.keep"]
        );
    }
}
