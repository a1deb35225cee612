//! One migration: its file, its kind, and its status.

use serde::Serialize;

use crate::redis::functions::checksum;

/// First line of a walk: which keys, as SCAN's MATCH has it, below the prefix.
const WALK_HEADER: &str = "#!walk keys=";

/// One numbered change.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    pub(super) number: &'static str,
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

/// What a migration does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MigrationKind<'a> {
    /// Loads a library of functions.
    Library,
    /// Converts the keys that match.
    Walk { keys: &'a str },
}

impl Migration {
    /// A migration with this number, four digits, and name.
    ///
    /// The text of a library begins with `#!lua name=` and its name, which is the migration's. The text of a walk
    /// begins with `#!walk keys=` and the keys below the prefix, as SCAN's MATCH has them, and defines in Lua a local
    /// function `convert(key)`, which returns true if it changed the key and must not harm a key that it has changed
    /// before.
    pub const fn new(number: &'static str, name: &'static str, text: &'static str) -> Self {
        Self { number, name, text }
    }

    pub(super) fn file(&self) -> String {
        format!("migrations/{}_{}.lua", self.number, self.name)
    }

    pub(super) fn checksum(&self) -> String {
        checksum(self.text)
    }

    pub(super) fn kind(&self) -> MigrationKind<'_> {
        let first = self.text.lines().next().unwrap_or_default();
        first
            .strip_prefix(WALK_HEADER)
            .map_or(MigrationKind::Library, |keys| MigrationKind::Walk { keys: keys.trim() })
    }

    pub(super) fn is_walk(&self) -> bool {
        self.kind() != MigrationKind::Library
    }
}

/// A migration and its status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigrationState {
    /// Its file in the source tree.
    pub file: String,
    /// SHA-256 of its text, hex.
    pub sha256: String,
    /// The keys that it converts, below the prefix; none for a library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// The status.
    #[serde(flatten)]
    pub status: MigrationStatus,
}

impl MigrationState {
    /// Whether it is applied.
    pub fn is_applied(&self) -> bool {
        matches!(self.status, MigrationStatus::Applied { .. })
    }
}

/// The status of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum MigrationStatus {
    /// Not started.
    Pending,
    /// Started and not finished; the next run continues.
    #[serde(rename = "begun")]
    Started {
        /// The worker's name.
        by: String,
        /// Keys converted so far, if it is a walk.
        keys: u64,
    },
    /// Applied.
    Applied {
        /// The worker's name.
        by: String,
        /// When, ms since 1970 by Redis's clock.
        at_ms: u64,
    },
}
