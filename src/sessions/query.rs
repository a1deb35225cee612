//! What one request asks about its client's session, and what is found.

use std::time::Duration;

use bytes::Bytes;

use crate::redis::RedisError;
use crate::redis::wire::{ReplyReader, Value};

/// For how long a provisional id creates a session, and how long a session lives whose cookie has not come back.
pub const PROVISIONAL_SESSION_TTL: Duration = Duration::from_secs(10 * 60);

/// What to do with the client's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionQuery {
    /// Key of the session's hash.
    pub key: String,
    /// Key of its user's generation, if the cookie names a user.
    pub generation: Option<String>,
    /// Read it, or count a view as well.
    pub access: SessionAccess,
    /// Set if the id is provisional: a missing session may be created. Otherwise a missing session is `Gone`.
    pub provisional: Option<ProvisionalSessionQuery>,
    /// Lifetime without use, ms.
    pub idle_ms: u64,
    /// Lifetime in all, ms.
    pub absolute_ms: u64,
}

impl SessionQuery {
    /// Whether the query changes anything, apart from when the session was last used.
    pub fn changes(&self) -> bool {
        self.access == SessionAccess::CountView || self.creates()
    }

    /// Whether it creates a session.
    pub fn creates(&self) -> bool {
        self.provisional.as_ref().is_some_and(|provisional| provisional.creates)
    }

    /// What it does, in its wire form.
    pub fn mode_code(&self) -> &'static str {
        match (self.provisional.as_ref().map(|provisional| provisional.creates), self.access) {
            (None, SessionAccess::Read) => "r",
            (None, SessionAccess::CountView) => "v",
            (Some(true), SessionAccess::Read) => "kr",
            (Some(true), SessionAccess::CountView) => "kv",
            (Some(false), SessionAccess::Read) => "pr",
            (Some(false), SessionAccess::CountView) => "pv",
        }
    }
}

/// A provisional id that came back: nothing was stored for the first request, and its session is created now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionalSessionQuery {
    /// When it was issued, ms since 1970 by Redis's clock.
    pub issued_ms: u64,
    /// Whether the first request counted a view, which the session starts with.
    pub view_counted: bool,
    /// For how long it creates a session, ms; no longer than a session lives without use.
    pub ttl_ms: u64,
    /// Whether the session is created if it is missing; if not, the result is `Provisional`.
    pub creates: bool,
    /// The client's limit on new sessions: a session beyond it ends after the provisional lifetime without use.
    pub limit: Option<NewSessionLimit>,
}

/// How many sessions one client may create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSessionLimit {
    /// Key of the limit's state.
    pub key: String,
    /// Time one session costs, µs, ≥ 1.
    pub interval_us: u64,
    /// Time that may be spent at once, µs: interval × burst.
    pub tolerance_us: u64,
}

/// How a session is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAccess {
    /// Its fields are read.
    Read,
    /// Its fields are read and its views are increased by one.
    CountView,
}

/// The session as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionLookup {
    /// The request names none.
    NotRequested,
    /// The provisional id is valid, and its session is not created.
    Provisional,
    /// It expired, was deleted, or never was.
    Gone,
    /// It is alive.
    Found {
        /// When it was created, ms since 1970 by Redis's clock.
        created_ms: u64,
        /// Its views, this one included.
        views: u64,
        /// Attributes of its own; boxed, because most sessions have none.
        attributes: Option<Box<SessionAttributes>>,
        /// The application's fields as stored, reserved ones left out, in no order.
        fields: Vec<(String, Bytes)>,
    },
    /// It has another id now; for some seconds a marker is stored under the old one.
    Rotated,
    /// The value under its key is no session.
    Corrupt,
    /// Its user logged out everywhere; it is deleted.
    Revoked,
}

impl SessionLookup {
    /// Tag of the user that is logged in with it.
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Found { attributes: Some(own), .. } => own.user.as_deref(),
            _ => None,
        }
    }

    /// The first hashed id of a session that was rotated, which identifies the client over all its ids.
    pub fn lineage(&self) -> Option<&str> {
        match self {
            Self::Found { attributes: Some(own), .. } => own.lineage.as_deref(),
            _ => None,
        }
    }

    /// Whether nothing may be stored in it, see [`SessionAttributes::unconfirmed`].
    pub fn is_unconfirmed(&self) -> bool {
        matches!(self, Self::Found { attributes: Some(own), .. } if own.unconfirmed)
    }

    /// Whether this call created it.
    pub fn is_created(&self) -> bool {
        matches!(self, Self::Found { attributes: Some(own), .. } if own.created)
    }
}

/// What only some sessions have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionAttributes {
    /// Lifetime without use, ms, in place of the configured one.
    pub idle_ms: Option<u64>,
    /// Its latest end, ms since 1970, in place of the configured one.
    pub end_ms: Option<u64>,
    /// Tag of the user that is logged in.
    pub user: Option<String>,
    /// Details of the login, JSON.
    pub details: Option<Bytes>,
    /// The first hashed id of a session that was rotated.
    pub lineage: Option<String>,
    /// It was created for a provisional id beyond the client's limit on new sessions: it ends after the provisional
    /// lifetime without use, and nothing is stored in it.
    pub unconfirmed: bool,
    /// It was created by the call that this is the reply to.
    pub created: bool,
}

impl SessionAttributes {
    /// Takes a reserved field; returns whether it is one of the attributes.
    fn set_reserved_field(&mut self, name: &str, value: Value) -> bool {
        match name {
            "_i" => self.idle_ms = value.as_u64(),
            "_x" => self.end_ms = value.as_u64(),
            "_u" => self.user = value.as_string(),
            "_d" => self.details = value.into_bytes(),
            "_l" => self.lineage = value.as_string(),
            _ => return false,
        }
        true
    }
}

/// Reads what was found out of the reply to a request's begin.
///
/// # Errors
/// `Protocol` when a number is missing.
pub fn decode(numbers: &mut ReplyReader<'_>, stored: Option<Value>) -> Result<SessionLookup, RedisError> {
    let status = numbers.signed()?;
    if !matches!(status, 1 | 5 | 7 | 8) {
        return lookup_without_session(status);
    }
    let created_ms = numbers.unsigned()?;
    let mut session = found_session(created_ms, numbers.unsigned()?, stored);
    if status != 1
        && let SessionLookup::Found { attributes: own, .. } = &mut session
    {
        let own = own.get_or_insert_default();
        (own.unconfirmed, own.created) = (status != 7, status != 5);
    }
    Ok(session)
}

/// The result for a session that is not alive.
pub fn lookup_without_session(status: i64) -> Result<SessionLookup, RedisError> {
    match status {
        0 => Ok(SessionLookup::Gone),
        2 => Ok(SessionLookup::Rotated),
        3 => Ok(SessionLookup::Corrupt),
        4 => Ok(SessionLookup::Revoked),
        6 => Ok(SessionLookup::Provisional),
        other => Err(RedisError::protocol(format!("a session is {other}, which is none of its states"))),
    }
}

/// The result for a session that is alive; `stored` are its fields, if it has more than every session has.
pub fn found_session(created_ms: u64, views: u64, stored: Option<Value>) -> SessionLookup {
    let flat = if let Some(Value::Array(flat)) = stored { flat } else { Vec::new() };
    let (own, fields) = split_reserved_fields(flat);
    SessionLookup::Found { created_ms, views, attributes: own, fields }
}

/// Splits the names and values that Redis lists into attributes and the application's fields.
pub(super) fn split_reserved_fields(
    flat: Vec<Value>,
) -> (Option<Box<SessionAttributes>>, Vec<(String, Bytes)>) {
    let (mut fields, mut own, mut has_own) = (Vec::new(), SessionAttributes::default(), false);
    let mut flat = flat.into_iter();
    while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
        let Some(name) = name.as_string() else { continue };
        match application_field(&name) {
            Some(name) => fields.push((name.to_owned(), value.into_bytes().unwrap_or_default())),
            None => has_own |= own.set_reserved_field(&name, value),
        }
    }
    (has_own.then(|| Box::new(own)), fields)
}

/// The application's name of a stored field; `None` for reserved fields, which begin with one `_`.
fn application_field(stored: &str) -> Option<&str> {
    match stored.strip_prefix('_') {
        None => Some(stored),
        Some(rest) if rest.starts_with('_') => Some(rest),
        Some(_) => None,
    }
}

/// The stored name of an application's field: names that begin with `_` get a second one, so they never collide with
/// reserved fields.
pub fn stored_name(name: &str) -> String {
    if name.starts_with('_') { format!("_{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_an_underscore_survive_a_round_trip() {
        for name in ["cart", "_csrf", "__x", "_", "_c", "a_b"] {
            assert_eq!(application_field(&stored_name(name)), Some(name));
        }
        for reserved in ["_c", "_t", "_v"] {
            assert_eq!(application_field(reserved), None);
        }
    }
}
