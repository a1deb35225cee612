//! The half of tower-sessions' `SessionStore` that needs no request: what is stored, moved and ended.

use std::collections::HashMap;

use time::OffsetDateTime;
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store;

use crate::redis;
use crate::request_state::auth::RotationCause;
use crate::request_state::tracked_session::{CommitStatus, LoadedSession, NewSessionSeed, TrackedSession};
use crate::sessions::fields::{ChangeSet, FieldChanges};
use crate::sessions::{SessionError, SessionLifetimes, fields};

impl TrackedSession {
    /// Records that a change failed, and gives `Session` its error. `is_strict`: the client must not believe that the
    /// change was stored, so it gets an error whatever its handler answers.
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

    /// A change that this request may not make: its session has another id, which it does not know.
    pub fn reject_rotated_id(&self) -> session_store::Error {
        self.record_failure(&SessionError::Rotated, true)
    }

    /// Ends the session that `Session` released, if it was not replaced. `known`: that session, or why it is not known.
    ///
    /// # Errors
    /// What Redis said; the status has it too.
    pub async fn destroy_released(
        &self,
        known: Option<&Result<LoadedSession, SessionError>>,
    ) -> session_store::Result<()> {
        let Some(released) = self.lock_history().released_id.take() else { return Ok(()) };
        let user = known.and_then(|known| known.as_ref().ok()?.user());
        self.destroy(released, user).await.map_err(|error| self.record_failure(&error, true))?;
        self.lock_history().commit_status = CommitStatus::Destroyed;
        Ok(())
    }

    /// Everything that `Session` holds, in a session of its own.
    async fn create_from_record(
        &self,
        record: &mut Record,
        seed: NewSessionSeed,
    ) -> session_store::Result<()> {
        let (set, _) = fields::diff(&HashMap::new(), &record.data).map_err(|error| encode(&error))?;
        let id =
            self.create_with_fields(set, seed).await.map_err(|error| self.record_failure(&error, false))?;
        self.record_stored(record, id);
        Ok(())
    }

    fn record_stored(&self, record: &mut Record, id: Id) {
        record.id = id;
        let mut state = self.lock_history();
        state.commit_status = CommitStatus::Stored(id);
        state.original = Some(record.data.clone());
    }

    /// A `Session` without an id is that of a session which this request made already: saving it stores all it holds.
    pub fn adopt(&self, record: &mut Record, id: Id) {
        record.id = id;
        self.lock_history().original = Some(HashMap::new());
    }

    /// `Session` releases an id: the session is moved or ended by what follows.
    pub fn release(&self, id: Id) {
        let present = self.current_id(id);
        self.lock_history().released_id = present;
    }

    /// Stores a `Session` that has no id, or whose id was released. `released`: the session with the released id, or why it
    /// is not known.
    ///
    /// # Errors
    /// What kept it from being stored; the status has it too.
    pub async fn create(
        &self,
        record: &mut Record,
        released: Option<Result<LoadedSession, SessionError>>,
        seed: NewSessionSeed,
    ) -> session_store::Result<()> {
        let left = self.lock_history().released_id;
        let (Some(old), Some(known)) = (left, released) else {
            return self.create_from_record(record, seed).await;
        };
        if self.current_id(record.id) == Some(old) {
            // `flush`, which keeps the record: its session ends, and what was inserted since begins another.
            self.destroy_released(Some(&known)).await?;
            return match record.data.is_empty() {
                true => Err(session_store::Error::Backend("the session has ended".to_owned())),
                false => self.create_from_record(record, seed).await,
            };
        }
        self.lock_history().released_id = None;
        let strict = |error: SessionError| self.record_failure(&error, true);
        let known = known.map_err(strict)?;
        let changes = self.changes_since_load(&known, record)?;
        let cause = RotationCause::CycleId(&changes);
        let (id, _) = self.rotate(Some(known), &cause, seed).await.map_err(strict)?;
        self.record_stored(record, id);
        Ok(())
    }

    /// Stores what `Session` changed. `known`: the session with the record's present id, or why it is not known.
    ///
    /// # Errors
    /// What kept it from being stored; the status has it too.
    pub async fn save(
        &self,
        record: &Record,
        known: Result<LoadedSession, SessionError>,
    ) -> session_store::Result<()> {
        let known = known.map_err(|error| self.record_failure(&error, false))?;
        let id = known.id;
        let (set, mut remove) = self.changes_since_load(&known, record)?;
        if set.is_empty() && remove.is_empty() {
            self.lock_history().commit_status = CommitStatus::Stored(id);
            return Ok(());
        }
        let is_set = |name: &String| set.iter().any(|(set, _)| set == name);
        remove.extend(fields::unreadable_names(&known.fields).into_iter().filter(|name| !is_set(name)));
        let set =
            self.encrypt_fields(&known.digest, set).map_err(|error| self.record_failure(&error, false))?;
        let changes = FieldChanges { set, remove };
        let strict = &self.settings.strict;
        let is_strict = changes.names().any(|name| strict.contains(name));
        let stored = self.commit_fields(known, &changes, strict).await;
        stored.map_err(|error| self.record_failure(&error, is_strict))?;
        let mut history = self.lock_history();
        history.commit_status = CommitStatus::Stored(id);
        history.original = Some(record.data.clone());
        Ok(())
    }

    /// What `Session` is given for this id. `known`: the session with the present id, or why it is not known.
    ///
    /// # Errors
    /// What kept it from being read; none where there is none.
    pub fn load(
        &self,
        id: Id,
        known: Result<LoadedSession, SessionError>,
    ) -> session_store::Result<Option<Record>> {
        let known = match known {
            Ok(known) => known,
            Err(SessionError::Gone | SessionError::Rotated) => return Ok(None),
            Err(error) => return Err(session_store::Error::Backend(error.to_string())),
        };
        let data = fields::values(&known.fields);
        self.lock_history().original = Some(data.clone());
        Ok(Some(Record { id, data, expiry_date: expiry(&known, &self.settings.lifetimes) }))
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

fn encode(error: &serde_json::Error) -> session_store::Error {
    session_store::Error::Encode(error.to_string())
}

/// When the session ends at the latest. Redis decides; the record only has to carry a date.
fn expiry(known: &LoadedSession, lifetimes: &SessionLifetimes) -> OffsetDateTime {
    let ends_ms = known.created_ms.saturating_add(lifetimes.absolute_ms());
    let seconds = i64::try_from(ends_ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
