//! Whole sessions: their ids, their users and their ends, as `migrations/0003_regatta_session_v1.lua` has them.
//!
//! Plain data, its wire form, and the calls. Every call is one step in Redis and one round trip.

use bytes::Bytes;
use fred::types::Value;

use crate::redis::Redis;
use crate::redis::begin::stored_field;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::link::Live;
use crate::redis::plain;

/// News that a session has ended, by its hashed id.
pub const ENDED: char = 's';
/// News that all sessions of a user have ended, by his tag.
pub const ENDED_ALL: char = 'u';

/// The field that holds the first hashed id of a session that was given another one since.
const LINEAGE: &str = "_l";

/// A session that gets another id, or is made.
#[derive(Debug, Clone, Copy)]
pub struct Move<'a> {
    /// First part of every key.
    pub prefix: &'a str,
    /// Hashed new id.
    pub new: &'a str,
    /// Where it comes from.
    pub from: Source<'a>,
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
}

/// Where a session with a new id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// From nowhere: it is made.
    Nothing,
    /// From the session with this hashed id, which must be there.
    Session(&'a str),
    /// From the session with this hashed id; it is made if that one is gone.
    SessionIfThere(&'a str),
}

impl Source<'_> {
    /// The hashed id that is replaced, if there is one.
    fn digest(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Session(digest) | Self::SessionIfThere(digest) => Some(digest),
        }
    }
}

/// The answer to a [`Move`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
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
    Rotated,
    /// The new id is taken; nothing was changed.
    Taken,
    /// It would have more fields or bytes than allowed; nothing was changed.
    Full,
    /// An encrypted field changed meanwhile; nothing was changed.
    Conflict,
}

/// One of a user's sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its hashed id.
    pub digest: String,
    /// When its user logged in, ms since 1970 by Redis's clock.
    pub created_ms: u64,
    /// When it was last used, ms since 1970; exact to a tenth of its idle lifetime.
    pub touched_ms: u64,
    /// Details of the login, as stored.
    pub details: Bytes,
}

impl Redis {
    /// Gives a session another id, or makes one.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Timeout`] it may have been done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn move_session(&self, request: &Move<'_>) -> Result<Moved, Error> {
        if self.is_plain() {
            return self.plainly(Kind::Commit, async |caller| plain::move_to(caller, request).await).await;
        }
        let reply = self.run(Entry::SessionMove, |entry| request.encode(entry)).await?;
        let outcome = moved(&reply)?;
        // A new id is given exactly so that whoever knows the old one sees nothing any more.
        if let (Moved::Done { .. }, Some(old)) = (&outcome, request.from.digest()) {
            self.tell(ENDED, old);
        }
        Ok(outcome)
    }

    /// Ends one session; with `only_his` only if it is this user's. Returns whether there was one.
    ///
    /// Ending one's own works on a server that is full, too: it takes no functions then, but deletes.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn end_session(
        &self,
        prefix: &str,
        digest: &str,
        user: Option<&str>,
        only_his: bool,
    ) -> Result<bool, Error> {
        let mut keys = vec![keys::session(prefix, digest)];
        if self.is_plain() && !only_his {
            return self.plainly(Kind::Delete, async |caller| plain::delete(caller, &keys[0]).await).await;
        }
        keys.extend(user.map(|user| keys::sessions_of(prefix, user)));
        let tag = user.filter(|_| only_his).unwrap_or_default();
        let args = [digest, tag].map(Value::from);
        let ended = match self.run(Entry::SessionEnd, |entry| call(entry, &keys, args.to_vec())).await {
            Err(error) if error.is_about_writes() => self.end_plainly(&keys, digest, tag).await?,
            reply => reply?.as_i64() == Some(1),
        };
        self.tell(ENDED, digest);
        Ok(ended)
    }

    /// Ends a session by commands that a full server takes, where functions count as writes: what frees memory must
    /// not wait for memory.
    async fn end_plainly(&self, keys: &[String], digest: &str, tag: &str) -> Result<bool, Error> {
        let call = |live: Live| async move {
            let Some(key) = keys.first() else { return Ok(false) };
            if !tag.is_empty()
                && live.caller.call("HGET", [key, "_u"]).await?.as_string().as_deref() != Some(tag)
            {
                return Ok(false);
            }
            let ended = live.caller.call("UNLINK", [key]).await?;
            if let Some(index) = keys.get(1) {
                live.caller.call("ZREM", [index, digest]).await?;
            }
            Ok(ended.as_i64() == Some(1))
        };
        self.guard_as(Kind::Delete, call).await
    }

    /// Tells the workers that keep copies; one that does not hear it keeps its copy for its short time.
    pub(super) fn tell(&self, kind: char, whose: &str) {
        let (redis, news) = (self.clone(), format!("{kind} {whose}"));
        tokio::spawn(async move {
            let channel = redis.channel().await;
            let (channel, news) = (channel.as_str(), news.as_str());
            let told = |live: Live| async move { live.caller.call("PUBLISH", [channel, news]).await };
            if let Err(error) = redis.guard_as(Kind::Read, told).await {
                tracing::debug!(%error, "the workers were not told that a session ended: {error}");
            }
        });
    }

    /// A user's latest 256 sessions, in the order of their logins. With `most` > 0 the oldest 256 instead, and those
    /// beyond so many in all end now.
    ///
    /// Two round trips: the index is read first, because a call names every key it touches.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn sessions_of(&self, prefix: &str, user: &str, most: u64) -> Result<Vec<Listed>, Error> {
        let index = keys::sessions_of(prefix, user);
        let (first, last) = if most > 0 { ("0", "255") } else { ("-256", "-1") };
        let range = [index.as_str(), first, last];
        let named =
            self.guard_as(Kind::Read, |live| async move { live.caller.call("ZRANGE", range).await }).await?;
        let Value::Array(named) = named else {
            return Err(Error::protocol("the index of a user's sessions is no list"));
        };
        let named: Vec<String> = named.iter().filter_map(Value::as_string).collect();
        if named.is_empty() {
            return Ok(Vec::new());
        }
        let mut keys = vec![index, keys::generation(prefix, user)];
        keys.extend(named.iter().map(|digest| keys::session(prefix, digest)));
        let mut args = vec![Value::from(user), number(most)];
        args.extend(named.iter().map(|digest| Value::from(digest.as_str())));
        let reply = self.run(Entry::SessionList, |entry| call(entry, &keys, args.clone())).await?;
        let Value::Array(found) = reply else {
            return Err(Error::protocol("the list of a user's sessions is no list"));
        };
        let mut lives = Vec::with_capacity(named.len());
        for (digest, found) in named.into_iter().zip(found) {
            match listed(&digest, found) {
                Some(session) => lives.push(session),
                None if most > 0 => self.tell(ENDED, &digest),
                None => {}
            }
        }
        Ok(lives)
    }

    /// Makes a session the user's latest one, which it may not be by the time of its login: the server's clock may have
    /// stepped back since an earlier one, and the oldest are those that end.
    ///
    /// # Errors
    /// See [`Error`]; doing it once more does no harm.
    pub async fn make_latest(&self, prefix: &str, user: &str, digest: &str) -> Result<(), Error> {
        let index = &keys::sessions_of(prefix, user);
        let call = async |live: Live| {
            let last = live.caller.call("ZREVRANGE", [index.as_str(), "0", "0", "WITHSCORES"]).await?;
            let Value::Array(last) = last else { return Ok(()) };
            let [latest, at] = &last[..] else { return Ok(()) };
            if latest.as_str().as_deref() == Some(digest) {
                return Ok(());
            }
            let after = format!("{:.0}", at.as_f64().unwrap_or(0.0) + 1.0);
            live.caller.call("ZADD", [index.as_str(), "XX", &after, digest]).await.map(|_| ())
        };
        self.guard_as(Kind::Commit, call).await
    }

    /// Logs a user out everywhere, except in the session `stays`.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn end_sessions_of(
        &self,
        prefix: &str,
        user: &str,
        stays: Option<&str>,
        kept_ms: u64,
    ) -> Result<(), Error> {
        let mut keys = vec![keys::generation(prefix, user), keys::sessions_of(prefix, user)];
        keys.extend(stays.map(|digest| keys::session(prefix, digest)));
        let args = [number(kept_ms), Value::from(stays.unwrap_or_default())];
        self.run(Entry::SessionEverywhere, |entry| call(entry, &keys, args.to_vec())).await?;
        self.tell(ENDED_ALL, user);
        Ok(())
    }

    /// Gives a session a lifetime of its own; returns whether it is there.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn remember_session(
        &self,
        prefix: &str,
        digest: &str,
        user: Option<&str>,
        idle_ms: u64,
        absolute_ms: u64,
    ) -> Result<bool, Error> {
        let mut keys = vec![keys::session(prefix, digest)];
        keys.extend(user.map(|user| keys::sessions_of(prefix, user)));
        let args = [number(idle_ms), number(absolute_ms)];
        let reply = self.run(Entry::SessionRemember, |entry| call(entry, &keys, args.to_vec())).await?;
        Ok(reply.as_i64() == Some(1))
    }

    /// Puts aside what lies under a session's key and is none, for `kept_ms`; returns whether there was such a thing.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn quarantine_session(&self, prefix: &str, digest: &str, kept_ms: u64) -> Result<bool, Error> {
        let keys = [keys::session(prefix, digest), keys::quarantine(prefix, digest)];
        if self.is_plain() {
            let work = async |caller: &Caller| plain::quarantine(caller, &keys[0], &keys[1], kept_ms).await;
            return self.plainly(Kind::Commit, work).await;
        }
        let reply =
            self.run(Entry::SessionQuarantine, |entry| call(entry, &keys, vec![number(kept_ms)])).await?;
        Ok(reply.as_i64() == Some(1))
    }

    /// The mark of an id that was replaced ends after so long at the latest, also if the server's clock has stepped
    /// back since it was made: until it ends its visitor has no session.
    ///
    /// # Errors
    /// See [`Error`]; doing it once more does no harm.
    pub async fn bound_mark(&self, prefix: &str, digest: &str, grace_ms: u64) -> Result<(), Error> {
        let key = &keys::session(prefix, digest);
        let left = |live: Live| async move { live.caller.call("PTTL", [key.as_str()]).await };
        let left = self.guard_as(Kind::Read, left).await?;
        if left.as_u64().is_none_or(|left_ms| left_ms <= grace_ms) {
            return Ok(());
        }
        let grace = &grace_ms.to_string();
        let cut =
            |live: Live| async move { live.caller.call("PEXPIRE", [key.as_str(), grace.as_str()]).await };
        self.guard_as(Kind::Commit, cut).await.map(|_| ())
    }
}

/// A call's arguments in wire order: the entry's name, the number of keys, keys, arguments.
fn call(entry: Value, keys: &[String], args: Vec<Value>) -> Vec<Value> {
    let mut all = Vec::with_capacity(2 + keys.len() + args.len());
    all.extend([entry, number(keys.len() as u64)]);
    all.extend(keys.iter().map(|key| Value::from(key.as_str())));
    all.extend(args);
    all
}

fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

impl Move<'_> {
    fn encode(&self, entry: Value) -> Vec<Value> {
        let (how, old) = match self.from {
            Source::Nothing => ("-", None),
            Source::Session(old) => ("o", Some(old)),
            Source::SessionIfThere(old) => ("f", Some(old)),
        };
        let mut keys = vec![keys::session(self.prefix, self.new)];
        keys.extend(old.map(|old| keys::session(self.prefix, old)));
        if let Some(user) = self.user {
            keys.extend([keys::sessions_of(self.prefix, user), keys::generation(self.prefix, user)]);
        }
        let words = [
            if self.login { "login" } else { "cycle" },
            how,
            self.user.unwrap_or_default(),
            self.new,
            old.unwrap_or_default(),
        ];
        let mut args: Vec<Value> = words.into_iter().map(Value::from).collect();
        args.push(Value::Bytes(self.details.cloned().unwrap_or_default()));
        // The function counts whatever is set as the application's: the lineage, which is ours, takes no room of theirs.
        let lineage = self.lineage.map(|first| [LINEAGE, first]);
        let (fields, bytes) = lineage.map_or((0, 0), |[name, first]| (1, name.len() + first.len()));
        let bounds = [self.max_fields + fields, self.max_bytes + bytes as u64];
        args.extend([self.idle_ms, self.absolute_ms, self.grace_ms].into_iter().chain(bounds).map(number));
        args.push(number(self.set.len() as u64 + fields));
        args.extend(lineage.into_iter().flatten().map(Value::from));
        args.extend(pairs(self.set));
        args.push(number(self.remove.len() as u64));
        args.extend(self.remove.iter().map(|name| Value::from(stored_field(name))));
        args.push(number(self.expect.len() as u64));
        args.extend(pairs(self.expect));
        call(entry, &keys, args)
    }
}

fn pairs(fields: &[(String, Bytes)]) -> impl Iterator<Item = Value> {
    fields.iter().flat_map(|(name, value)| [Value::from(stored_field(name)), Value::Bytes(value.clone())])
}

fn moved(reply: &Value) -> Result<Moved, Error> {
    if let Value::Array(parts) = reply
        && let [_, created, sessions] = parts.as_slice()
        && let (Some(created_ms), Some(sessions)) = (created.as_u64(), sessions.as_u64())
    {
        return Ok(Moved::Done { created_ms, sessions });
    }
    match reply.as_i64() {
        Some(0) => Ok(Moved::Gone),
        Some(-1) => Ok(Moved::Taken),
        Some(-2) => Ok(Moved::Full),
        Some(-3) => Ok(Moved::Rotated),
        Some(-4) => Ok(Moved::Conflict),
        _ => Err(Error::protocol("a session's move did not answer with what it should")),
    }
}

fn listed(digest: &str, found: Value) -> Option<Listed> {
    let Value::Array(parts) = found else { return None };
    let [created, touched, details] = <[Value; 3]>::try_from(parts).ok()?;
    Some(Listed {
        digest: digest.to_owned(),
        created_ms: created.as_u64()?,
        touched_ms: touched.as_u64()?,
        details: details.into_bytes().unwrap_or_default(),
    })
}
