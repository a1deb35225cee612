//! Sessions in tower-sessions' own store for Redis: one record a session, written as a whole.
//!
//! The store names a key by the session's id alone. It is given another id: one made from our key, which has the
//! prefix and the hashed id in it, so that neither the real id nor another fleet's session is ever met there. What
//! the store reports wrongly is put right here: that a session vanished before its save, or is there before its
//! creation, reaches us as an answer that cannot be parsed.

use std::collections::HashMap;

use bytes::Bytes;
use fred::types::Value;
use ring::digest;
use time::OffsetDateTime;
use tower_sessions::session::Id;
use tower_sessions::session::Record;
use tower_sessions::session_store;
use tower_sessions::session_store::SessionStore;

use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::redis::caller::Caller;
use crate::redis::commit;
use crate::redis::commit::Reply;
use crate::redis::error::Error;
use crate::redis::error::Refusal;
use crate::redis::keys;
use crate::redis::plain::Command;
use crate::redis::plain::command;
use crate::redis::plain::integer;
use crate::redis::plain::number;
use crate::redis::plain::restored;
use crate::redis::plain::stored;
use crate::redis::plain::text;
use crate::redis::plain::time_ms;

/// When the session was created, ms; no application's field begins with one underscore, see [`field`].
const CREATED: &str = "_c";
/// Its lifetimes, ms: a change does not know them, and writes the end anew.
const IDLE: &str = "_i";
const ABSOLUTE: &str = "_x";

/// The id under which the store keeps the session with this key.
pub(super) fn id(key: &str) -> Id {
    let digest = digest::digest(&digest::SHA256, key.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_ref()[..16]);
    Id(i128::from_le_bytes(bytes))
}

/// A session's record, in our words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) created_ms: u64,
    pub(super) idle_ms: u64,
    pub(super) absolute_ms: u64,
    /// Fields by the names the application knows.
    pub(super) fields: HashMap<String, Bytes>,
}

impl Session {
    /// With the configured lifetimes, which hold whatever they were when the session was made.
    fn with(&self, arg: &SessionArg) -> Self {
        Self { idle_ms: arg.idle_ms, absolute_ms: arg.absolute_ms, ..self.clone() }
    }

    /// Lifetime left, ms: the shorter of idle and absolute; 0 if it is over.
    pub(super) fn left_ms(&self, now_ms: u64) -> u64 {
        self.idle_ms.min(self.created_ms.saturating_add(self.absolute_ms).saturating_sub(now_ms))
    }

    /// Whether it has more than it may; 0 bytes: they are not looked at.
    pub(super) fn exceeds(&self, max_fields: u64, max_bytes: u64) -> bool {
        let bytes: usize = self.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.fields.len() as u64 > max_fields || max_bytes > 0 && bytes as u64 > max_bytes
    }

    fn record(&self, id: Id, now_ms: u64, left_ms: u64) -> Record {
        let numbers = [(CREATED, self.created_ms), (IDLE, self.idle_ms), (ABSOLUTE, self.absolute_ms)];
        let own = numbers.into_iter().map(|(name, number)| (name.to_owned(), number.into()));
        let fields = self.fields.iter().map(|(name, bytes)| (field(name), stored(bytes)));
        // The store's ends are whole seconds. One too many does no harm: what is over is told by the numbers.
        let ends = now_ms.saturating_add(left_ms).div_ceil(1000);
        let ends = OffsetDateTime::from_unix_timestamp(i64::try_from(ends).unwrap_or(i64::MAX));
        Record {
            id,
            data: own.chain(fields).collect(),
            expiry_date: ends.unwrap_or(time::macros::datetime!(9999-12-31 0:00 UTC)),
        }
    }

    /// `None` if it is a record, but none of ours.
    fn read(record: &Record) -> Option<Self> {
        let number = |name| record.data.get(name).and_then(serde_json::Value::as_u64);
        let own = |name: &str| [CREATED, IDLE, ABSOLUTE].contains(&name);
        let fields = record.data.iter().filter(|(name, _)| !own(name));
        let fields = fields.map(|(name, value)| Some((name.strip_prefix('=')?.to_owned(), restored(value)?)));
        Some(Self {
            created_ms: number(CREATED)?,
            idle_ms: number(IDLE)?,
            absolute_ms: number(ABSOLUTE)?,
            fields: fields.collect::<Option<_>>()?,
        })
    }

    fn reply(&self, views: u64) -> SessionReply {
        let fields = self.fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        SessionReply::Live { created_ms: self.created_ms, views, own: None, fields }
    }
}

/// How an application's field is stored: it never meets ours.
fn field(name: &str) -> String {
    format!("={name}")
}

/// What the store found.
pub(super) enum Found {
    Nothing,
    Session(Session),
    /// Something that nobody can read.
    Damaged,
}

pub(super) async fn load(caller: &Caller, id: Id) -> Result<Found, Error> {
    match caller.stored(async |store| store.load(&id).await).await? {
        Ok(None) => Ok(Found::Nothing),
        Ok(Some(record)) => Ok(Session::read(&record).map_or(Found::Damaged, Found::Session)),
        Err(session_store::Error::Decode(_)) => Ok(Found::Damaged),
        Err(error) => match sorted(&error) {
            // A value of another type lies there.
            Error::Refused { refusal: Refusal::WrongType, .. } => Ok(Found::Damaged),
            other => Err(other),
        },
    }
}

/// Reads a session and changes nothing.
pub(in crate::redis) async fn peek(caller: &Caller, arg: &SessionArg) -> Result<SessionReply, Error> {
    let look = vec![command("TIME", []), command("GET", [text(&keys::views(&arg.key))])];
    let (found, answers) = tokio::join!(load(caller, id(&arg.key)), caller.together(look));
    let answers = answers?.into_iter().collect::<Result<Vec<_>, _>>()?;
    let now = time_ms(answers.first().unwrap_or(&Value::Null))?;
    let views = answers.get(1).and_then(Value::as_u64).unwrap_or(0);
    Ok(match found? {
        Found::Session(session) if session.with(arg).left_ms(now) > 0 => session.reply(views),
        Found::Damaged => SessionReply::Damaged,
        Found::Session(_) | Found::Nothing => SessionReply::Gone,
    })
}

/// Reads a session and counts a view.
pub(super) async fn read(caller: &Caller, arg: &SessionArg) -> Result<SessionReply, Error> {
    let id = id(&arg.key);
    let (own, views) = (id.to_string(), keys::views(&arg.key));
    let look = vec![command("TIME", []), command("PTTL", [text(&own)]), command("GET", [text(&views)])];
    let (found, answers) = tokio::join!(load(caller, id), caller.together(look));
    let mut answers = answers?.into_iter();
    let mut answer = || answers.next().unwrap_or(Ok(Value::Null));
    let (now, ttl, counted) = (time_ms(&answer()?)?, integer(&answer()?)?, answer()?);
    let session = match found? {
        Found::Nothing => return Ok(SessionReply::Gone),
        Found::Session(session) => session,
        Found::Damaged => return Ok(SessionReply::Damaged),
    };
    let session = session.with(arg);
    let left = session.left_ms(now);
    if left == 0 {
        return Ok(SessionReply::Gone);
    }
    let mut commands: Vec<Command> = Vec::new();
    if arg.mode == SessionMode::Visit {
        commands.push(command("INCR", [text(&views)]));
        commands.push(command("PEXPIRE", [text(&views), number(left)]));
    }
    // A tenth of the idle lifetime must have passed, so that a busy session is not touched at every request.
    if u64::try_from(ttl).is_ok_and(|ttl| left.saturating_sub(ttl) >= arg.idle_ms / 10) {
        commands.push(command("PEXPIRE", [text(&own), number(left)]));
        commands.push(command("PEXPIRE", [text(&views), number(left)]));
    }
    let mut views = counted.as_u64().unwrap_or(0);
    if !commands.is_empty() {
        let answers = caller.together(commands).await?;
        if let (SessionMode::Visit, Some(Ok(sum))) = (arg.mode, answers.first()) {
            views = sum.as_u64().unwrap_or(views);
        }
    }
    Ok(session.reply(views))
}

/// Makes a session with so many views, that lives for so long, ms, until it is read.
pub(super) async fn create(
    caller: &Caller,
    key: &str,
    session: &Session,
    (views, left): (u64, u64),
    now: u64,
) -> Result<Reply, Error> {
    if left == 0 {
        return Ok(Reply::Gone);
    }
    // Before the session is there: a request that finds it adds to these views.
    let args = [text(&keys::views(key)), number(views), text("PX"), number(left), text("NX")];
    caller.send("SET", args.into()).await?;
    let id = id(key);
    let mut record = session.record(id, now, left);
    if let Err(error) = caller.stored(async |store| store.create(&mut record).await).await? {
        return if unparsed(&error) { Ok(Reply::Exists) } else { Err(sorted(&error)) };
    }
    if record.id != id {
        // The store took another id because ours is taken, and nobody would ever find what it made.
        let deleted = caller.stored(async |store| store.delete(&record.id).await).await?;
        deleted.map_err(|error| sorted(&error))?;
        return Ok(Reply::Exists);
    }
    Ok(Reply::Committed { sums: Vec::new() })
}

/// Stores what a request changed; of two requests at the same moment the later one's record stays.
///
/// # Errors
/// `Unsupported` for sums and expectations, which only server-side code can keep.
pub(in crate::redis) async fn commit(caller: &Caller, request: &commit::Request<'_>) -> Result<Reply, Error> {
    if !request.add.is_empty() {
        return Err(Error::Unsupported { what: "adding to a session's field" });
    }
    if !request.expect.is_empty() {
        return Err(Error::Unsupported { what: "expecting a value of a session's field" });
    }
    let id = id(request.key);
    let (found, now) = tokio::join!(load(caller, id), caller.call("TIME", []));
    let now = time_ms(&now?)?;
    if let Some(create_as) = request.create {
        let session = Session {
            created_ms: create_as.created_ms.unwrap_or(now),
            idle_ms: create_as.idle_ms,
            absolute_ms: create_as.absolute_ms,
            fields: request.set.iter().cloned().collect(),
        };
        return match session.exceeds(request.max_fields, request.max_bytes) {
            true => Ok(Reply::Full),
            false => {
                let left = session.left_ms(now);
                create(caller, request.key, &session, (create_as.views, left), now).await
            }
        };
    }
    let Found::Session(mut session) = found? else { return Ok(Reply::Gone) };
    session.fields.extend(request.set.iter().cloned());
    session.fields.retain(|name, _| !request.remove.contains(name));
    let left = session.left_ms(now);
    if left == 0 {
        return Ok(Reply::Gone);
    }
    if !request.set.is_empty() && session.exceeds(request.max_fields, request.max_bytes) {
        return Ok(Reply::Full);
    }
    let record = session.record(id, now, left);
    if let Err(error) = caller.stored(async |store| store.save(&record).await).await? {
        return if unparsed(&error) { Ok(Reply::Gone) } else { Err(sorted(&error)) };
    }
    caller.send("PEXPIRE", vec![text(&keys::views(request.key)), number(left)]).await?;
    Ok(Reply::Committed { sums: Vec::new() })
}

/// Deletes what lies under a key, be it a session, which is elsewhere, or anything else; whether there was something.
pub(in crate::redis) async fn delete(caller: &Caller, key: &str) -> Result<bool, Error> {
    let names = [id(key).to_string(), key.to_owned(), keys::views(key)];
    let answers = caller.together(names.iter().map(|name| command("UNLINK", [text(name)])).collect()).await?;
    let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(answers.iter().take(2).any(|deleted| deleted.as_u64() == Some(1)))
}

/// Puts what nobody can read aside for so long; whether there was something.
pub(in crate::redis) async fn quarantine(
    caller: &Caller,
    key: &str,
    aside: &str,
    kept_ms: u64,
) -> Result<bool, Error> {
    let own = id(key);
    if !matches!(load(caller, own).await?, Found::Damaged) {
        return Ok(false);
    }
    let commands = vec![
        command("RENAME", [text(&own.to_string()), text(aside)]),
        command("PEXPIRE", [text(aside), number(kept_ms)]),
        command("DEL", [text(&keys::views(key))]),
    ];
    let answers = caller.together(commands).await?;
    // Somebody else may have moved it meanwhile.
    Ok(answers.iter().all(Result::is_ok))
}

/// Whether the store met the nil with which Redis says that NX or XX did not hold.
fn unparsed(error: &session_store::Error) -> bool {
    matches!(error, session_store::Error::Backend(text) if text.starts_with("Parse Error"))
}

/// The store's error, which is the client's as text, as ours.
fn sorted(error: &session_store::Error) -> Error {
    let session_store::Error::Backend(text) = error else { return Error::protocol(error.to_string()) };
    let (kind, details) = text.split_once(": ").unwrap_or(("", text));
    Error::from_text(kind, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let fields = [("cart", "[1]"), ("_c", "7"), ("=", "0")];
        let fields = fields.map(|(name, value)| (name.to_owned(), Bytes::from_static(value.as_bytes())));
        Session { created_ms: 1000, idle_ms: 500, absolute_ms: 2000, fields: fields.into() }
    }

    #[test]
    fn a_session_survives_the_way_through_a_record_whatever_its_fields_are_called() {
        let session = session();
        assert_eq!(Session::read(&session.record(Id(1), 1000, 500)), Some(session));
    }

    #[test]
    fn a_record_of_somebody_else_is_no_session() {
        let record = Record { id: Id(1), data: HashMap::default(), expiry_date: OffsetDateTime::UNIX_EPOCH };
        assert_eq!(Session::read(&record), None);
    }

    #[test]
    fn the_shorter_lifetime_counts() {
        let session = session();
        assert_eq!([1000, 2700, 3000, 9000].map(|now| session.left_ms(now)), [500, 300, 0, 0]);
    }

    #[test]
    fn prefix_and_digest_make_the_id() {
        assert_eq!(id("p:s:a"), id("p:s:a"));
        assert!(id("p:s:a") != id("q:s:a") && id("p:s:a") != id("p:s:b"));
    }
}
