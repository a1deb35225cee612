//! What one request asks about its visitor's session, and what is found.

use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;

use crate::redis::begin::ReplyReader;
use crate::redis::error::RedisError;

/// For how long a ticket makes a session, and how long a session lives whose cookie has not come back.
pub const PROVISIONAL_SESSION_TTL: Duration = Duration::from_secs(10 * 60);

/// What to do with the visitor's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionQuery {
    /// Key of the session's hash.
    pub key: String,
    /// Key of its user's generation, if the visitor's cookie names a user.
    pub generation: Option<String>,
    /// Read it, or count a view as well.
    pub access: SessionAccess,
    /// The id comes from a ticket: a missing session may be made. Otherwise it is answered with `Gone`.
    pub provisional: Option<ProvisionalSessionQuery>,
    /// Lifetime without use, ms.
    pub idle_ms: u64,
    /// Lifetime in all, ms.
    pub absolute_ms: u64,
}

impl SessionQuery {
    /// Whether asking for it changes anything, apart from when the session was last used.
    pub(in crate::redis) fn changes(&self) -> bool {
        self.access == SessionAccess::CountView || self.creates()
    }

    /// Whether it makes a session.
    pub(in crate::redis) fn creates(&self) -> bool {
        self.provisional.as_ref().is_some_and(|provisional| provisional.creates)
    }

    pub(super) fn mode_code(&self) -> &'static str {
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

/// A ticket that came back: for a first visit nothing was stored, and its session is made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionalSessionQuery {
    /// When it was issued, ms since 1970 by Redis's clock.
    pub issued_ms: u64,
    /// Whether a view was counted with it, which its session begins with.
    pub view_counted: bool,
    /// For how long it makes a session, ms; no longer than a session lives without use.
    pub ttl_ms: u64,
    /// Whether the session is made if it is not there; if not, that is answered with `Ticket`.
    pub creates: bool,
    /// The client's limit on new sessions: one beyond it is gone after the term without use.
    pub limit: Option<NewSessionLimit>,
}

/// How many sessions one client may have made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSessionLimit {
    /// Key of what the limit remembers.
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
    /// Its fields are read and its views go up by one.
    CountView,
}

/// The session as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionLookup {
    /// None was asked for.
    NotRequested,
    /// The ticket is good, and its session is not made.
    Provisional,
    /// It expired, was deleted, or never was.
    Gone,
    /// It lives.
    Found {
        /// When it was created, ms since 1970 by Redis's clock.
        created_ms: u64,
        /// Its views, this one included.
        views: u64,
        /// What it has of its own; boxed, because most have nothing.
        attributes: Option<Box<SessionAttributes>>,
        /// The application's fields as stored, reserved ones left out, in no order.
        fields: Vec<(String, Bytes)>,
    },
    /// It has another id now; for some seconds a marker stands where it was.
    Rotated,
    /// Something that is no session lies under its key.
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

    /// The first hashed id of a session that was given another one since: it stands for the visitor of then.
    pub fn lineage(&self) -> Option<&str> {
        match self {
            Self::Found { attributes: Some(own), .. } => own.lineage.as_deref(),
            _ => None,
        }
    }

    /// Whether nothing may be stored in it, see [`Own::unconfirmed`].
    pub fn is_unconfirmed(&self) -> bool {
        matches!(self, Self::Found { attributes: Some(own), .. } if own.unconfirmed)
    }

    /// Whether this very call made it.
    pub(in crate::redis) fn is_created(&self) -> bool {
        matches!(self, Self::Found { attributes: Some(own), .. } if own.created)
    }
}

/// What only some sessions have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionAttributes {
    /// Lifetime without use, ms, in place of the configured one.
    pub idle_ms: Option<u64>,
    /// Its end at the latest, ms since 1970, in place of the configured one.
    pub end_ms: Option<u64>,
    /// Tag of the user that is logged in.
    pub user: Option<String>,
    /// Details of the login, JSON.
    pub details: Option<Bytes>,
    /// The first hashed id of a session that was given another one since.
    pub lineage: Option<String>,
    /// It was made for a ticket whose client makes more sessions than it may: it is gone after the ticket's term without
    /// use, and nothing is stored in it.
    pub unconfirmed: bool,
    /// It was made by the very call that this is the answer to.
    pub created: bool,
}

impl SessionAttributes {
    /// Takes a reserved field; whether it is one of those kept here.
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

pub(super) fn decode(
    numbers: &mut ReplyReader<'_>,
    stored: Option<Value>,
) -> Result<SessionLookup, RedisError> {
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

/// A session that does not live.
pub(super) fn lookup_without_session(status: i64) -> Result<SessionLookup, RedisError> {
    match status {
        0 => Ok(SessionLookup::Gone),
        2 => Ok(SessionLookup::Rotated),
        3 => Ok(SessionLookup::Corrupt),
        4 => Ok(SessionLookup::Revoked),
        6 => Ok(SessionLookup::Provisional),
        other => Err(RedisError::protocol(format!("a session is {other}, which is none of its states"))),
    }
}

/// A session that lives; `stored` are its fields, if it has more than every one has.
pub(super) fn found_session(created_ms: u64, views: u64, stored: Option<Value>) -> SessionLookup {
    let flat = if let Some(Value::Array(flat)) = stored { flat } else { Vec::new() };
    let (own, fields) = split_reserved_fields(flat);
    SessionLookup::Found { created_ms, views, attributes: own, fields }
}

/// Names and values as Redis lists them: what the session has of its own, and the application's fields.
pub(in crate::redis) fn split_reserved_fields(
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

/// The application's name of a stored field; `None` for the reserved ones, which begin with one `_`.
fn application_field(stored: &str) -> Option<&str> {
    match stored.strip_prefix('_') {
        None => Some(stored),
        Some(rest) if rest.starts_with('_') => Some(rest),
        Some(_) => None,
    }
}

/// How an application's field is stored: names that begin with `_` get a second one, so they never meet ours.
pub(in crate::redis) fn stored_name(name: &str) -> String {
    if name.starts_with('_') { format!("_{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_an_underscore_survive_the_way_there_and_back() {
        for name in ["cart", "_csrf", "__x", "_", "_c", "a_b"] {
            assert_eq!(application_field(&stored_name(name)), Some(name));
        }
        for reserved in ["_c", "_t", "_v"] {
            assert_eq!(application_field(reserved), None);
        }
    }
}
