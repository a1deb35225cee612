//! Numbers that make batches of begins or commits repeatable, and the ledgers in Redis that record what was executed.
//!
//! Guarantees that a batch which is sent again, on another connection or beside a first sending that is still on its
//! way, takes effect once. A ledger is a string: the number of the last batch that was executed with it, and which of
//! its begins were granted, or the replies to its commits.
//!
//! In a cluster nothing is recorded: a call of one key would become one of two, which no node executes while their slot
//! migrates.

use std::process;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::redis::wire::Value;
use crate::request_state::keys;
use crate::sys::random;

/// Numbers a worker's calls.
pub(super) struct CallNumbers {
    /// Random and made after the fork: no two workers, and no worker and its successor, have the same.
    incarnation: String,
    next: AtomicU64,
}

impl CallNumbers {
    /// Numbers from a random start.
    pub(super) fn new() -> Self {
        let life = random::number().unwrap_or_else(|_| u64::from(process::id()));
        Self { incarnation: format!("{life:016x}"), next: AtomicU64::new(0) }
    }

    /// A name that is unique in the fleet.
    pub(super) fn unique_name(&self) -> String {
        format!("{}-{}", self.incarnation, self.next_number())
    }

    fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// The number of a batch, higher than that of any before.
    pub(super) fn next_batch(&self) -> u64 {
        self.next_number() + 1
    }

    /// Key of the ledger with this number, which records one batch at a time.
    pub(super) fn ledger_key(&self, prefix: &str, ledger: usize) -> Value {
        Value::from(keys::batch_ledger(prefix, &self.incarnation, ledger))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_and_each_worker_has_ledgers_of_its_own() {
        let (one, other) = (CallNumbers::new(), CallNumbers::new());
        assert!(one.next_batch() < one.next_batch());
        assert_eq!(one.ledger_key("p", 3), one.ledger_key("p", 3));
        assert_ne!(one.ledger_key("p", 3), one.ledger_key("p", 4));
        assert_ne!(one.ledger_key("p", 3), other.ledger_key("p", 3));
    }
}
