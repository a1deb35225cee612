//! How many workers there are, and the supervisor's patience with them.

use std::time::Duration;

use crate::config::setting::settings;
use crate::config::settings::reference_phrases::{COUNT, DURATION, HANG_KILL, MEMORY, PERCENT, REQUESTS};
use crate::config::value::choice::{AutoscaleMode, WorkerCount};
use crate::config::value::{basic, bounds, choice};

settings! {
    /// How many workers, and the supervisor's patience with them.
    #[derive(Debug, Clone)]
    struct WorkersConfig {
        /// Number of workers.
        ///
        /// Auto: cores that affinity and the cgroup's quota allow, counted at start, reload and upgrade.
        count: WorkerCount = required(
            "workers.count", choice::worker_count; "auto", "auto, or a number from 1 to 1024", Reload,
            variable = "WEB_CONCURRENCY"
        );
        /// How the load changes the number of workers.
        autoscale: AutoscaleConfig = section();
        /// Longest time until a new worker is READY.
        ///
        /// A worker that is not READY by then is killed and counts as a boot failure.
        boot_timeout: Duration = required(
            "workers.boot_timeout", basic::positive_duration; "30s", DURATION, Reload
        );
        /// The first worker of a reload or upgrade must serve this long before the others follow.
        ///
        /// The first worker of a reload or upgrade must serve this long before its old one leaves and the other slots
        /// follow; one that dies earlier ends the rollout, and the old generation serves on.
        canary_period: Duration = required(
            "workers.canary_period", basic::duration; "1500ms", DURATION, Reload,
            formerly = &["workers.probation"]
        );
        /// A worker in which nothing moves gets a spare beside it.
        ///
        /// A worker in which nothing has moved for this long, though it was given CPU, gets a spare: a second worker in
        /// its slot that serves the slot's queue at once; the log shows where the first one stands; if that moves again
        /// it drains, and nothing is lost; 0: never, as for work with a debugger.
        hang_timeout: Duration = required(
            "workers.hang_timeout", bounds::hang_timeout; "3s", "0 for never, or a duration from 1s", Reload
        );
        /// A worker in which nothing moves is killed.
        ///
        /// A worker in which nothing has moved for this long is killed; 0: never.
        hang_kill: Duration = required("workers.hang_kill", basic::duration; "30s", HANG_KILL, Reload);
        /// When a worker is replaced although it serves; none: never.
        recycling: RecyclingConfig = section();
    }

    /// How the load changes the number of workers.
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct AutoscaleConfig {
        /// Fewest workers; below workers.max the load decides how many.
        ///
        /// Fewest workers; where it is less than `workers.max`, the load decides how many there are.
        min: Option<usize> = optional(
            "workers.min", bounds::slot_count; "", COUNT, Reload,
            unset = "`workers.count`"
        );
        /// Most workers; workers.count if unset, as workers.min.
        ///
        /// Most workers.
        max: Option<usize> = optional(
            "workers.max", bounds::slot_count; "", COUNT, Reload,
            unset = "`workers.count`"
        );
        /// Follow the load between min and max, or only say so.
        ///
        /// Dry-run: decisions are logged with their reasons, and nothing is done.
        mode: AutoscaleMode = required(
            "autoscale.mode", choice::autoscale_mode; "on", "on or dry-run", Reload,
            formerly = &["workers.autoscale"]
        );
        /// Time over which the workers' busyness is averaged.
        ///
        /// Time over which the workers' busyness (the share of time their event loops are at work) is averaged.
        window: Duration = required(
            "autoscale.window", bounds::autoscale_window; "10s", "a duration from 1s", Reload,
            formerly = &["workers.window"]
        );
        /// Busier than this on average: one worker more.
        ///
        /// Busier on average: one worker more; so do more than 33 connections that wait, at once.
        busy_max: f64 = required(
            "autoscale.busy_max", basic::percent; "50%", PERCENT, Reload,
            formerly = &["workers.busy_max"]
        );
        /// Less busy for several windows: one worker less.
        ///
        /// Less busy for three windows in a row, or for more if stopped workers were soon wanted again: one worker less.
        busy_min: f64 = required(
            "autoscale.busy_min", basic::percent; "25%", PERCENT, Reload,
            formerly = &["workers.busy_min"]
        );
    }

    /// When a worker is replaced although it serves; none: never.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    struct RecyclingConfig {
        /// A worker is renewed after so many requests.
        ///
        /// A worker is renewed after so many requests; 0: never.
        max_requests: Option<u64> = required(
            "workers.max_requests", basic::number_or_none; "0", REQUESTS, Reload
        );
        /// Up to so many more, different for each worker.
        ///
        /// Up to so many more, different for each worker, so that they are not all renewed at once.
        max_requests_jitter: u64 = required(
            "workers.max_requests_jitter", basic::number_or_zero; "0", REQUESTS, Reload
        );
        /// A worker is renewed at this age.
        ///
        /// A worker is renewed at this age at the latest, up to a tenth earlier; 0: never.
        max_age: Option<Duration> = required(
            "workers.max_age", basic::duration_or_none;
            "0", "0 for never, or a duration such as 12h", Reload
        );
        /// Private memory at which a worker is renewed.
        ///
        /// A worker with more private memory in three samples in a row is renewed; 0: never.
        memory_soft: Option<u64> = required("workers.memory_soft", basic::size_or_none; "0", MEMORY, Reload);
        /// Private memory at which a worker is killed.
        ///
        /// A worker with more private memory is killed; 0: never.
        memory_hard: Option<u64> = required("workers.memory_hard", basic::size_or_none; "0", MEMORY, Reload);
    }
}
