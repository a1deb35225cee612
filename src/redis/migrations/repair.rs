//! Finds what is wrong with a ledger, and repairs it.
//!
//! Meant for what a developer's unfinished migrations leave behind. Released text is never replaced: workers of that
//! release may be running, and the code they call must not change.

use std::fmt;

use serde::Serialize;

use crate::redis::client::RedisClient;
use crate::redis::error::RedisError;
use crate::redis::functions::{self, checksum};
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::migrations::ledger::{self, EntryState, LedgerFields};
use crate::redis::migrations::lock::{LockScope, MigrationLock};
use crate::redis::migrations::migration::Migration;
use crate::redis::migrations::run::MigrationConnection;
use crate::redis::migrations::set::{MigrationContext, MigrationSet};

/// A problem; its text describes what a repair does about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "lowercase")]
pub enum LedgerProblem {
    /// The ledger's entry cannot be read.
    Unreadable {
        /// The migration's file.
        file: String,
    },
    /// Another text was applied under this number.
    Diverged {
        /// The migration's file.
        file: String,
        /// SHA-256 of this program's text.
        expected: String,
        /// SHA-256 of what was applied.
        found: String,
    },
    /// The library on the server has another text than this program's.
    Library {
        /// Its name.
        name: String,
        /// SHA-256 of this program's text.
        expected: String,
        /// SHA-256 of the server's.
        found: String,
    },
    /// It was started and is not finished.
    Unfinished {
        /// The migration's file.
        file: String,
        /// The worker that started it.
        by: String,
    },
    /// It is pending although a later one was applied.
    Missing {
        /// The migration's file.
        file: String,
    },
}

impl fmt::Display for LedgerProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file } => {
                write!(
                    f,
                    "{file}: its entry in the ledger cannot be read; it is dropped and the file applied again"
                )
            }
            Self::Diverged { file, expected, found } => write!(
                f,
                "{file}: applied with checksum {found}, but this program has {expected}; its entry is dropped and \
                 the file applied again"
            ),
            Self::Library { name, expected, found } => write!(
                f,
                "the library {name} has checksum {found}, but this program has {expected}; it is replaced, for \
                 everybody who calls it"
            ),
            Self::Unfinished { file, by } => {
                write!(f, "{file}: begun by {by} and not finished; it is finished")
            }
            Self::Missing { file } => write!(f, "{file}: passed over; it is applied"),
        }
    }
}

impl MigrationSet {
    /// What a repair would do; changes nothing. Needs no started connection.
    ///
    /// # Errors
    /// `Diverged` if a released text is not the server's, which no repair changes; otherwise the server's error.
    pub async fn diagnose(&self, redis: &RedisClient) -> Result<Vec<LedgerProblem>, RedisError> {
        let Some(connection) = MigrationConnection::open(redis).await? else { return Ok(Vec::new()) };
        self.find_problems(connection.context()).await
    }

    /// Does what [`MigrationSet::diagnose`] lists, then applies the pending libraries; returns what was done. Needs no
    /// started connection.
    ///
    /// # Errors
    /// As [`MigrationSet::diagnose`]; `MigrationsLocked` while another process runs migrations; `MigrationLockLost` if
    /// this one lost the lock.
    pub async fn repair(&self, redis: &RedisClient) -> Result<Vec<LedgerProblem>, RedisError> {
        let Some(connection) = MigrationConnection::open(redis).await? else { return Ok(Vec::new()) };
        let at = connection.context();
        let run = MigrationLock::acquire(at.transport, at.prefix, at.worker, LockScope::Libraries)
            .await?
            .ok_or(RedisError::MigrationsLocked)?;
        // Taken so that a running walk does not lose its entry.
        let walks = MigrationLock::acquire(at.transport, at.prefix, at.worker, LockScope::Walks).await;
        let done = match &walks {
            Ok(Some(walks)) => self.repair_locked(&run, walks, at).await,
            Ok(None) => Err(RedisError::MigrationsLocked),
            Err(error) => Err(error.clone()),
        };
        if let Ok(Some(walks)) = walks {
            walks.release().await;
        }
        run.release().await;
        done
    }

    async fn repair_locked(
        &self,
        run: &MigrationLock<'_>,
        walks: &MigrationLock<'_>,
        at: MigrationContext<'_>,
    ) -> Result<Vec<LedgerProblem>, RedisError> {
        let findings = self.find_problems(at).await?;
        for finding in &findings {
            match finding {
                LedgerProblem::Unreadable { file } | LedgerProblem::Diverged { file, .. } => {
                    let wrong = self.migrations.iter().filter(|migration| migration.file() == *file);
                    for migration in wrong {
                        if migration.is_walk() { walks } else { run }.remove_entry(migration).await?;
                    }
                }
                LedgerProblem::Library { name, .. } => {
                    for migration in self.migrations.iter().filter(|migration| migration.name == *name) {
                        run.while_renewing(functions::replace_library(at.transport, migration.text)).await?;
                    }
                }
                // Applying repairs these.
                LedgerProblem::Unfinished { .. } | LedgerProblem::Missing { .. } => {}
            }
        }
        self.load_pending(run, at).await?;
        Ok(findings)
    }

    async fn find_problems(&self, at: MigrationContext<'_>) -> Result<Vec<LedgerProblem>, RedisError> {
        let fields = ledger::load_fields(at.transport, at.prefix).await?;
        let mut findings = Vec::new();
        for migration in &self.migrations {
            findings.extend(self.check_entry(migration, &fields)?);
            if at.mode == InvocationMode::Function && !migration.is_walk() {
                findings.extend(self.check_library(migration, at).await?);
            }
        }
        Ok(findings)
    }

    /// The problem of a migration's entry.
    fn check_entry(
        &self,
        migration: &Migration,
        fields: &LedgerFields,
    ) -> Result<Option<LedgerProblem>, RedisError> {
        let file = migration.file();
        Ok(match ledger::parse_entry(fields, migration) {
            Err(_) => Some(LedgerProblem::Unreadable { file }),
            Ok(Some(record)) if record.sha256 != migration.checksum() => {
                let (expected, found) = (migration.checksum(), record.sha256);
                self.check_replaceable(migration, &file, &expected, &found)?;
                Some(LedgerProblem::Diverged { file, expected, found })
            }
            Ok(Some(record)) if record.state == EntryState::Running => {
                Some(LedgerProblem::Unfinished { file, by: record.by })
            }
            Ok(Some(_)) => None,
            Ok(None) => self.was_skipped(migration, fields).then_some(LedgerProblem::Missing { file }),
        })
    }

    /// Whether a later migration of its kind has an entry.
    fn was_skipped(&self, migration: &Migration, fields: &LedgerFields) -> bool {
        let later = self.migrations.iter().filter(|other| other.number > migration.number);
        later
            .filter(|other| other.is_walk() == migration.is_walk())
            .any(|other| fields.contains_key(other.number))
    }

    /// The problem of a library on the server. A missing one is none: it is loaded when it is called.
    async fn check_library(
        &self,
        migration: &Migration,
        at: MigrationContext<'_>,
    ) -> Result<Option<LedgerProblem>, RedisError> {
        let Some(text) = functions::installed_source(at.transport, migration.name).await? else {
            return Ok(None);
        };
        let (expected, found) = (migration.checksum(), checksum(&text));
        if expected == found {
            return Ok(None);
        }
        let name = migration.name.to_owned();
        self.check_replaceable(migration, &format!("the library {name}"), &expected, &found)?;
        Ok(Some(LedgerProblem::Library { name, expected, found }))
    }

    fn check_replaceable(
        &self,
        migration: &Migration,
        what: &str,
        expected: &str,
        found: &str,
    ) -> Result<(), RedisError> {
        match migration.number <= self.last_released {
            false => Ok(()),
            true => Err(RedisError::Diverged {
                what: what.to_owned(),
                expected: expected.to_owned(),
                found: found.to_owned(),
            }),
        }
    }
}
