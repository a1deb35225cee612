//! Whole sessions: their ids, their users and their ends, as `migrations/0021_regatta_v5.lua` has them.
//!
//! Plain data, its wire form, and the calls. Every call is one step in Redis and one round trip.

use bytes::Bytes;
use fred::types::Value;

use crate::redis::begin::{NewSessionLimit, PROVISIONAL_SESSION_TTL, stored_name};
use crate::redis::breakers::CallKind;
use crate::redis::connection::ActiveConnection;
use crate::redis::counter_commands::number;
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;
use crate::redis::transport::RedisTransport;
use crate::redis::{RedisClient, keys, plain};

/// News that a session has ended, by its hashed id.
pub const SESSION_DESTROYED: char = 's';
/// News that all sessions of a user have ended, by his tag.
pub const USER_SESSIONS_REVOKED: char = 'u';

/// A session that gets another id, or is made.
#[derive(Debug, Clone, Copy)]
pub struct RotateSession<'a> {
    /// First part of every key.
    pub prefix: &'a str,
    /// Hashed new id.
    pub new: &'a str,
    /// Where it comes from.
    pub from: RotateFrom<'a>,
    /// Tag of its user, old or new.
    pub user: Option<&'a str>,
    /// Whether this is a login: the session's user changes and its lifetime begins anew.
    pub login: bool,
    /// Details of the login; `None` leaves them.
    pub details: Option<&'a Bytes>,
    /// Lifetime without use, ms.
    pub idle_ms: u64,
    /// Lifetime in all, ms.
    pub absolute_ms: u64,
    /// How long the old id stays marked, ms.
    pub grace_ms: u64,
    /// Most fields afterwards.
    pub max_fields: u64,
    /// Most bytes of names and values afterwards.
    pub max_bytes: u64,
    /// The first hashed id of the session, which it keeps whatever ids follow.
    pub lineage: Option<&'a str>,
    /// Fields to set.
    pub set: &'a [(String, Bytes)],
    /// Fields to remove.
    pub remove: &'a [String],
    /// Encrypted fields as they must still be, because `set` has them encrypted for the new id.
    pub expect: &'a [(String, Bytes)],
    /// What a session that is made begins with.
    pub initial: InitialSession,
    /// The client's limit on new sessions; one that is made, or was not confirmed, counts.
    pub limit: Option<&'a NewSessionLimit>,
}

/// What a session that is made begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InitialSession {
    /// Views.
    pub views: u64,
    /// When it was created, ms since 1970 by Redis's clock; 0: now.
    pub created_ms: u64,
}

/// Where a session with a new id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotateFrom<'a> {
    /// From nowhere: it is made.
    Nothing,
    /// From the session with this hashed id, which must be there.
    Session(&'a str),
    /// From the session with this hashed id; it is made if that one is gone.
    SessionIfPresent(&'a str),
}

impl RotateFrom<'_> {
    /// The hashed id that is replaced, if there is one.
    fn digest(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Session(digest) | Self::SessionIfPresent(digest) => Some(digest),
        }
    }
}

/// The answer to a [`Move`].
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
    /// The client has made as many sessions as it may; nothing was changed.
    RateLimited {
        /// When it may make one more, ms from now.
        retry_after_ms: u64,
    },
}

impl RedisClient {
    /// Gives a session another id, or makes one.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Timeout`] it may have been done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn rotate_session(&self, request: &RotateSession<'_>) -> Result<RotateOutcome, RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Write, async |caller| plain::rotate_session(caller, request).await)
                .await;
        }
        let reply = self.call(ServerFunction::SessionRotate, |entry| request.encode(entry)).await?;
        let outcome = decode_outcome(&reply)?;
        // A new id is given exactly so that whoever knows the old one sees nothing any more.
        if let (RotateOutcome::Done { .. }, Some(old)) = (&outcome, request.from.digest()) {
            self.publish_notification(SESSION_DESTROYED, old);
        }
        Ok(outcome)
    }

    /// Ends one session; with `only_his` only if it is this user's. Returns whether there was one.
    ///
    /// It works on a server that is full, too. A session that is young leaves a mark, so that no ticket makes it anew.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn destroy_session(
        &self,
        prefix: &str,
        digest: &str,
        user: Option<&str>,
        only_of_user: bool,
    ) -> Result<bool, RedisError> {
        let mut keys = vec![keys::session(prefix, digest)];
        if self.is_plain() && !only_of_user {
            return self
                .call_plain(CallKind::Delete, async |caller| plain::destroy_session(caller, &keys[0]).await)
                .await;
        }
        keys.extend(user.map(|user| keys::user_sessions(prefix, user)));
        let tag = user.filter(|_| only_of_user).unwrap_or_default();
        let args = [Value::from(digest), Value::from(tag), number(provisional_ttl_ms())];
        let reply =
            self.call(ServerFunction::SessionDestroy, |entry| call_args(entry, &keys, args.to_vec())).await?;
        let destroyed = reply.as_i64() == Some(1);
        self.publish_notification(SESSION_DESTROYED, digest);
        Ok(destroyed)
    }

    /// Tells the workers that keep copies; one that does not hear it keeps its copy for its short time.
    pub(super) fn publish_notification(&self, kind: char, subject: &str) {
        let (redis, message) = (self.clone(), format!("{kind} {subject}"));
        tokio::spawn(async move {
            let channel = redis.common_channel().await;
            let (channel, message) = (channel.as_str(), message.as_str());
            let publish = |live: ActiveConnection| async move {
                live.transport.call("PUBLISH", [channel, message]).await
            };
            if let Err(error) = redis.send(CallKind::Read, publish).await {
                tracing::debug!(%error, "the workers were not told of something: {error}");
            }
        });
    }

    /// Logs a user out everywhere, except in the session `stays`.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn destroy_user_sessions(
        &self,
        prefix: &str,
        user: &str,
        except: Option<&str>,
        kept_ms: u64,
        absolute_ms: u64,
    ) -> Result<(), RedisError> {
        let mut keys = vec![keys::user_generation(prefix, user), keys::user_sessions(prefix, user)];
        keys.extend(except.map(|digest| keys::session(prefix, digest)));
        let args = [number(kept_ms), Value::from(except.unwrap_or_default()), number(absolute_ms)];
        self.call(ServerFunction::SessionDestroyAll, |entry| call_args(entry, &keys, args.to_vec())).await?;
        self.publish_notification(USER_SESSIONS_REVOKED, user);
        Ok(())
    }

    /// Gives a session a lifetime of its own; returns whether it is there.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn set_session_lifetimes(
        &self,
        prefix: &str,
        digest: &str,
        user: Option<&str>,
        idle_ms: u64,
        absolute_ms: u64,
    ) -> Result<bool, RedisError> {
        let mut keys = vec![keys::session(prefix, digest)];
        keys.extend(user.map(|user| keys::user_sessions(prefix, user)));
        let args = [Value::from(digest), number(idle_ms), number(absolute_ms), number(provisional_ttl_ms())];
        let reply = self
            .call(ServerFunction::SessionSetLifetimes, |entry| call_args(entry, &keys, args.to_vec()))
            .await?;
        Ok(reply.as_i64() == Some(1))
    }

    /// Puts aside what lies under a session's key and is none, for `kept_ms`; returns whether there was such a thing.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn quarantine_session(
        &self,
        prefix: &str,
        digest: &str,
        kept_ms: u64,
    ) -> Result<bool, RedisError> {
        let keys = [keys::session(prefix, digest), keys::quarantine(prefix, digest)];
        if self.is_plain() {
            let work = async |caller: &RedisTransport| {
                plain::quarantine_session(caller, &keys[0], &keys[1], kept_ms).await
            };
            return self.call_plain(CallKind::Write, work).await;
        }
        let reply = self
            .call(ServerFunction::SessionQuarantine, |entry| call_args(entry, &keys, vec![number(kept_ms)]))
            .await?;
        Ok(reply.as_i64() == Some(1))
    }
}

/// A call's arguments in wire order: the entry's name, the number of keys, keys, arguments.
pub(super) fn call_args(entry: Value, keys: &[String], args: Vec<Value>) -> Vec<Value> {
    let mut all = Vec::with_capacity(2 + keys.len() + args.len());
    all.extend([entry, number(keys.len() as u64)]);
    all.extend(keys.iter().map(|key| Value::from(key.as_str())));
    all.extend(args);
    all
}

/// A ticket's term, ms.
pub(super) fn provisional_ttl_ms() -> u64 {
    u64::try_from(PROVISIONAL_SESSION_TTL.as_millis()).unwrap_or(u64::MAX)
}

impl RotateSession<'_> {
    fn encode(&self, entry: Value) -> Vec<Value> {
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
        // The function counts whatever is set as the application's: the lineage, which is ours, takes no room of theirs.
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

fn decode_outcome(reply: &Value) -> Result<RotateOutcome, RedisError> {
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
