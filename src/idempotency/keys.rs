//! The names of requests that are executed once: made here and nowhere else.

use crate::redis::keys::KeySpace;

/// A request that must be executed once; `digest` is that of its client and key.
pub fn idempotency(prefix: &str, digest: &str) -> String {
    KeySpace::new(prefix).key(["i", digest])
}

/// A name under which the record of such a request is found; all names of one key are in one hash slot.
pub fn idempotency_name(prefix: &str, key_digest: &str, digest: &str) -> String {
    KeySpace::new(prefix).key(["io", &format!("{{{key_digest}}}"), digest])
}
