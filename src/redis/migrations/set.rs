//! The set of migrations, and applying its libraries, which every worker needs before it serves.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::redis::error::RedisError;
use crate::redis::functions;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::migrations::ledger::{self, EntryState};
use crate::redis::migrations::lock::{LockScope, MigrationLock};
use crate::redis::migrations::migration::{Migration, MigrationState};
use crate::redis::transport::RedisTransport;

/// Every migration of this program, in order: libraries, and no walk so far. Version 2 reads what version 1 wrote.
pub static SHIPPED: LazyLock<MigrationSet> = LazyLock::new(|| {
    let libraries = functions::LIBRARIES.iter().map(|it| Migration::new(it.number, it.name, it.text));
    MigrationSet { migrations: libraries.collect(), last_released: "0001" }
});

/// How long a worker waits for another one that applies the migrations, and how often it looks.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Migrations in order.
#[derive(Debug, Clone)]
pub struct MigrationSet {
    pub(super) migrations: Vec<Migration>,
    /// The last released number: text that was applied up to it is never replaced, not even by a repair.
    pub(super) last_released: &'static str,
}

impl MigrationSet {
    /// A set of unreleased migrations.
    pub fn from_migrations(list: impl Into<Vec<Migration>>) -> Self {
        Self { migrations: list.into(), last_released: "" }
    }

    /// Makes every library recorded and loaded.
    pub(super) async fn apply_libraries(
        &self,
        at: MigrationContext<'_>,
        lost: OnLockLost,
    ) -> Result<(), RedisError> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let steps =
                ledger::evaluate(&self.migrations, &ledger::load_fields(at.transport, at.prefix).await?)?;
            if steps.iter().filter(|step| step.keys.is_none()).all(MigrationState::is_applied) {
                // The ledger survives FUNCTION FLUSH, so the libraries may be missing all the same.
                return functions::ensure(at.transport, at.mode).await;
            }
            if let Some(run) =
                MigrationLock::acquire(at.transport, at.prefix, at.worker, LockScope::Libraries).await?
            {
                let outcome = self.load_pending(&run, at).await;
                run.release().await;
                match outcome {
                    Err(RedisError::MigrationLockLost) if lost == OnLockLost::Wait => {}
                    other => return other,
                }
            }
            if Instant::now() >= deadline {
                return Err(RedisError::MigrationsLocked);
            }
            tokio::time::sleep(LOCK_POLL_INTERVAL).await;
        }
    }

    /// Applies what is pending, in order. What a dead worker started is done again: loading may be repeated.
    pub(super) async fn load_pending(
        &self,
        run: &MigrationLock<'_>,
        at: MigrationContext<'_>,
    ) -> Result<(), RedisError> {
        // Read again: another worker may have finished before the lock was taken.
        let fields = ledger::load_fields(at.transport, at.prefix).await?;
        for migration in self.migrations.iter().filter(|migration| !migration.is_walk()) {
            if ledger::parse_entry(&fields, migration)?
                .is_some_and(|record| record.state == EntryState::Applied)
            {
                continue;
            }
            run.record_entry(migration, EntryState::Running, None).await?;
            run.while_renewing(functions::apply_library(
                at.transport,
                at.mode,
                migration.name,
                migration.text,
            ))
            .await?;
            run.record_entry(migration, EntryState::Applied, None).await?;
            tracing::info!(file = %migration.file(), by = %at.worker, "migration applied");
        }
        run.while_renewing(functions::ensure(at.transport, at.mode)).await
    }
}

/// Where migrations are applied, and by which worker.
#[derive(Clone, Copy)]
pub(super) struct MigrationContext<'a> {
    pub(super) transport: &'a RedisTransport,
    pub(super) mode: InvocationMode,
    pub(super) prefix: &'a str,
    pub(super) worker: &'a str,
}

/// What to do when the lock is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnLockLost {
    /// A worker waits until the new holder has finished: it only needs the result.
    Wait,
    /// An operator's command fails.
    Fail,
}

/// Makes a server usable for a worker: every library recorded and loaded. Does not wait for walks.
pub(in crate::redis) async fn ensure_applied(
    transport: &RedisTransport,
    mode: InvocationMode,
    prefix: &str,
    by: &str,
) -> Result<(), RedisError> {
    if mode == InvocationMode::Plain {
        return Ok(());
    }
    SHIPPED.apply_libraries(MigrationContext { transport, mode, prefix, worker: by }, OnLockLost::Wait).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::migrations::migration::MigrationKind;

    #[test]
    fn numbers_rise_without_a_gap() {
        let numbers: Vec<u32> =
            SHIPPED.migrations.iter().map(|migration| migration.number.parse().unwrap()).collect();
        let expected: Vec<u32> = (1..).take(numbers.len()).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn the_first_line_determines_the_kind() {
        let walk = Migration::new("0009", "w", "#!walk keys=s:* \nlocal function convert(key) end");
        assert_eq!(walk.kind(), MigrationKind::Walk { keys: "s:*" });
        for shipped in SHIPPED.migrations.iter().filter(|migration| !migration.is_walk()) {
            assert!(
                shipped.text.starts_with(&format!("#!lua name={}\n", shipped.name)),
                "{}",
                shipped.file()
            );
        }
    }
}
