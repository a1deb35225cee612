//! Changes of whole sessions, their ids and users: plain data and its wire form, as in
//! `migrations/0021_regatta_v5.lua`.

use bytes::Bytes;

use crate::redis::RedisError;
use crate::redis::wire::{Value, call_args, number};
use crate::sessions::keys;
use crate::sessions::query::{NewSessionLimit, PROVISIONAL_SESSION_TTL, stored_name};

/// Notification that a session has ended, by its hashed id.
pub const SESSION_DESTROYED: char = 's';
/// Notification that all sessions of a user have ended, by the user's tag.
pub const USER_SESSIONS_REVOKED: char = 'u';

/// A new id for a session, or a new session.
#[derive(Debug, Clone, Copy)]
pub struct RotateSession<'a> {
    /// Prefix of every key.
    pub prefix: &'a str,
    /// Hashed new id.
    pub new: &'a str,
    /// The session that gets the new id.
    pub from: RotateFrom<'a>,
    /// Tag of the user, old or new.
    pub user: Option<&'a str>,
    /// Whether this is a login: the session's user changes and its lifetime begins anew.
    pub login: bool,
    /// Details of the login; `None` leaves them.
    pub details: Option<&'a Bytes>,
    /// Lifetime without use, ms.
    pub idle_ms: u64,
    /// Lifetime in all, ms.
    pub absolute_ms: u64,
    /// How long the old id keeps a marker, ms.
    pub grace_ms: u64,
    /// Most fields afterwards.
    pub max_fields: u64,
    /// Most bytes of names and values afterwards.
    pub max_bytes: u64,
    /// The first hashed id of the session, which it keeps over all rotations.
    pub lineage: Option<&'a str>,
    /// Fields to set.
    pub set: &'a [(String, Bytes)],
    /// Fields to remove.
    pub remove: &'a [String],
    /// Encrypted fields that must be unchanged, because `set` has them encrypted for the new id.
    pub expect: &'a [(String, Bytes)],
    /// Initial values of a session that is created.
    pub initial: InitialSession,
    /// The client's limit on new sessions; a session that is created, or was unconfirmed, counts.
    pub limit: Option<&'a NewSessionLimit>,
}

/// Initial values of a session that is created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InitialSession {
    /// Views.
    pub views: u64,
    /// When it was created, ms since 1970 by Redis's clock; 0: now.
    pub created_ms: u64,
}

/// The session that gets a new id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotateFrom<'a> {
    /// None: a session is created.
    Nothing,
    /// The session with this hashed id, which must exist.
    Session(&'a str),
    /// The session with this hashed id; a new one is created if it is gone.
    SessionIfPresent(&'a str),
}

impl RotateFrom<'_> {
    /// The hashed id that is replaced, if there is one.
    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Session(digest) | Self::SessionIfPresent(digest) => Some(digest),
        }
    }
}

/// The reply to a [`RotateSession`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotateOutcome {
    /// It is done.
    Done {
        /// When the session was created, ms since 1970 by Redis's clock.
        created_ms: u64,
        /// Sessions in the user's index; 0 without a user.
        sessions: u64,
    },
    /// The old session is gone; nothing was changed.
    Gone,
    /// The old session has another id already; nothing was changed.
    AlreadyRotated,
    /// The new id is taken; nothing was changed.
    IdInUse,
    /// It would have more fields or bytes than allowed; nothing was changed.
    TooLarge,
    /// An encrypted field changed meanwhile; nothing was changed.
    Conflict,
    /// The client has created as many sessions as it may; nothing was changed.
    RateLimited {
        /// When it may create one more, ms from now.
        retry_after_ms: u64,
    },
}

/// The lifetime of a provisional id, ms.
pub(super) fn provisional_ttl_ms() -> u64 {
    u64::try_from(PROVISIONAL_SESSION_TTL.as_millis()).unwrap_or(u64::MAX)
}

impl RotateSession<'_> {
    /// The arguments in wire order: function, number of keys, keys, arguments.
    pub fn encode(&self, entry: Value) -> Vec<Value> {
        let (how, old) = match self.from {
            RotateFrom::Nothing => ("-", None),
            RotateFrom::Session(old) => ("o", Some(old)),
            RotateFrom::SessionIfPresent(old) => ("f", Some(old)),
        };
        let mut keys = vec![keys::session(self.prefix, self.new)];
        keys.extend(old.map(|old| keys::session(self.prefix, old)));
        if let Some(user) = self.user {
            keys.extend([keys::user_sessions(self.prefix, user), keys::user_generation(self.prefix, user)]);
        }
        keys.extend(self.limit.map(|limit| limit.key.clone()));
        let words = [
            if self.login { "login" } else { "cycle" },
            how,
            self.user.unwrap_or_default(),
            self.new,
            old.unwrap_or_default(),
        ];
        let details = Value::Bytes(self.details.cloned().unwrap_or_default());
        let mut args: Vec<Value> = words.into_iter().map(Value::from).chain([details]).collect();
        // The function counts every field in `set` as the application's: the bounds are raised so that the lineage
        // takes none of its room.
        let lineage = self.lineage.map(|first| ["_l", first]);
        let (fields, bytes) = lineage.map_or((0, 0), |[name, first]| (1, name.len() + first.len()));
        let bounds = [self.max_fields + fields, self.max_bytes + bytes as u64];
        args.extend([self.idle_ms, self.absolute_ms, self.grace_ms].into_iter().chain(bounds).map(number));
        let [interval_us, tolerance_us] =
            self.limit.map_or([0, 0], |limit| [limit.interval_us, limit.tolerance_us]);
        let made =
            [interval_us, tolerance_us, provisional_ttl_ms(), self.initial.views, self.initial.created_ms];
        args.extend(made.map(number));
        args.push(number(self.set.len() as u64 + fields));
        args.extend(lineage.into_iter().flatten().map(Value::from));
        args.extend(pairs(self.set));
        args.push(number(self.remove.len() as u64));
        args.extend(self.remove.iter().map(|name| Value::from(stored_name(name))));
        args.push(number(self.expect.len() as u64));
        args.extend(pairs(self.expect));
        call_args(entry, &keys, args)
    }
}

fn pairs(fields: &[(String, Bytes)]) -> impl Iterator<Item = Value> {
    fields.iter().flat_map(|(name, value)| [Value::from(stored_name(name)), Value::Bytes(value.clone())])
}

/// Reads the reply to a [`RotateSession`].
///
/// # Errors
/// `Protocol` when it has another form.
pub(super) fn decode_outcome(reply: &Value) -> Result<RotateOutcome, RedisError> {
    if let Value::Array(parts) = reply
        && let [_, created, sessions] = parts.as_slice()
        && let (Some(created_ms), Some(sessions)) = (created.as_u64(), sessions.as_u64())
    {
        return Ok(RotateOutcome::Done { created_ms, sessions });
    }
    if let Value::Array(parts) = reply
        && let [code, retry] = parts.as_slice()
        && code.as_i64() == Some(-5)
        && let Some(retry_after_ms) = retry.as_u64()
    {
        return Ok(RotateOutcome::RateLimited { retry_after_ms });
    }
    match reply.as_i64() {
        Some(0) => Ok(RotateOutcome::Gone),
        Some(-1) => Ok(RotateOutcome::IdInUse),
        Some(-2) => Ok(RotateOutcome::TooLarge),
        Some(-3) => Ok(RotateOutcome::AlreadyRotated),
        Some(-4) => Ok(RotateOutcome::Conflict),
        _ => Err(RedisError::protocol("a session's move did not answer with what it should")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_a_retry_time_only_with_its_code() {
        let pair = |code: i64| decode_outcome(&Value::Array(vec![code.into(), Value::from("1500")]));
        assert!(matches!(pair(-5), Ok(RotateOutcome::RateLimited { retry_after_ms: 1500 })));
        assert!(pair(0).is_err() && pair(-4).is_err());
    }
}
