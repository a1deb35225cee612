//! The record of each migration in Redis, and what follows from it.
//!
//! The ledger is a hash with one field for each number. A program judges only the numbers it knows, so that two
//! releases can share one ledger during a rolling deploy.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::redis::error::RedisError;
use crate::redis::keys;
use crate::redis::migrations::migration::{Migration, MigrationKind, MigrationState, MigrationStatus};
use crate::redis::transport::RedisTransport;

/// One field of the ledger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LedgerEntry {
    pub(super) name: String,
    pub(super) sha256: String,
    pub(super) state: EntryState,
    pub(super) by: String,
    pub(super) at_ms: u64,
    pub(super) fence: i64,
    /// The position of a walk; libraries have none, and releases before the first walk ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) walk: Option<WalkPosition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum EntryState {
    Running,
    Applied,
}

/// The position of a walk over keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WalkPosition {
    /// Where SCAN continues.
    pub(super) cursor: String,
    /// The server process that gave the cursor: another process hashes keys differently, which makes the cursor
    /// meaningless.
    pub(super) server: String,
    /// Keys that were looked at.
    pub(super) keys: u64,
    /// Keys that were changed.
    pub(super) changed: u64,
}

/// The ledger's fields by number, as text.
pub(super) type LedgerFields = HashMap<String, String>;

pub(super) async fn load_fields(
    transport: &RedisTransport,
    prefix: &str,
) -> Result<LedgerFields, RedisError> {
    let answer = transport.call("HGETALL", [&keys::migration_ledger(prefix)]).await?;
    answer.convert().map_err(RedisError::from)
}

/// One migration's entry, if there is one.
///
/// # Errors
/// `Protocol` when the field holds something else.
pub(super) fn parse_entry(
    fields: &LedgerFields,
    migration: &Migration,
) -> Result<Option<LedgerEntry>, RedisError> {
    let Some(text) = fields.get(migration.number) else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|error| {
        let number = migration.number;
        RedisError::protocol(format!(
            "the ledger's entry {number} is no record ({error}); `migrate --repair` drops it"
        ))
    })
}

/// The status of each migration of the list.
///
/// # Errors
/// `Diverged` when the ledger has another text under a number; `MigrationGap` when a later one was applied before an
/// earlier one; `Protocol` when an entry cannot be read.
pub(super) fn evaluate(list: &[Migration], fields: &LedgerFields) -> Result<Vec<MigrationState>, RedisError> {
    let steps =
        list.iter().map(|migration| migration_state(migration, fields)).collect::<Result<Vec<_>, _>>()?;
    // A walk may take hours, and libraries do not wait for it: each kind has an order of its own.
    for walks in [false, true] {
        let mut of_kind = list.iter().zip(&steps).filter(|(migration, _)| migration.is_walk() == walks);
        // A started migration is finished by the next run, wherever it is in the order.
        let Some((_, open)) = of_kind.find(|(_, step)| step.status == MigrationStatus::Pending) else {
            continue;
        };
        if let Some((_, later)) = of_kind.find(|(_, step)| step.is_applied()) {
            return Err(RedisError::MigrationGap { missing: open.file.clone(), applied: later.file.clone() });
        }
    }
    Ok(steps)
}

fn migration_state(migration: &Migration, fields: &LedgerFields) -> Result<MigrationState, RedisError> {
    let (file, sha256) = (migration.file(), migration.checksum());
    let status = match parse_entry(fields, migration)? {
        None => MigrationStatus::Pending,
        Some(record) if record.sha256 != sha256 => {
            return Err(RedisError::Diverged { what: file, expected: sha256, found: record.sha256 });
        }
        Some(LedgerEntry { state: EntryState::Running, by, walk, .. }) => {
            MigrationStatus::Started { by, keys: walk.map_or(0, |position| position.keys) }
        }
        Some(LedgerEntry { by, at_ms, .. }) => MigrationStatus::Applied { by, at_ms },
    };
    let keys = match migration.kind() {
        MigrationKind::Library => None,
        MigrationKind::Walk { keys } => Some(keys.to_owned()),
    };
    Ok(MigrationState { file, sha256, keys, status })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::migrations::checksum;

    const LIST: &[Migration] = &[
        Migration::new("0001", "one", "#!lua name=one\n"),
        Migration::new("0002", "two", "#!lua name=two\n"),
        Migration::new("0003", "three", "#!walk keys=s:*\n"),
        Migration::new("0004", "four", "#!lua name=four\n"),
    ];

    fn entry(migration: &Migration, sha256: String, state: EntryState) -> (String, String) {
        let record = LedgerEntry {
            name: migration.name.into(),
            sha256,
            state,
            by: "w".into(),
            at_ms: 1,
            fence: 1,
            walk: None,
        };
        (migration.number.to_owned(), serde_json::to_string(&record).unwrap())
    }

    fn applied(indexes: &[usize]) -> LedgerFields {
        indexes
            .iter()
            .map(|index| entry(&LIST[*index], LIST[*index].checksum(), EntryState::Applied))
            .collect()
    }

    #[test]
    fn a_ledger_that_knows_another_text_is_refused() {
        let fields = [entry(&LIST[0], checksum("other"), EntryState::Applied)].into();
        let error = evaluate(LIST, &fields).unwrap_err();
        for part in ["migrations/0001_one.lua", &checksum("other"), &LIST[0].checksum()] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn a_gap_is_refused_and_names_both_ends_but_libraries_do_not_wait_for_walks() {
        assert!(evaluate(LIST, &applied(&[])).is_ok());
        assert!(evaluate(LIST, &applied(&[0, 1])).is_ok());
        assert!(evaluate(LIST, &applied(&[0, 1, 3])).is_ok(), "0003 is a walk and may take its time");
        let error = evaluate(LIST, &applied(&[0, 3])).unwrap_err().to_string();
        assert!(error.contains("0002_two") && error.contains("0004_four"), "{error}");
    }

    #[test]
    fn an_unreadable_entry_names_its_repair_and_newer_entries_are_ignored() {
        let fields = [("0001".to_owned(), "{}".to_owned())].into();
        assert!(evaluate(LIST, &fields).unwrap_err().to_string().contains("--repair"));
        let mut fields = applied(&[0, 1, 2, 3]);
        fields.insert("0099".to_owned(), "what a later release wrote".to_owned());
        assert!(evaluate(LIST, &fields).unwrap().iter().all(MigrationState::is_applied));
    }
}
