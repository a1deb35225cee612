//! The names of rate limits in Redis: made here and nowhere else.

use crate::redis::keys::{self, KeySpace};

/// One subject's rate limit under one version of one policy.
pub fn limit(prefix: &str, policy: &str, version: &str, subject: &str) -> String {
    KeySpace::new(prefix).key(["l", policy, version, subject])
}

/// That the charges of an outage were applied to a limit.
pub fn deferred_mark(limit: &str, batch: &str) -> String {
    keys::mark_beside(limit, batch)
}

/// Mode plain: a limit's window, beside the limit's own key.
pub fn limit_window(limit: &str) -> String {
    keys::beside(limit, ["w"])
}
