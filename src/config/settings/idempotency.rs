//! Requests that are carried out once.

use std::time::Duration;

use crate::config::setting::settings;
use crate::config::value::basic;

settings! {
    /// Requests that are carried out once.
    #[derive(Debug, Clone)]
    struct IdempotencyConfig {
        /// Responses to requests with Idempotency-Key are kept this long.
        ///
        /// Responses to POST and PATCH with `Idempotency-Key` are kept this long
        /// ([OPERATIONS](OPERATIONS.md#requests-that-count-once)); 0s: the header means nothing. Clients that are not
        /// logged in fall under the policy `limits.idempotency`, which is there without being configured (30/min, burst
        /// 30, closed for them in a [nearly full Redis](OPERATIONS.md#a-full-redis)) and changed or switched off like
        /// any other.
        ttl: Duration = required(
            "idempotency.ttl", basic::duration; "24h", "0s for never, or a duration such as 24h", Reload
        );
    }
}
