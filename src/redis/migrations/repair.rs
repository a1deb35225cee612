//! What is wrong with a ledger that is refused, and putting it right.
//!
//! Meant for what a developer's unfinished migrations leave behind. Text that was released is never replaced: workers
//! of that release may be running, and what they call must not change under them.

use std::fmt;

use serde::Serialize;

use crate::redis::Redis;
use crate::redis::error::Error;
use crate::redis::library;
use crate::redis::library::Form;
use crate::redis::migrations::Migration;
use crate::redis::migrations::Place;
use crate::redis::migrations::Series;
use crate::redis::migrations::checksum;
use crate::redis::migrations::ledger;
use crate::redis::migrations::ledger::Fields;
use crate::redis::migrations::ledger::State;
use crate::redis::migrations::run::Run;
use crate::redis::migrations::run::Work;
use crate::redis::reach::Reach;

/// Something that is wrong; its text says what a repair does about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "lowercase")]
pub enum Finding {
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
    /// It was begun and is not finished.
    Unfinished {
        /// The migration's file.
        file: String,
        /// Who began it.
        by: String,
    },
    /// It is pending although a later one was applied.
    Missing {
        /// The migration's file.
        file: String,
    },
}

impl fmt::Display for Finding {
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

impl Series {
    /// What a repair would do; changes nothing. Needs no started connection.
    ///
    /// # Errors
    /// `Diverged` if a text that was released is not the server's, which no repair changes; what the server said.
    pub async fn diagnose(&self, redis: &Redis) -> Result<Vec<Finding>, Error> {
        let link = Reach::open(&redis.inner).await?;
        let form = link.form(redis.inner.mode).await?;
        let (caller, inner) = (link.patient(), &redis.inner);
        match form {
            Form::Plain => Ok(Vec::new()),
            form => {
                self.findings(Place { caller: &caller, form, prefix: &inner.prefix, by: &inner.name }).await
            }
        }
    }

    /// Does what [`Series::diagnose`] says and applies the libraries that are pending afterwards; returns what was
    /// done. Needs no started connection.
    ///
    /// # Errors
    /// As [`Series::diagnose`]; `Locked` while another one runs migrations; `Fenced` if this one lost the lock.
    pub async fn repair(&self, redis: &Redis) -> Result<Vec<Finding>, Error> {
        let inner = &redis.inner;
        let link = Reach::open(inner).await?;
        let form = link.form(inner.mode).await?;
        if form == Form::Plain {
            return Ok(Vec::new());
        }
        let at = Place { caller: &link.patient(), form, prefix: &inner.prefix, by: &inner.name };
        let run = Run::begin(at.caller, at.prefix, at.by, Work::Libraries).await?.ok_or(Error::Locked)?;
        // A walk that is under way must not lose its entry.
        let walks = Run::begin(at.caller, at.prefix, at.by, Work::Walks).await;
        let done = match &walks {
            Ok(Some(walks)) => self.put_right(&run, walks, at).await,
            Ok(None) => Err(Error::Locked),
            Err(error) => Err(error.clone()),
        };
        if let Ok(Some(walks)) = walks {
            walks.release().await;
        }
        run.release().await;
        done
    }

    async fn put_right(&self, run: &Run<'_>, walks: &Run<'_>, at: Place<'_>) -> Result<Vec<Finding>, Error> {
        let findings = self.findings(at).await?;
        for finding in &findings {
            match finding {
                Finding::Unreadable { file } | Finding::Diverged { file, .. } => {
                    let wrong = self.list.iter().filter(|migration| migration.file() == *file);
                    for migration in wrong {
                        if migration.is_walk() { walks } else { run }.forget(migration).await?;
                    }
                }
                Finding::Library { name, .. } => {
                    for migration in self.list.iter().filter(|migration| migration.name == *name) {
                        run.holding(library::replace(at.caller, migration.text)).await?;
                    }
                }
                // Applying does it.
                Finding::Unfinished { .. } | Finding::Missing { .. } => {}
            }
        }
        self.load(run, at).await?;
        Ok(findings)
    }

    async fn findings(&self, at: Place<'_>) -> Result<Vec<Finding>, Error> {
        let fields = ledger::read(at.caller, at.prefix).await?;
        let mut findings = Vec::new();
        for migration in &self.list {
            findings.extend(self.entry(migration, &fields)?);
            if at.form == Form::Function && !migration.is_walk() {
                findings.extend(self.on_server(migration, at).await?);
            }
        }
        Ok(findings)
    }

    /// What is wrong with a migration's entry.
    fn entry(&self, migration: &Migration, fields: &Fields) -> Result<Option<Finding>, Error> {
        let file = migration.file();
        Ok(match ledger::record(fields, migration) {
            Err(_) => Some(Finding::Unreadable { file }),
            Ok(Some(record)) if record.sha256 != migration.checksum() => {
                let (expected, found) = (migration.checksum(), record.sha256);
                self.replaceable(migration, &file, &expected, &found)?;
                Some(Finding::Diverged { file, expected, found })
            }
            Ok(Some(record)) if record.state == State::Running => {
                Some(Finding::Unfinished { file, by: record.by })
            }
            Ok(Some(_)) => None,
            Ok(None) => self.passed_over(migration, fields).then_some(Finding::Missing { file }),
        })
    }

    /// Whether a later one of its kind has an entry.
    fn passed_over(&self, migration: &Migration, fields: &Fields) -> bool {
        let later = self.list.iter().filter(|other| other.number > migration.number);
        later
            .filter(|other| other.is_walk() == migration.is_walk())
            .any(|other| fields.contains_key(other.number))
    }

    /// What is wrong with a library on the server; that it is missing is not: it is loaded when it is called.
    async fn on_server(&self, migration: &Migration, at: Place<'_>) -> Result<Option<Finding>, Error> {
        let Some(text) = library::found(at.caller, migration.name).await? else { return Ok(None) };
        let (expected, found) = (migration.checksum(), checksum(&text));
        if expected == found {
            return Ok(None);
        }
        let name = migration.name.to_owned();
        self.replaceable(migration, &format!("the library {name}"), &expected, &found)?;
        Ok(Some(Finding::Library { name, expected, found }))
    }

    fn replaceable(
        &self,
        migration: &Migration,
        what: &str,
        expected: &str,
        found: &str,
    ) -> Result<(), Error> {
        match migration.number <= self.released {
            false => Ok(()),
            true => Err(Error::Diverged {
                what: what.to_owned(),
                expected: expected.to_owned(),
                found: found.to_owned(),
            }),
        }
    }
}
