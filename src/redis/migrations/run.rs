//! What `regatta migrate` does: shows which migrations are applied, and applies those that are not, walks included.

use crate::redis::client::{ClientInner, RedisClient};
use crate::redis::error::RedisError;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::keys;
use crate::redis::migrations::ledger::{self, EntryState};
use crate::redis::migrations::lock::{LockScope, MigrationLock};
use crate::redis::migrations::migration::{Migration, MigrationKind, MigrationState};
use crate::redis::migrations::set::{MigrationContext, MigrationSet, OnLockLost};
use crate::redis::migrations::walk::{self, WalkProgress};
use crate::redis::one_shot::OneShotConnection;
use crate::redis::transport::RedisTransport;

/// A command's connection, over which it migrates in the client's name.
pub(super) struct MigrationConnection<'a> {
    inner: &'a ClientInner,
    transport: RedisTransport,
    mode: InvocationMode,
    /// The transport ends with it.
    _connection: OneShotConnection,
}

impl<'a> MigrationConnection<'a> {
    /// Connects once; `None` in mode plain, where there is nothing to apply.
    pub(super) async fn open(redis: &'a RedisClient) -> Result<Option<Self>, RedisError> {
        let inner = &*redis.inner;
        let connection = OneShotConnection::open(inner).await?;
        let mode = connection.detect_mode(inner.target.mode).await?;
        if mode == InvocationMode::Plain {
            return Ok(None);
        }
        Ok(Some(Self { inner, transport: connection.setup_transport(), mode, _connection: connection }))
    }

    /// Where it applies migrations.
    pub(super) fn context(&self) -> MigrationContext<'_> {
        let target = &self.inner.target;
        let (transport, mode) = (&self.transport, self.mode);
        MigrationContext { transport, mode, prefix: &target.prefix, worker: &target.name }
    }
}

impl MigrationSet {
    /// Every migration and its status; changes nothing. Needs no started connection.
    ///
    /// Empty in mode plain, where there is nothing to apply.
    ///
    /// # Errors
    /// `Diverged` if a file was edited after it was applied, `MigrationGap` if one was skipped; otherwise the server's
    /// error.
    pub async fn plan(&self, redis: &RedisClient) -> Result<Vec<MigrationState>, RedisError> {
        let Some(connection) = MigrationConnection::open(redis).await? else { return Ok(Vec::new()) };
        let at = connection.context();
        ledger::evaluate(&self.migrations, &ledger::load_fields(at.transport, at.prefix).await?)
    }

    /// Applies what is pending, reports the progress of walks, and returns the status afterwards. Needs no started
    /// connection.
    ///
    /// # Errors
    /// As [`MigrationSet::plan`]; `MigrationsLocked` if another process holds the lock for too long;
    /// `MigrationLockLost` if another process has taken over; `UnconvertibleKey` if a key cannot be converted.
    ///
    /// # Cancel safety
    /// What is done is recorded; the next call continues from there.
    pub async fn apply(
        &self,
        redis: &RedisClient,
        mut on_progress: impl FnMut(&WalkProgress),
    ) -> Result<Vec<MigrationState>, RedisError> {
        let Some(connection) = MigrationConnection::open(redis).await? else { return Ok(Vec::new()) };
        let at = connection.context();
        self.apply_libraries(at, OnLockLost::Fail).await?;
        self.apply_walks(at, &mut on_progress).await?;
        ledger::evaluate(&self.migrations, &ledger::load_fields(at.transport, at.prefix).await?)
    }

    /// Runs the pending walks.
    async fn apply_walks(
        &self,
        at: MigrationContext<'_>,
        on_progress: &mut dyn FnMut(&WalkProgress),
    ) -> Result<(), RedisError> {
        let open = |fields: &ledger::LedgerFields, migration: &Migration| {
            Ok::<_, RedisError>(
                ledger::parse_entry(fields, migration)?.is_none_or(|it| it.state != EntryState::Applied),
            )
        };
        for migration in &self.migrations {
            let MigrationKind::Walk { keys } = migration.kind() else { continue };
            if !open(&ledger::load_fields(at.transport, at.prefix).await?, migration)? {
                continue;
            }
            let run = MigrationLock::acquire(at.transport, at.prefix, at.worker, LockScope::Walks)
                .await?
                .ok_or(RedisError::MigrationsLocked)?;
            let before =
                ledger::parse_entry(&ledger::load_fields(at.transport, at.prefix).await?, migration)?;
            // Another process may have finished before the lock was taken.
            if before.as_ref().is_some_and(|it| it.state == EntryState::Applied) {
                run.release().await;
                continue;
            }
            let pattern = keys::key_pattern(at.prefix, keys);
            let walked =
                walk::run_walk(&run, migration, &pattern, before.and_then(|it| it.walk), on_progress).await;
            run.release().await;
            walked?;
            tracing::info!(file = %migration.file(), by = %at.worker, "migration applied");
        }
        Ok(())
    }
}
