//! How a worker drains.

use std::time::Duration;

use crate::config::setting::settings;
use crate::config::settings::reference_phrases::DURATION;
use crate::config::value::basic;

settings! {
    /// How a worker drains.
    #[derive(Debug, Clone)]
    struct DrainConfig {
        /// Keep accepting this long after readiness has failed.
        ///
        /// At a stop, keep accepting this long after readiness has failed; behind a load balancer, set it to the time
        /// that takes to notice.
        grace: Duration = required("drain.grace", basic::duration; "0s", DURATION, Reload);
        /// Keep idle connections this long, for requests under way.
        ///
        /// Idle connections stay open this long, so that a request already on its way is answered.
        idle_grace: Duration = required(
            "drain.idle_grace", basic::duration; "500ms", DURATION, Reload,
            formerly = &["drain.idle"]
        );
        /// Longest drain; what still runs then is cut and logged.
        ///
        /// What still runs then is cut, counted and logged.
        timeout: Duration = required("drain.timeout", basic::positive_duration; "30s", DURATION, Reload);
        /// Longest time for the application's hooks of the end, after the drain.
        ///
        /// All hooks `on_exit` of the application, which run after the drain; what still runs then is abandoned and
        /// logged.
        exit: Duration = required("drain.exit", basic::duration; "2s", DURATION, Reload);
        /// Leaving workers per slot; the oldest is cut when more.
        ///
        /// Leaving workers of a slot; when there are more, the oldest is told to cut what it still has.
        max_draining_workers: usize = required(
            "drain.max_draining_workers", |text| basic::capacity(text, 6);
            "3", "a number from 1 to 6", Reload,
            formerly = &["drain.leaving"]
        );
    }
}
