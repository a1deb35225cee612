//! The store behind one request's `Session`: gives what the request's one call fetched, and sends back what changed.
//!
//! Fields of the session are fields of the hash, as JSON text. Requests that change different fields keep both
//! changes; of one field the last writer wins. Nothing here brings a session back that is gone.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use time::OffsetDateTime;
use tower_sessions::session::Id;
use tower_sessions::session::Record;
use tower_sessions::session_store;
use tower_sessions::session_store::SessionStore;

use crate::redis;
use crate::redis::Redis;
use crate::redis::begin::SessionReply;
use crate::redis::commit;
use crate::redis::commit::Create;
use crate::session;
use crate::session::cookie;

/// Largest session, bytes of names and values.
pub const BYTES_MAX: usize = 16 * 1024;
/// Most fields of a session.
pub const FIELDS_MAX: u64 = 64;
/// How often a new id is tried if one is taken; 128 random bits never are.
const ATTEMPTS: usize = 3;

/// Why a session could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unread {
    /// A rate limit refused the request.
    #[error("a rate limit refused the request")]
    Denied,
    /// Redis did not answer.
    #[error("the session is not reachable")]
    Redis(#[source] redis::Error),
}

/// Gives the store this request's session, with the request's one call if it was not made yet.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// The session with this id, as it was at the request's begin.
    fn begun(&self, id: &Id) -> impl Future<Output = Result<SessionReply, Unread>> + Send;
}

/// How long sessions live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Without use.
    pub idle: Duration,
    /// In all.
    pub absolute: Duration,
}

impl Lifetimes {
    /// Lifetime without use, ms, ≥ 1.
    pub fn idle_ms(&self) -> u64 {
        millis(self.idle)
    }

    /// Lifetime in all, ms, ≥ 1.
    pub fn absolute_ms(&self) -> u64 {
        millis(self.absolute)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// What became of a request's changes to its session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was to be stored.
    #[default]
    Untouched,
    /// They are stored under this id.
    Stored(Id),
    /// The session was deleted.
    Deleted,
    /// The session is gone; nothing was stored and nothing made.
    Gone,
    /// The session would be too large; nothing was stored.
    TooLarge,
    /// Redis did not do it; after a timeout it is unknown whether it did.
    Failed(redis::Error),
}

/// The store for one request.
#[derive(Debug)]
pub struct RequestStore<S> {
    source: S,
    redis: Redis,
    prefix: Arc<str>,
    lifetimes: Lifetimes,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    baseline: Option<Baseline>,
    outcome: Outcome,
}

/// The session as Redis has it, as far as this request knows.
#[derive(Debug, Clone)]
struct Baseline {
    id: Id,
    created_ms: u64,
    views: u64,
    fields: HashMap<String, Bytes>,
}

impl<S: Source> RequestStore<S> {
    /// A store that reads through `source` and writes through `redis`.
    pub fn new(source: S, redis: Redis, prefix: Arc<str>, lifetimes: Lifetimes) -> Self {
        Self { source, redis, prefix, lifetimes, state: Mutex::default() }
    }

    /// What became of the changes so far.
    pub fn outcome(&self) -> Outcome {
        self.state().outcome.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held left whole values: every change below is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session as this request began with it; `None` if it is gone.
    async fn baseline(&self, id: &Id) -> Result<Option<Baseline>, Unread> {
        if let Some(known) = self.state().baseline.as_ref().filter(|known| known.id == *id) {
            return Ok(Some(known.clone()));
        }
        let SessionReply::Live { created_ms, views, fields, .. } = self.source.begun(id).await? else {
            return Ok(None);
        };
        let baseline = Baseline { id: *id, created_ms, views, fields: fields.into_iter().collect() };
        self.state().baseline = Some(baseline.clone());
        Ok(Some(baseline))
    }

    async fn commit(&self, request: &commit::Request<'_>) -> Result<commit::Reply, redis::Error> {
        let reply = self.redis.commit(request).await;
        if let Err(error) = &reply {
            self.state().outcome = Outcome::Failed(error.clone());
        }
        reply
    }

    fn refuse(&self, outcome: Outcome, reason: &str) -> session_store::Error {
        self.state().outcome = outcome;
        session_store::Error::Backend(reason.to_owned())
    }
}

#[async_trait]
impl<S: Source> SessionStore for RequestStore<S> {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        let fields = encode(record)?;
        if size(&fields) > BYTES_MAX {
            return Err(self.refuse(Outcome::TooLarge, "the session would be too large"));
        }
        // A session whose id is replaced keeps its age and its views.
        let before = self.state().baseline.take();
        let create = Create {
            created_ms: before.as_ref().map(|before| before.created_ms),
            views: before.as_ref().map_or(0, |before| before.views),
            idle_ms: self.lifetimes.idle_ms(),
            absolute_ms: self.lifetimes.absolute_ms(),
        };
        let set: Vec<(String, Bytes)> = fields.into_iter().collect();
        for _ in 0..ATTEMPTS {
            record.id = cookie::new_id().map_err(|error| session_store::Error::Backend(error.to_string()))?;
            let key = session::key(&self.prefix, record.id);
            let request = commit::Request {
                key: &key,
                create: Some(create),
                set: &set,
                max_fields: FIELDS_MAX,
                max_bytes: BYTES_MAX as u64,
                ..commit::Request::default()
            };
            match self.commit(&request).await.map_err(backend)? {
                commit::Reply::Exists => continue,
                commit::Reply::Full => {
                    return Err(self.refuse(Outcome::TooLarge, "the session would have too many fields"));
                }
                commit::Reply::Committed { .. } => {}
                _ => return Err(self.refuse(Outcome::Gone, "the session is gone")),
            }
            let mut state = self.state();
            state.outcome = Outcome::Stored(record.id);
            let fields = set.into_iter().collect();
            let created_ms = create.created_ms.unwrap_or(0);
            state.baseline = Some(Baseline { id: record.id, created_ms, views: create.views, fields });
            return Ok(());
        }
        Err(session_store::Error::Backend("no free session id was found".to_owned()))
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let fields = encode(record)?;
        if size(&fields) > BYTES_MAX {
            return Err(self.refuse(Outcome::TooLarge, "the session would be too large"));
        }
        let Some(before) = self.baseline(&record.id).await.map_err(backend)? else {
            return Err(self.refuse(Outcome::Gone, "the session is gone"));
        };
        let (set, remove) = delta(&before.fields, &fields);
        if set.is_empty() && remove.is_empty() {
            self.state().outcome = Outcome::Stored(record.id);
            return Ok(());
        }
        let key = session::key(&self.prefix, record.id);
        // What is far below the bound is not measured again by the server, which knows of other requests' fields.
        let max_bytes = if size(&fields) > BYTES_MAX / 2 { BYTES_MAX as u64 } else { 0 };
        let request = commit::Request {
            key: &key,
            set: &set,
            remove: &remove,
            max_fields: FIELDS_MAX,
            max_bytes,
            ..commit::Request::default()
        };
        match self.commit(&request).await.map_err(backend)? {
            commit::Reply::Committed { .. } => {
                let mut state = self.state();
                state.outcome = Outcome::Stored(record.id);
                state.baseline = Some(Baseline { fields, ..before });
                Ok(())
            }
            commit::Reply::Full => {
                Err(self.refuse(Outcome::TooLarge, "the session would have too many fields"))
            }
            _ => Err(self.refuse(Outcome::Gone, "the session is gone")),
        }
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let Some(found) = self.baseline(id).await.map_err(backend)? else { return Ok(None) };
        let data = found.fields.iter().filter_map(|(name, text)| match serde_json::from_slice(text) {
            Ok(value) => Some((name.clone(), value)),
            Err(error) => {
                // A field nobody can read counts as absent: an error would last as long as the session.
                tracing::warn!(field = %name, %error, "a session's field is not JSON and is ignored: {error}");
                None
            }
        });
        let data = data.collect();
        Ok(Some(Record { id: *id, data, expiry_date: expiry(found.created_ms, &self.lifetimes) }))
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let key = session::key(&self.prefix, *id);
        if let Err(error) = self.redis.delete(&key).await {
            self.state().outcome = Outcome::Failed(error.clone());
            return Err(backend(error));
        }
        self.state().outcome = Outcome::Deleted;
        Ok(())
    }
}

/// When the session ends at the latest. Redis decides; the record only has to carry a date.
fn expiry(created_ms: u64, lifetimes: &Lifetimes) -> OffsetDateTime {
    let ends_ms = created_ms.saturating_add(lifetimes.absolute_ms());
    let seconds = i64::try_from(ends_ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn encode(record: &Record) -> session_store::Result<HashMap<String, Bytes>> {
    let field = |(name, value): (&String, &serde_json::Value)| {
        let text =
            serde_json::to_vec(value).map_err(|error| session_store::Error::Encode(error.to_string()))?;
        Ok((name.clone(), Bytes::from(text)))
    };
    record.data.iter().map(field).collect()
}

fn size(fields: &HashMap<String, Bytes>) -> usize {
    fields.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// Fields to set and fields to remove, to get from `before` to `after`.
///
/// A field that was unreadable is in `before` and not in `after`: it is removed with the next change.
fn delta(
    before: &HashMap<String, Bytes>,
    after: &HashMap<String, Bytes>,
) -> (Vec<(String, Bytes)>, Vec<String>) {
    let changed = after.iter().filter(|(name, value)| before.get(*name) != Some(value));
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    (changed.map(|(name, value)| (name.clone(), value.clone())).collect(), removed.cloned().collect())
}

fn backend(error: impl std::error::Error) -> session_store::Error {
    session_store::Error::Backend(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> HashMap<String, Bytes> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), Bytes::from((*value).to_owned()))).collect()
    }

    #[test]
    fn only_what_changed_travels() {
        let before = fields(&[("same", "1"), ("changed", "1"), ("removed", "1")]);
        let after = fields(&[("same", "1"), ("changed", "2"), ("new", "3")]);
        let (mut set, remove) = delta(&before, &after);
        set.sort();
        assert_eq!(set, [("changed".to_owned(), "2".into()), ("new".to_owned(), Bytes::from("3"))]);
        assert_eq!(remove, ["removed"]);
    }
}
