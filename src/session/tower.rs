//! The store behind tower-sessions' `Session`.
//!
//! `cycle_id` and `flush` both begin with a `delete`, and only what follows tells them apart. So nothing is deleted at
//! once: the id is let go, and what follows either moves the session in one step or ends it.

use std::collections::HashMap;

use async_trait::async_trait;
use time::OffsetDateTime;
use tower_sessions::session::Id;
use tower_sessions::session::Record;
use tower_sessions::session_store;
use tower_sessions::session_store::SessionStore;

use crate::redis;
use crate::session::Error;
use crate::session::Lifetimes;
use crate::session::account::Cause;
use crate::session::fields;
use crate::session::fields::Changes;
use crate::session::fields::Delta;
use crate::session::store::Known;
use crate::session::store::Outcome;
use crate::session::store::RequestStore;
use crate::session::store::Source;

impl<S: Source> RequestStore<S> {
    /// Notes what became of a change, and says so in the words of `Session`. `must`: the client must not go on
    /// believing that it was done.
    fn fail(&self, error: &Error, must: bool) -> session_store::Error {
        let outcome = match error {
            Error::Gone | Error::Rotated => Outcome::Gone,
            Error::TooLarge => Outcome::TooLarge,
            Error::Conflict | Error::NoSum => Outcome::Conflict,
            Error::Redis(error) if must => Outcome::Failed(error.clone()),
            Error::Redis(error) => Outcome::Unstored(error.clone()),
            Error::TooMany { retry_after } => Outcome::Limited(*retry_after),
            Error::Denied => Outcome::Untouched,
            Error::Form | Error::NoRandomness => {
                Outcome::Unstored(redis::Error::Unavailable { reason: error.to_string() })
            }
        };
        self.state().outcome = outcome;
        session_store::Error::Backend(error.to_string())
    }

    /// Reads the session with this id, so that it is known.
    ///
    /// # Errors
    /// What kept it from being read; none where there is none.
    pub async fn read(&self, id: Id) -> session_store::Result<()> {
        match self.known(id).await {
            Ok(_) | Err(Error::Gone | Error::Rotated) => Ok(()),
            Err(error) => Err(session_store::Error::Backend(error.to_string())),
        }
    }

    /// A change that this request may not make: its session has another id, which it does not know.
    pub fn refuse(&self) -> session_store::Error {
        self.fail(&Error::Rotated, true)
    }

    /// Ends the session that `Session` let go, if it was not replaced.
    ///
    /// # Errors
    /// What Redis said; the outcome has it too.
    pub async fn end_left(&self) -> session_store::Result<()> {
        let left = self.state().left.take();
        let Some(left) = left else { return Ok(()) };
        let user = if self.known(left).await.is_ok() { self.user() } else { None };
        self.end(left, user).await.map_err(|error| self.fail(&error, true))?;
        self.state().outcome = Outcome::Ended;
        Ok(())
    }

    /// Everything that `Session` holds, in a session of its own.
    async fn make_of(&self, record: &mut Record) -> session_store::Result<()> {
        let (set, _) = fields::changes(&HashMap::new(), &record.data).map_err(|error| encode(&error))?;
        let id = self.make(set).await.map_err(|error| self.fail(&error, false))?;
        self.stored(record, id);
        Ok(())
    }

    fn stored(&self, record: &mut Record, id: Id) {
        record.id = id;
        let mut state = self.state();
        state.outcome = Outcome::Stored(id);
        state.given = Some(record.data.clone());
    }

    /// Puts what a `Session` without an id holds into a session that this request made already.
    ///
    /// # Errors
    /// As `save`.
    pub async fn adopt(&self, record: &mut Record, id: Id) -> session_store::Result<()> {
        record.id = id;
        self.state().given = Some(HashMap::new());
        self.save(record).await
    }

    /// What `Session` changed since it was given the session. One that was cleared before it was ever read has
    /// seen everything that is there.
    fn changes(&self, known: &Known, record: &Record) -> session_store::Result<Changes> {
        let state = self.state();
        match &state.given {
            Some(given) => fields::changes(given, &record.data),
            None => fields::changes(&fields::values(&known.fields), &record.data),
        }
        .map_err(|error| encode(&error))
    }
}

#[async_trait]
impl<S: Source> SessionStore for RequestStore<S> {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        let left = self.state().left;
        let Some(old) = left else { return self.make_of(record).await };
        if self.present(record.id) == Some(old) {
            // `flush`, which keeps the record: its session ends, and what was inserted since begins another.
            self.end_left().await?;
            return match record.data.is_empty() {
                true => Err(session_store::Error::Backend("the session has ended".to_owned())),
                false => self.make_of(record).await,
            };
        }
        self.state().left = None;
        let must = |error: Error| self.fail(&error, true);
        let known = self.known(old).await.map_err(must)?;
        let changes = self.changes(&known, record)?;
        let (id, _) = self.relocate(Some(known), &Cause::Cycle(&changes)).await.map_err(must)?;
        self.stored(record, id);
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        // What this request does to a session after it ended it itself is nothing.
        let Some(id) = self.present(record.id) else { return Ok(()) };
        let known = self.known(id).await.map_err(|error| self.fail(&error, false))?;
        let (set, mut remove) = self.changes(&known, record)?;
        if set.is_empty() && remove.is_empty() {
            self.state().outcome = Outcome::Stored(id);
            return Ok(());
        }
        let new = |name: &String| set.iter().any(|(set, _)| set == name);
        remove.extend(fields::broken(&known.fields).into_iter().filter(|name| !new(name)));
        let set = self.seal(&known.digest, set).map_err(|error| self.fail(&error, false))?;
        let delta = Delta { set, remove };
        let strict = &self.setup.strict;
        let must = delta.names().any(|name| strict.contains(name));
        self.store(known, &delta, strict).await.map_err(|error| self.fail(&error, must))?;
        let mut state = self.state();
        state.outcome = Outcome::Stored(id);
        state.given = Some(record.data.clone());
        Ok(())
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let Some(present) = self.present(*id) else { return Ok(None) };
        let known = match self.known(present).await {
            Ok(known) => known,
            Err(Error::Gone | Error::Rotated) => return Ok(None),
            Err(error) => return Err(session_store::Error::Backend(error.to_string())),
        };
        let data = fields::values(&known.fields);
        self.state().given = Some(data.clone());
        Ok(Some(Record { id: *id, data, expiry_date: expiry(&known, &self.setup.lifetimes) }))
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let present = self.present(*id);
        self.state().left = present;
        Ok(())
    }
}

fn encode(error: &serde_json::Error) -> session_store::Error {
    session_store::Error::Encode(error.to_string())
}

/// When the session ends at the latest. Redis decides; the record only has to carry a date.
fn expiry(known: &Known, lifetimes: &Lifetimes) -> OffsetDateTime {
    let ends_ms = known.created_ms.saturating_add(lifetimes.absolute_ms());
    let seconds = i64::try_from(ends_ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
