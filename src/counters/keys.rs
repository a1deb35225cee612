//! The names of counters in Redis: made here and nowhere else.

use crate::redis::keys::KeySpace;

/// A shared counter.
pub fn counter(prefix: &str, name: &str) -> String {
    KeySpace::new(prefix).key(["c", name])
}

/// The ledger of one fleet's batches: a hash, one field a journal.
pub fn counter_journals(prefix: &str, fleet: u64) -> String {
    KeySpace::new(prefix).key(["j", &format!("{fleet:016x}")])
}

/// A counter of distinct items, in a window or for ever. All windows of a name are in one hash slot.
pub fn distinct(prefix: &str, name: &str, window: Option<(u64, u64)>) -> String {
    match window {
        None => KeySpace::new(prefix).key(["d", name]),
        Some((length_ms, number)) => {
            let (length_ms, number, name) =
                (length_ms.to_string(), number.to_string(), format!("{{{name}}}"));
            KeySpace::new(prefix).key(["dw", &length_ms, &number, &name])
        }
    }
}

/// How much is taken of a bounded counter.
pub fn bounded(prefix: &str, name: &str) -> String {
    KeySpace::new(prefix).key(["b", name])
}

/// A bounded change that was applied; `digest` is that of its token.
pub fn bounded_token(prefix: &str, name: &str, digest: &str) -> String {
    KeySpace::new(prefix).key(["bt", name, digest])
}
