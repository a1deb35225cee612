//! The names of the ledgers of batches in Redis: made here and nowhere else.

use crate::redis::keys::KeySpace;

/// A worker's ledger of batches of begins or commits: a string, the last batch's number and its result.
pub fn batch_ledger(prefix: &str, life: &str, ledger: usize) -> String {
    KeySpace::new(prefix).key(["once", life, "b", &ledger.to_string()])
}
