//! Sessions: a signed cookie that names one, and the store that carries its fields to and from Redis.
//!
//! Guarantees that an id without a genuine signature never reaches Redis, that the id itself is never stored, that
//! a session which is gone is never brought back by a late write, and that an id from before a login
//! gives no access afterwards. Knows no request and no response.

pub(crate) mod activity;
mod activity_commands;
pub mod commands;
pub mod commit;
pub mod cookie;
pub mod cookie_search;
pub mod cookie_value;
pub mod digest;
pub mod encryption;
mod error;
pub mod fields;
pub mod index;
mod keyring_encryption;
pub mod keys;
mod operations;
pub mod plain;
pub mod query;
mod read;
pub mod services;
pub mod signing_keys;
pub mod stale_cache;
pub(crate) mod test_keys;
pub mod user;
pub mod verified_cookie_cache;

use std::sync::Arc;
use std::time::Duration;

pub use error::SessionError;
use tower_sessions::session::Id;

use crate::sessions::digest::SessionDigest;
use crate::sessions::encryption::FieldCipher;
use crate::sessions::query::PROVISIONAL_SESSION_TTL;

/// Largest session, bytes of names and values.
pub const SESSION_BYTES_MAX: usize = 16 * 1024;
/// Most fields of a session.
pub const SESSION_FIELDS_MAX: u64 = 64;
/// Longest lifetime that a session of its own can have: browsers keep no cookie longer (RFC 6265bis §5.5).
pub const LIFETIME_MAX: Duration = Duration::from_secs(400 * 24 * 60 * 60);
/// How long an id that was replaced stays marked: longer than any request that was sent with it is under way.
pub const ROTATION_GRACE: Duration = Duration::from_secs(10);
/// Most sessions of one user: beyond that the one that ends first ends now.
const SESSIONS_PER_USER_MAX: u64 = 1000;
/// Characters of a session's public handle.
const HANDLE_LEN: usize = 10;

/// What all requests of a worker share about sessions.
#[derive(Debug)]
pub struct SessionSettings {
    /// First part of every key.
    pub prefix: Arc<str>,
    /// How long sessions live.
    pub lifetimes: SessionLifetimes,
    /// Encrypts fields at rest; none: they are stored as they are.
    pub cipher: Option<FieldCipher>,
    /// Fields of which no change is ever lost: the second of two changes is rejected.
    pub strict: Vec<String>,
    /// Most sessions a user may have; 0: as many as an index has room for.
    pub max_per_user: u64,
}

impl SessionSettings {
    /// Most sessions of one user.
    pub fn sessions_max(&self) -> u64 {
        if self.max_per_user == 0 {
            SESSIONS_PER_USER_MAX
        } else {
            self.max_per_user.min(SESSIONS_PER_USER_MAX)
        }
    }
}

/// How long sessions live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLifetimes {
    /// Without use.
    pub idle: Duration,
    /// In all.
    pub absolute: Duration,
}

impl SessionLifetimes {
    /// Lifetime without use, ms, ≥ 1.
    pub fn idle_ms(&self) -> u64 {
        millis(self.idle)
    }

    /// Lifetime in all, ms, ≥ 1.
    pub fn absolute_ms(&self) -> u64 {
        millis(self.absolute)
    }

    /// How long a provisional cookie can create its session, ms: no longer than that session would have lived without use,
    /// or the cookie could create it anew.
    pub fn provisional_ms(&self) -> u64 {
        millis(PROVISIONAL_SESSION_TTL.min(self.idle).min(self.absolute))
    }
}

/// Milliseconds, at least one.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Hashed id of a session: all that Redis, its dumps and its logs ever see of it.
pub fn digest(id: Id) -> SessionDigest {
    SessionDigest::from_id(id)
}

/// Key of a session's hash.
pub fn session_key(prefix: &str, id: Id) -> String {
    keys::session(prefix, &digest(id))
}

/// Name by which a user may know a session; it does not give access to it.
pub fn public_handle(digest: &str) -> &str {
    digest.get(..HANDLE_LEN).unwrap_or(digest)
}
