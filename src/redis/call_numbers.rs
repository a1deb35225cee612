//! Numbers that make batches of begins or commits repeatable, and the ledgers in Redis that record what was executed.
//!
//! Guarantees that a batch which is sent again, on another connection or beside a first sending that is still on its
//! way, takes effect once. A ledger is a string: the number of the last batch that was executed with it, and which of
//! its begins were granted, or the replies to its commits.
//!
//! In a cluster nothing is recorded: a call of one key would become one of two, which no node executes while their slot
//! migrates.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use fred::types::Value;

use crate::redis::error::RedisError;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::transport::RedisTransport;
use crate::redis::{keys, server_info};
use crate::sys::{process, random};

/// Numbers a worker's calls.
pub(super) struct CallNumbers {
    /// Random and made after the fork: no two workers, and no worker and its successor, have the same.
    incarnation: String,
    next: AtomicU64,
}

impl CallNumbers {
    pub(super) fn new() -> Self {
        let life = random::number().unwrap_or_else(|_| u64::from(process::pid().as_raw().unsigned_abs()));
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

/// Whether this server can record what it executed, which needs `SET … GET` (Redis 6.2). A server that has functions is
/// newer.
///
/// # Errors
/// When the server did not answer.
pub(super) async fn supports_batch_ledger(
    transport: &RedisTransport,
    mode: InvocationMode,
) -> Result<bool, RedisError> {
    let info = match mode {
        InvocationMode::Plain => return Ok(false),
        InvocationMode::Function => return Ok(true),
        InvocationMode::Script => transport.call("INFO", ["server"]).await,
    };
    let info = match info {
        Err(RedisError::Rejected { .. }) => String::new(),
        info => info?.as_string().unwrap_or_default(),
    };
    let supported = has_set_get(&info);
    if !supported {
        tracing::warn!(
            "this server is older than Redis 6.2, or does not report its version (INFO): what is under way when the \
             connection to Redis is lost is answered 503, because it cannot be sent again"
        );
    }
    Ok(supported)
}

/// Forks of Redis report the version of Redis that they are compatible with.
fn has_set_get(info: &str) -> bool {
    server_info::server_version(info).is_some_and(|version| version >= (6, 2))
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

    #[test]
    fn only_a_server_from_6_2_on_records_what_it_executed() {
        for version in ["6.2", "6.2.0", "6.3.4", "7.0.15", "10.0.1"] {
            assert!(has_set_get(&format!("# Server\r\nredis_version:{version}\r\n")), "{version}");
        }
        for info in
            ["", "# Server\r\n", "redis_version:\r\n", "redis_version:6.0.16\r\n", "redis_version:5.9\r\n"]
        {
            assert!(!has_set_get(info), "{info}");
        }
    }
}
