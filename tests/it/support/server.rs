//! Which Redis the tests run on.

use std::process::Command;

/// Names another server than `redis-server`, such as a Valkey; see the `Makefile`.
const VARIABLE: &str = "REGATTA_TEST_REDIS_SERVER";

/// The server's program, without arguments.
pub(crate) fn program() -> Command {
    Command::new(std::env::var_os(VARIABLE).unwrap_or_else(|| "redis-server".into()))
}
