//! The names of the ledgers of batches in Redis: made here and nowhere else.

use crate::redis::keys::{self, KeySpace};

/// A worker's ledger of batches of begins or commits: a string, the last batch's number and its result.
pub fn batch_ledger(prefix: &str, life: &str, ledger: usize) -> String {
    KeySpace::new(prefix).key(["once", life, "b", &ledger.to_string()])
}

/// That a part of a request's begin was undone, beside a key of that part.
pub fn compensation_mark(key: &str, name: &str) -> String {
    keys::mark_beside(key, name)
}
