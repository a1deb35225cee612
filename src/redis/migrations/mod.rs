//! Numbered changes of what lies on the server: applied once by the whole fleet, recorded, never edited afterwards.
//!
//! A file is known by its number and by the SHA-256 of its text; the ledger in Redis says which were applied. Whoever
//! comes first takes a lock and renews it; if it stops, its fencing number bars it from every further write. There
//! are two kinds: a **library** of server-side code, which every worker needs before it serves and loads itself, and
//! a **walk** over keys, which takes its time and is run by `regatta migrate`.

mod ledger;
mod lock;
mod repair;
mod survey;
mod walk;

use std::sync::LazyLock;
use std::time::Duration;

use ledger::EntryState;
use lock::{LockScope, MigrationLock};
pub use repair::LedgerProblem;
use serde::Serialize;
pub use survey::MigrationSurvey;
use tokio::time::Instant;
pub use walk::WalkProgress;

use crate::digest::sha256_hex;
use crate::redis::error::RedisError;
use crate::redis::functions::InvocationMode;
use crate::redis::reach::OneShotConnection;
use crate::redis::transport::RedisTransport;
use crate::redis::{RedisClient, functions, keys};

/// Every migration that this program ships, in order: the libraries, and no walk so far. What version 1 wrote
/// version 2 reads as it is, and a session lives no longer than a walk would be worth.
pub static SHIPPED: LazyLock<MigrationSet> = LazyLock::new(|| {
    let libraries = functions::LIBRARIES.iter().map(|it| Migration::new(it.number, it.name, it.text));
    MigrationSet { migrations: libraries.collect(), last_released: "0001" }
});

/// How long a worker waits for another one that runs the migrations, and how often it looks.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(25);

/// First line of a walk: which keys, as SCAN's MATCH has it, below the prefix.
const WALK_HEADER: &str = "#!walk keys=";

/// One numbered change.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    number: &'static str,
    name: &'static str,
    text: &'static str,
}

/// What a migration does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MigrationKind<'a> {
    /// Loads a library of functions.
    Library,
    /// Converts the keys that match.
    Walk { keys: &'a str },
}

impl Migration {
    /// A migration of this number, four digits, and name.
    ///
    /// The text of a library begins with `#!lua name=` and its name, which is the migration's. That of a walk begins
    /// with `#!walk keys=` and the keys below the prefix, as SCAN's MATCH has them, and defines in Lua a local
    /// function `convert(key)`, which is true if it changed the key and does no harm to a key it has changed before.
    pub const fn new(number: &'static str, name: &'static str, text: &'static str) -> Self {
        Self { number, name, text }
    }

    fn file(&self) -> String {
        format!("migrations/{}_{}.lua", self.number, self.name)
    }

    fn checksum(&self) -> String {
        checksum(self.text)
    }

    fn kind(&self) -> MigrationKind<'_> {
        let first = self.text.lines().next().unwrap_or_default();
        first
            .strip_prefix(WALK_HEADER)
            .map_or(MigrationKind::Library, |keys| MigrationKind::Walk { keys: keys.trim() })
    }

    fn is_walk(&self) -> bool {
        self.kind() != MigrationKind::Library
    }
}

/// Migrations in their order.
#[derive(Debug, Clone)]
pub struct MigrationSet {
    migrations: Vec<Migration>,
    /// The last number whose text was released: what was applied under it is never replaced, not even by a repair.
    last_released: &'static str,
}

/// A migration and whether it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigrationState {
    /// Its file in the source tree.
    pub file: String,
    /// SHA-256 of its text, hex.
    pub sha256: String,
    /// The keys it walks over, below the prefix; none for a library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// Whether it is done.
    #[serde(flatten)]
    pub status: MigrationStatus,
}

impl MigrationState {
    /// Whether it is done.
    pub fn is_applied(&self) -> bool {
        matches!(self.status, MigrationStatus::Applied { .. })
    }
}

/// Whether a migration is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum MigrationStatus {
    /// Nobody began it.
    Pending,
    /// Somebody began it and has not finished, or died; the next run goes on.
    #[serde(rename = "begun")]
    Started {
        /// The worker's name.
        by: String,
        /// Keys it has looked at so far, if it is a walk.
        keys: u64,
    },
    /// It is done.
    Applied {
        /// The worker's name.
        by: String,
        /// When, ms since 1970 by Redis's clock.
        at_ms: u64,
    },
}

/// SHA-256 of a text, hex, as if every line ended with LF: a checkout with other line ends is the same file.
pub fn checksum(text: &str) -> String {
    let normal = text.replace("\r\n", "\n");
    sha256_hex(normal.as_bytes())
}

impl MigrationSet {
    /// Migrations of your own, all of them unreleased.
    pub fn from_migrations(list: impl Into<Vec<Migration>>) -> Self {
        Self { migrations: list.into(), last_released: "" }
    }

    /// Every migration and whether it is done; changes nothing. Needs no started connection.
    ///
    /// Empty where no server-side code is used (mode plain): there is nothing to apply.
    ///
    /// # Errors
    /// `Diverged` if a file was edited after it was applied, `Gap` if one was passed over; otherwise what the server
    /// said.
    pub async fn plan(&self, redis: &RedisClient) -> Result<Vec<MigrationState>, RedisError> {
        let link = OneShotConnection::open(&redis.inner).await?;
        match link.detect_mode(redis.inner.mode).await? {
            InvocationMode::Plain => Ok(Vec::new()),
            InvocationMode::Function | InvocationMode::Script => ledger::evaluate(
                &self.migrations,
                &ledger::load_fields(&link.setup_transport(), &redis.inner.prefix).await?,
            ),
        }
    }

    /// Applies what is not done, tells how far walks are, and returns the state afterwards. Needs no started
    /// connection.
    ///
    /// # Errors
    /// As [`Series::plan`]; `Locked` if another one holds the lock for too long; `Fenced` if this one lost it on the
    /// way, in which case another one has taken over; `Key` if a key cannot be converted.
    ///
    /// # Cancel safety
    /// What is done is recorded; the next call goes on where this one was dropped.
    pub async fn apply(
        &self,
        redis: &RedisClient,
        mut on_progress: impl FnMut(&WalkProgress),
    ) -> Result<Vec<MigrationState>, RedisError> {
        let inner = &redis.inner;
        let link = OneShotConnection::open(inner).await?;
        let form = link.detect_mode(inner.mode).await?;
        if form == InvocationMode::Plain {
            return Ok(Vec::new());
        }
        let at = MigrationContext {
            transport: &link.setup_transport(),
            mode: form,
            prefix: &inner.prefix,
            worker: &inner.name,
        };
        self.apply_libraries(at, OnLockLost::Fail).await?;
        self.apply_walks(at, &mut on_progress).await?;
        ledger::evaluate(&self.migrations, &ledger::load_fields(at.transport, at.prefix).await?)
    }

    /// Has every library recorded and there.
    async fn apply_libraries(&self, at: MigrationContext<'_>, lost: OnLockLost) -> Result<(), RedisError> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let steps =
                ledger::evaluate(&self.migrations, &ledger::load_fields(at.transport, at.prefix).await?)?;
            if steps.iter().filter(|step| step.keys.is_none()).all(MigrationState::is_applied) {
                // The ledger outlives FUNCTION FLUSH; the libraries may be gone all the same.
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

    /// Does what is not done, in order. What a dead worker began is done again: loading may be repeated.
    async fn load_pending(
        &self,
        run: &MigrationLock<'_>,
        at: MigrationContext<'_>,
    ) -> Result<(), RedisError> {
        // Read again: somebody may have finished between our look and our lock.
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

    /// Walks what is not walked.
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
            // Somebody may have finished between our look and our lock.
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

/// Where migrations are run, and by whom.
#[derive(Clone, Copy)]
struct MigrationContext<'a> {
    transport: &'a RedisTransport,
    mode: InvocationMode,
    prefix: &'a str,
    worker: &'a str,
}

/// What becomes of somebody who lost the lock on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnLockLost {
    /// A worker waits until whoever took over has finished: it only needs the result.
    Wait,
    /// An operator's command says so.
    Fail,
}

/// Brings a server to where a worker can use it: every library recorded and there. Walks are not waited for.
pub(super) async fn ensure_applied(
    caller: &RedisTransport,
    form: InvocationMode,
    prefix: &str,
    by: &str,
) -> Result<(), RedisError> {
    if form == InvocationMode::Plain {
        return Ok(());
    }
    SHIPPED
        .apply_libraries(
            MigrationContext { transport: caller, mode: form, prefix, worker: by },
            OnLockLost::Wait,
        )
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_do_not_change_a_checksum_and_anything_else_does() {
        assert_eq!(checksum("a\nb\n"), checksum("a\r\nb\r\n"));
        assert_ne!(checksum("a\nb\n"), checksum("a\nb"));
    }

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
