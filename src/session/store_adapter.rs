//! The store behind tower-sessions' `Session`.
//!
//! `cycle_id` and `flush` both begin with a `delete`, and only what follows tells them apart. So nothing is deleted at
//! once: the id is let go, and what follows either moves the session in one step or ends it.

use std::collections::HashMap;

use async_trait::async_trait;
use time::OffsetDateTime;
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store;
use tower_sessions::session_store::SessionStore;

use crate::redis;
use crate::session::auth::RotationCause;
use crate::session::fields::{ChangeSet, FieldChanges};
use crate::session::tracked_store::{CommitStatus, LoadedSession, SessionSource, TrackedSessionStore};
use crate::session::{SessionError, SessionLifetimes, fields};

impl<S: SessionSource> TrackedSessionStore<S> {
    /// Notes what became of a change, and says so in the words of `Session`. `must`: the client must not go on
    /// believing that it was done.
    fn record_failure(&self, error: &SessionError, is_strict: bool) -> session_store::Error {
        let outcome = match error {
            SessionError::Gone | SessionError::Rotated => CommitStatus::Gone,
            SessionError::TooLarge => CommitStatus::TooLarge,
            SessionError::Conflict | SessionError::NotANumber => CommitStatus::Conflict,
            SessionError::Redis(error) if is_strict => CommitStatus::Failed(error.clone()),
            SessionError::Redis(error) => CommitStatus::NotStored(error.clone()),
            SessionError::TooManySessions { retry_after } => CommitStatus::Limited(*retry_after),
            SessionError::Denied => CommitStatus::Unchanged,
            SessionError::InvalidField | SessionError::RandomSource => {
                CommitStatus::NotStored(redis::RedisError::Unavailable { reason: error.to_string() })
            }
        };
        self.lock_history().commit_status = outcome;
        session_store::Error::Backend(error.to_string())
    }

    /// Reads the session with this id, so that it is known.
    ///
    /// # Errors
    /// What kept it from being read; none where there is none.
    pub async fn ensure_loaded(&self, id: Id) -> session_store::Result<()> {
        match self.loaded(id).await {
            Ok(_) | Err(SessionError::Gone | SessionError::Rotated) => Ok(()),
            Err(error) => Err(session_store::Error::Backend(error.to_string())),
        }
    }

    /// A change that this request may not make: its session has another id, which it does not know.
    pub fn reject_rotated_id(&self) -> session_store::Error {
        self.record_failure(&SessionError::Rotated, true)
    }

    /// Ends the session that `Session` let go, if it was not replaced.
    ///
    /// # Errors
    /// What Redis said; the outcome has it too.
    pub async fn destroy_released(&self) -> session_store::Result<()> {
        let left = self.lock_history().released_id.take();
        let Some(released) = left else { return Ok(()) };
        let user = if self.loaded(released).await.is_ok() { self.user() } else { None };
        self.destroy(released, user).await.map_err(|error| self.record_failure(&error, true))?;
        self.lock_history().commit_status = CommitStatus::Destroyed;
        Ok(())
    }

    /// Everything that `Session` holds, in a session of its own.
    async fn create_from_record(&self, record: &mut Record) -> session_store::Result<()> {
        let (set, _) = fields::diff(&HashMap::new(), &record.data).map_err(|error| encode(&error))?;
        let id = self.create_with_fields(set).await.map_err(|error| self.record_failure(&error, false))?;
        self.record_stored(record, id);
        Ok(())
    }

    fn record_stored(&self, record: &mut Record, id: Id) {
        record.id = id;
        let mut state = self.lock_history();
        state.commit_status = CommitStatus::Stored(id);
        state.original = Some(record.data.clone());
    }

    /// Puts what a `Session` without an id holds into a session that this request made already.
    ///
    /// # Errors
    /// As `save`.
    pub async fn adopt(&self, record: &mut Record, id: Id) -> session_store::Result<()> {
        record.id = id;
        self.lock_history().original = Some(HashMap::new());
        self.save(record).await
    }

    /// What `Session` changed since it was given the session. One that was cleared before it was ever read has
    /// seen everything that is there.
    fn changes_since_load(&self, known: &LoadedSession, record: &Record) -> session_store::Result<ChangeSet> {
        let state = self.lock_history();
        match &state.original {
            Some(given) => fields::diff(given, &record.data),
            None => fields::diff(&fields::values(&known.fields), &record.data),
        }
        .map_err(|error| encode(&error))
    }
}

#[async_trait]
impl<S: SessionSource> SessionStore for TrackedSessionStore<S> {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        let left = self.lock_history().released_id;
        let Some(old) = left else { return self.create_from_record(record).await };
        if self.current_id(record.id) == Some(old) {
            // `flush`, which keeps the record: its session ends, and what was inserted since begins another.
            self.destroy_released().await?;
            return match record.data.is_empty() {
                true => Err(session_store::Error::Backend("the session has ended".to_owned())),
                false => self.create_from_record(record).await,
            };
        }
        self.lock_history().released_id = None;
        let must = |error: SessionError| self.record_failure(&error, true);
        let known = self.loaded(old).await.map_err(must)?;
        let changes = self.changes_since_load(&known, record)?;
        let (id, _) = self.rotate(Some(known), &RotationCause::CycleId(&changes)).await.map_err(must)?;
        self.record_stored(record, id);
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        // What this request does to a session after it ended it itself is nothing.
        let Some(id) = self.current_id(record.id) else { return Ok(()) };
        let known = self.loaded(id).await.map_err(|error| self.record_failure(&error, false))?;
        let (set, mut remove) = self.changes_since_load(&known, record)?;
        if set.is_empty() && remove.is_empty() {
            self.lock_history().commit_status = CommitStatus::Stored(id);
            return Ok(());
        }
        let new = |name: &String| set.iter().any(|(set, _)| set == name);
        remove.extend(fields::unreadable_names(&known.fields).into_iter().filter(|name| !new(name)));
        let set =
            self.encrypt_fields(&known.digest, set).map_err(|error| self.record_failure(&error, false))?;
        let delta = FieldChanges { set, remove };
        let strict = &self.settings.strict;
        let must = delta.names().any(|name| strict.contains(name));
        self.commit_fields(known, &delta, strict).await.map_err(|error| self.record_failure(&error, must))?;
        let mut state = self.lock_history();
        state.commit_status = CommitStatus::Stored(id);
        state.original = Some(record.data.clone());
        Ok(())
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let Some(present) = self.current_id(*id) else { return Ok(None) };
        let known = match self.loaded(present).await {
            Ok(known) => known,
            Err(SessionError::Gone | SessionError::Rotated) => return Ok(None),
            Err(error) => return Err(session_store::Error::Backend(error.to_string())),
        };
        let data = fields::values(&known.fields);
        self.lock_history().original = Some(data.clone());
        Ok(Some(Record { id: *id, data, expiry_date: expiry(&known, &self.settings.lifetimes) }))
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let present = self.current_id(*id);
        self.lock_history().released_id = present;
        Ok(())
    }
}

fn encode(error: &serde_json::Error) -> session_store::Error {
    session_store::Error::Encode(error.to_string())
}

/// When the session ends at the latest. Redis decides; the record only has to carry a date.
fn expiry(known: &LoadedSession, lifetimes: &SessionLifetimes) -> OffsetDateTime {
    let ends_ms = known.created_ms.saturating_add(lifetimes.absolute_ms());
    let seconds = i64::try_from(ends_ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
