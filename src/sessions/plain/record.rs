//! Sessions in tower-sessions' own store for Redis: one record for each session, written as a whole.
//!
//! The store makes its key of the session's id alone. It gets another id, derived from this room's key with the prefix
//! and the hashed id, so that it contains neither the real id nor collides with another fleet's. The store reports two
//! results wrongly, as replies that cannot be parsed: that a session vanished before its save, and that it exists
//! before its creation. Both are corrected here.

use std::collections::HashMap;

use bytes::Bytes;
use ring::digest;
use time::OffsetDateTime;
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store::{self, SessionStore};
use tower_sessions_redis_store::RedisStore;

use crate::redis::wire::{PipelinedCommand, Value, command, integer, number, text, time_ms};
use crate::redis::{RedisError, RedisTransport, ServerRejection};
use crate::sessions::commit::CommitOutcome;
use crate::sessions::query::{SessionAccess, SessionLookup, SessionQuery};
use crate::sessions::{commit, keys};

/// When the session was created, ms. Fields of applications never begin with one underscore, see [`stored_field_name`].
const CREATED: &str = "_c";
/// Its lifetimes, ms: a commit does not have them, and must set the expiry.
const IDLE: &str = "_i";
const ABSOLUTE: &str = "_x";

/// The id under which the store keeps the session with this key.
pub(super) fn record_id(key: &str) -> Id {
    let digest = digest::digest(&digest::SHA256, key.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_ref()[..16]);
    Id(i128::from_le_bytes(bytes))
}

/// A session's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlainRecord {
    pub created_ms: u64,
    pub idle_ms: u64,
    pub absolute_ms: u64,
    /// Fields by their names in the application.
    pub fields: HashMap<String, Bytes>,
}

impl PlainRecord {
    /// With the configured lifetimes, which apply whatever they were when the session was created.
    fn with_lifetimes(&self, query: &SessionQuery) -> Self {
        Self { idle_ms: query.idle_ms, absolute_ms: query.absolute_ms, ..self.clone() }
    }

    /// Lifetime left, ms: the shorter of idle and absolute; 0 if it is over.
    pub(super) fn left_ms(&self, now_ms: u64) -> u64 {
        self.idle_ms.min(self.created_ms.saturating_add(self.absolute_ms).saturating_sub(now_ms))
    }

    /// Whether it has more than allowed; 0 bytes: not checked.
    pub(super) fn exceeds(&self, max_fields: u64, max_bytes: u64) -> bool {
        let bytes: usize = self.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.fields.len() as u64 > max_fields || max_bytes > 0 && bytes as u64 > max_bytes
    }

    fn record(&self, id: Id, now_ms: u64, left_ms: u64) -> Record {
        let numbers = [(CREATED, self.created_ms), (IDLE, self.idle_ms), (ABSOLUTE, self.absolute_ms)];
        let own = numbers.into_iter().map(|(name, number)| (name.to_owned(), number.into()));
        let fields = self.fields.iter().map(|(name, bytes)| (stored_field_name(name), to_json(bytes)));
        // The store's expiry is in whole seconds. One second too many does no harm: the numbers decide.
        let ends = now_ms.saturating_add(left_ms).div_ceil(1000);
        let ends = OffsetDateTime::from_unix_timestamp(i64::try_from(ends).unwrap_or(i64::MAX));
        Record {
            id,
            data: own.chain(fields).collect(),
            expiry_date: ends.unwrap_or(time::macros::datetime!(9999-12-31 0:00 UTC)),
        }
    }

    /// `None` if the record is not one of this room's.
    fn from_record(record: &Record) -> Option<Self> {
        let number = |name| record.data.get(name).and_then(serde_json::Value::as_u64);
        let own = |name: &str| [CREATED, IDLE, ABSOLUTE].contains(&name);
        let fields = record.data.iter().filter(|(name, _)| !own(name));
        let fields =
            fields.map(|(name, value)| Some((name.strip_prefix('=')?.to_owned(), from_json(value)?)));
        Some(Self {
            created_ms: number(CREATED)?,
            idle_ms: number(IDLE)?,
            absolute_ms: number(ABSOLUTE)?,
            fields: fields.collect::<Option<_>>()?,
        })
    }

    fn to_lookup(&self, views: u64) -> SessionLookup {
        let fields = self.fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        SessionLookup::Found { created_ms: self.created_ms, views, attributes: None, fields }
    }
}

/// The stored name of an application's field, which never collides with a reserved one.
fn stored_field_name(name: &str) -> String {
    format!("={name}")
}

/// The result of a lookup.
pub(super) enum PlainLookup {
    NotFound,
    Record(PlainRecord),
    /// The record cannot be read.
    Corrupt,
}

pub(super) async fn load(transport: &RedisTransport, id: Id) -> Result<PlainLookup, RedisError> {
    match transport.with_client(async |client| RedisStore::new(client).load(&id).await).await? {
        Ok(None) => Ok(PlainLookup::NotFound),
        Ok(Some(record)) => {
            Ok(PlainRecord::from_record(&record).map_or(PlainLookup::Corrupt, PlainLookup::Record))
        }
        Err(session_store::Error::Decode(_)) => Ok(PlainLookup::Corrupt),
        Err(error) => match to_redis_error(&error) {
            // The key holds a value of another type.
            RedisError::Rejected { rejection: ServerRejection::WrongType, .. } => Ok(PlainLookup::Corrupt),
            other => Err(other),
        },
    }
}

/// Reads a session and changes nothing.
pub async fn lookup_session(
    transport: &RedisTransport,
    query: &SessionQuery,
) -> Result<SessionLookup, RedisError> {
    let commands = vec![command("TIME", []), command("GET", [text(&keys::session_views(&query.key))])];
    let (found, replies) = tokio::join!(load(transport, record_id(&query.key)), transport.pipeline(commands));
    let replies = replies?.into_iter().collect::<Result<Vec<_>, _>>()?;
    let now = time_ms(replies.first().unwrap_or(&Value::Null))?;
    let views = replies.get(1).and_then(Value::as_u64).unwrap_or(0);
    Ok(match found? {
        PlainLookup::Record(session) if session.with_lifetimes(query).left_ms(now) > 0 => {
            session.to_lookup(views)
        }
        PlainLookup::Corrupt => SessionLookup::Corrupt,
        PlainLookup::Record(_) | PlainLookup::NotFound => SessionLookup::Gone,
    })
}

/// Reads a session and counts a view.
pub async fn lookup_and_count(
    transport: &RedisTransport,
    query: &SessionQuery,
) -> Result<SessionLookup, RedisError> {
    let id = record_id(&query.key);
    let (own, views) = (id.to_string(), keys::session_views(&query.key));
    let reads = vec![command("TIME", []), command("PTTL", [text(&own)]), command("GET", [text(&views)])];
    let (found, replies) = tokio::join!(load(transport, id), transport.pipeline(reads));
    let mut replies = replies?.into_iter();
    let mut reply = || replies.next().unwrap_or(Ok(Value::Null));
    let (now, ttl, counted) = (time_ms(&reply()?)?, integer(&reply()?)?, reply()?);
    let session = match found? {
        PlainLookup::NotFound => return Ok(SessionLookup::Gone),
        PlainLookup::Record(session) => session,
        PlainLookup::Corrupt => return Ok(SessionLookup::Corrupt),
    };
    let session = session.with_lifetimes(query);
    let left = session.left_ms(now);
    if left == 0 {
        return Ok(SessionLookup::Gone);
    }
    let mut commands: Vec<PipelinedCommand> = Vec::new();
    if query.access == SessionAccess::CountView {
        commands.push(command("INCR", [text(&views)]));
        commands.push(command("PEXPIRE", [text(&views), number(left)]));
    }
    // Only after a tenth of the idle lifetime, so that a busy session is not touched at every request.
    if u64::try_from(ttl).is_ok_and(|ttl| left.saturating_sub(ttl) >= query.idle_ms / 10) {
        commands.push(command("PEXPIRE", [text(&own), number(left)]));
        commands.push(command("PEXPIRE", [text(&views), number(left)]));
    }
    let mut views = counted.as_u64().unwrap_or(0);
    if !commands.is_empty() {
        let replies = transport.pipeline(commands).await?;
        if let (SessionAccess::CountView, Some(Ok(sum))) = (query.access, replies.first()) {
            views = sum.as_u64().unwrap_or(views);
        }
    }
    Ok(session.to_lookup(views))
}

/// Creates a session with this number of views and this lifetime, ms, until it is read.
pub(super) async fn create_session(
    transport: &RedisTransport,
    key: &str,
    session: &PlainRecord,
    (views, left): (u64, u64),
    now: u64,
) -> Result<CommitOutcome, RedisError> {
    if left == 0 {
        return Ok(CommitOutcome::Gone);
    }
    // Before the session exists: a request that finds it adds to these views.
    let args = [text(&keys::session_views(key)), number(views), text("PX"), number(left), text("NX")];
    transport.send("SET", args.into()).await?;
    let id = record_id(key);
    let mut record = session.record(id, now, left);
    if let Err(error) =
        transport.with_client(async |client| RedisStore::new(client).create(&mut record).await).await?
    {
        return if is_nil_reply(&error) { Ok(CommitOutcome::Exists) } else { Err(to_redis_error(&error)) };
    }
    if record.id != id {
        // The store chose another id because this one is taken; what it created would never be found.
        let deleted =
            transport.with_client(async |client| RedisStore::new(client).delete(&record.id).await).await?;
        deleted.map_err(|error| to_redis_error(&error))?;
        return Ok(CommitOutcome::Exists);
    }
    Ok(CommitOutcome::Committed { sums: Vec::new() })
}

/// Stores what a request changed; of two simultaneous requests the later one's record stays.
///
/// # Errors
/// `Unsupported` for sums and expectations, which need server-side code.
pub async fn commit_session(
    transport: &RedisTransport,
    request: &commit::CommitSession<'_>,
) -> Result<CommitOutcome, RedisError> {
    if !request.add.is_empty() {
        return Err(RedisError::Unsupported { what: "adding to a session's field" });
    }
    if !request.expect.is_empty() {
        return Err(RedisError::Unsupported { what: "expecting a value of a session's field" });
    }
    let id = record_id(request.key);
    let (found, now) = tokio::join!(load(transport, id), transport.call("TIME", []));
    let now = time_ms(&now?)?;
    if let Some(create_as) = request.create {
        let session = PlainRecord {
            created_ms: create_as.created_ms.unwrap_or(now),
            idle_ms: create_as.idle_ms,
            absolute_ms: create_as.absolute_ms,
            fields: request.set.iter().cloned().collect(),
        };
        return match session.exceeds(request.max_fields, request.max_bytes) {
            true => Ok(CommitOutcome::TooLarge),
            false => {
                let left = session.left_ms(now);
                create_session(transport, request.key, &session, (create_as.views, left), now).await
            }
        };
    }
    let PlainLookup::Record(mut session) = found? else { return Ok(CommitOutcome::Gone) };
    session.fields.extend(request.set.iter().cloned());
    session.fields.retain(|name, _| !request.remove.contains(name));
    let left = session.left_ms(now);
    if left == 0 {
        return Ok(CommitOutcome::Gone);
    }
    if !request.set.is_empty() && session.exceeds(request.max_fields, request.max_bytes) {
        return Ok(CommitOutcome::TooLarge);
    }
    let record = session.record(id, now, left);
    if let Err(error) =
        transport.with_client(async |client| RedisStore::new(client).save(&record).await).await?
    {
        return if is_nil_reply(&error) { Ok(CommitOutcome::Gone) } else { Err(to_redis_error(&error)) };
    }
    transport.send("PEXPIRE", vec![text(&keys::session_views(request.key)), number(left)]).await?;
    Ok(CommitOutcome::Committed { sums: Vec::new() })
}

/// Deletes what is stored under a key, a session's record or anything else; returns whether there was something.
pub async fn delete_session(transport: &RedisTransport, key: &str) -> Result<bool, RedisError> {
    let names = [record_id(key).to_string(), key.to_owned(), keys::session_views(key)];
    let replies =
        transport.pipeline(names.iter().map(|name| command("UNLINK", [text(name)])).collect()).await?;
    let replies = replies.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(replies.iter().take(2).any(|deleted| deleted.as_u64() == Some(1)))
}

/// Quarantines a record that cannot be read for this time; returns whether there was one.
pub async fn quarantine_session(
    transport: &RedisTransport,
    key: &str,
    aside: &str,
    kept_ms: u64,
) -> Result<bool, RedisError> {
    let own = record_id(key);
    if !matches!(load(transport, own).await?, PlainLookup::Corrupt) {
        return Ok(false);
    }
    let commands = vec![
        command("RENAME", [text(&own.to_string()), text(aside)]),
        command("PEXPIRE", [text(aside), number(kept_ms)]),
        command("DEL", [text(&keys::session_views(key))]),
    ];
    let replies = transport.pipeline(commands).await?;
    // Another worker may have moved it meanwhile.
    Ok(replies.iter().all(Result::is_ok))
}

/// Bytes as a JSON value of the store's records.
fn to_json(bytes: &Bytes) -> serde_json::Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.to_vec().into(),
    }
}

/// The bytes of such a value.
fn from_json(value: &serde_json::Value) -> Option<Bytes> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned().into());
    }
    let numbers = value.as_array()?.iter();
    numbers
        .map(|it| it.as_u64().and_then(|it| u8::try_from(it).ok()))
        .collect::<Option<Vec<u8>>>()
        .map(Bytes::from)
}

/// Whether the store got the nil with which Redis reports that NX or XX did not hold.
fn is_nil_reply(error: &session_store::Error) -> bool {
    matches!(error, session_store::Error::Backend(text) if text.starts_with("Parse Error"))
}

/// The store's error, which has the client's error as text.
fn to_redis_error(error: &session_store::Error) -> RedisError {
    let session_store::Error::Backend(text) = error else { return RedisError::protocol(error.to_string()) };
    let (kind, details) = text.split_once(": ").unwrap_or(("", text));
    RedisError::from_text(kind, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> PlainRecord {
        let fields = [("cart", "[1]"), ("_c", "7"), ("=", "0")];
        let fields = fields.map(|(name, value)| (name.to_owned(), Bytes::from_static(value.as_bytes())));
        PlainRecord { created_ms: 1000, idle_ms: 500, absolute_ms: 2000, fields: fields.into() }
    }

    #[test]
    fn a_session_with_any_field_names_survives_a_round_trip() {
        let session = session();
        assert_eq!(PlainRecord::from_record(&session.record(Id(1), 1000, 500)), Some(session));
    }

    #[test]
    fn a_record_of_another_program_is_no_session() {
        let record = Record { id: Id(1), data: HashMap::default(), expiry_date: OffsetDateTime::UNIX_EPOCH };
        assert_eq!(PlainRecord::from_record(&record), None);
    }

    #[test]
    fn the_shorter_lifetime_counts() {
        let session = session();
        assert_eq!([1000, 2700, 3000, 9000].map(|now| session.left_ms(now)), [500, 300, 0, 0]);
    }

    #[test]
    fn prefix_and_digest_make_the_id() {
        assert_eq!(record_id("p:s:a"), record_id("p:s:a"));
        assert!(record_id("p:s:a") != record_id("q:s:a") && record_id("p:s:a") != record_id("p:s:b"));
    }

    #[test]
    fn bytes_survive_a_round_trip() {
        for bytes in [&b""[..], b"[1,2]", b"\"caf\xc3\xa9\"", b"\x00\xff\xfe"] {
            let bytes = Bytes::from_static(bytes);
            assert_eq!(from_json(&to_json(&bytes)), Some(bytes));
        }
        assert_eq!(from_json(&serde_json::json!([300])), None);
        assert_eq!(from_json(&serde_json::json!({})), None);
    }
}
