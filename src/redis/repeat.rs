//! What makes a batch of requests' starts repeatable: a number that grows, and ledgers in Redis of what was executed.
//!
//! Guarantees that a batch which is sent again, on another connection or beside a first sending that is still on its way,
//! changes what it changes once. A ledger is a string: the number of the last batch that was executed with it, and which
//! of its entries were granted.
//!
//! In a cluster nothing is noted: a call of one key would become one of two, which no node takes while their slot moves.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use fred::types::Value;

use crate::redis::Inner;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::error::Refusal;
use crate::redis::keys;
use crate::redis::library::Form;
use crate::sys::proc;
use crate::sys::random;

/// Gives numbers to a worker's calls.
pub(super) struct Numbers {
    /// Drawn after the fork: no two workers, and no worker and its successor, have the same.
    life: String,
    next: AtomicU64,
}

impl Numbers {
    pub(super) fn new() -> Self {
        let life = random::number().unwrap_or_else(|_| u64::from(proc::pid().as_raw().unsigned_abs()));
        Self { life: format!("{life:016x}"), next: AtomicU64::new(0) }
    }

    /// A name that nothing else has, on whatever worker.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.life, self.take())
    }

    fn take(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// The number of a batch, higher than that of any before.
    pub(super) fn batch(&self) -> u64 {
        self.take() + 1
    }

    /// Key of the ledger of this number, in which one batch at a time is noted.
    pub(super) fn ledger(&self, prefix: &str, ledger: usize) -> Value {
        Value::from(keys::once(prefix, &self.life, ledger))
    }
}

impl Inner {
    /// Whether this server can note what it executed: `SET … GET` came with Redis 6.2, as `ZMSCORE` did, which changes
    /// nothing.
    ///
    /// # Errors
    /// What the server said to it, if that is anything else.
    pub(super) async fn may_note(&self, caller: &Caller, form: Form) -> Result<bool, Error> {
        if form == Form::Plain {
            return Ok(false);
        }
        let key = keys::once(&self.prefix, &self.numbers.life, 0);
        match caller.call("ZMSCORE", [key.as_str(), "m"]).await {
            Err(error) if error.unsupported() => {
                tracing::warn!(
                    "this server is older than Redis 6.2, or its ACL rules forbid ZMSCORE (+@sortedset): what is under \
                     way when the connection to Redis is lost is answered 503, because it cannot be sent again"
                );
                Ok(false)
            }
            // A ledger of this worker lies there.
            Err(Error::Refused { refusal: Refusal::WrongType, .. }) => Ok(true),
            answer => answer.map(|_| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_and_each_worker_has_ledgers_of_its_own() {
        let (one, other) = (Numbers::new(), Numbers::new());
        assert!(one.batch() < one.batch());
        assert_eq!(one.ledger("p", 3), one.ledger("p", 3));
        assert_ne!(one.ledger("p", 3), one.ledger("p", 4));
        assert_ne!(one.ledger("p", 3), other.ledger("p", 3));
    }
}
