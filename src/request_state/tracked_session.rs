//! The session of one request: what its round trip fetched, what is known of it since, and the status of its changes.
//!
//! Fields of the session are fields of the hash, as JSON text. Requests that change different fields keep both
//! changes; of one field the last writer wins, unless it is strict. A session that is gone is never stored again.
//!
//! It reads no session by itself: the caller passes in what the request's round trip found.
//!
//! tower-sessions' `cycle_id` and `flush` both begin with a `delete`, and only the call that follows tells them apart. So
//! [`TrackedSession::release`] deletes nothing: [`TrackedSession::create`] then either moves the session in one step or
//! ends it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tower_sessions::session::Id;

use crate::redis;
use crate::request_state::begin;
use crate::request_state::state_client::StateClient;
use crate::sessions::commands::InitialSession;
use crate::sessions::digest::SessionDigest;
use crate::sessions::fields::{FieldChanges, FieldMap};
use crate::sessions::query::{
    NewSessionLimit, SessionAccess, SessionAttributes, SessionLookup, SessionQuery,
};
use crate::sessions::user::{LoginDetails, UserTag};
use crate::sessions::{
    SESSION_BYTES_MAX, SESSION_FIELDS_MAX, SessionError, SessionSettings, commit, digest, fields, keys,
};

/// What a session begins with that a request makes.
#[derive(Debug, Clone, Default)]
pub struct NewSessionSeed {
    /// Its id, if it has been used for something already; it was not sent yet.
    pub id: Option<Id>,
    /// Its views and creation.
    pub initial: InitialSession,
    /// The limit on new sessions of the request's client.
    pub limit: Option<NewSessionLimit>,
}

/// The status of the changes that a request made through tower-sessions' `Session`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CommitStatus {
    /// Nothing was to be stored.
    #[default]
    Unchanged,
    /// It is stored under this id.
    Stored(Id),
    /// The session was ended.
    Destroyed,
    /// The session is gone; nothing was stored and nothing made.
    Gone,
    /// The session would be too large; nothing was stored.
    TooLarge,
    /// Another request changed the same strict field; nothing was stored.
    Conflict,
    /// The client has made too many sessions; nothing was stored. It may try again after so long.
    Limited(Duration),
    /// Redis did not store it, or it is unknown whether it did; the response may go out without.
    NotStored(redis::RedisError),
    /// The same of something that the client must not believe to be done: a new id, an end, a strict field.
    Failed(redis::RedisError),
}

/// One request's session and the changes of it.
pub struct TrackedSession {
    pub(super) redis: StateClient,
    pub(super) settings: Arc<SessionSettings>,
    history: Mutex<SessionHistory>,
}

#[derive(Default)]
pub(super) struct SessionHistory {
    /// The session as Redis has it, as far as this request knows.
    pub(super) loaded: Option<LoadedSession>,
    /// What tower-sessions' `Session` was given; its changes are what differs from that.
    pub(super) original: Option<HashMap<String, Value>>,
    /// The id that `Session` released: it is to be replaced, or ended.
    pub(super) released_id: Option<Id>,
    /// Ids that this request replaced, or ended.
    pub(super) replaced_ids: Vec<(Id, Option<Id>)>,
    pub(super) commit_status: CommitStatus,
}

/// A session as Redis has it.
#[derive(Clone)]
pub struct LoadedSession {
    pub(super) id: Id,
    pub(super) digest: SessionDigest,
    /// Tag of the user who is logged in.
    pub(super) user: Option<String>,
    pub(super) details: Option<LoginDetails>,
    pub(super) created_ms: u64,
    /// Its first hashed id, if it was given another one since.
    pub(super) lineage: Option<String>,
    /// Its client has made too many sessions: nothing is stored in it.
    pub(super) unconfirmed: bool,
    pub(super) fields: FieldMap,
}

/// Without its id and its changes.
impl fmt::Debug for TrackedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedSession").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Without its id, its user and its fields.
impl fmt::Debug for LoadedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedSession").field("created_ms", &self.created_ms).finish_non_exhaustive()
    }
}

impl LoadedSession {
    /// Tag of the user who is logged in.
    pub fn user(&self) -> Option<UserTag> {
        self.user.as_ref()?.parse().ok()
    }

    /// The details of its login, if a user is logged in.
    pub fn login_details(self) -> Option<LoginDetails> {
        self.details.filter(|_| self.user.is_some())
    }

    /// Whether anything may be stored in it.
    ///
    /// # Errors
    /// `TooManySessions`.
    pub(super) fn check_accepts_data(&self) -> Result<(), SessionError> {
        match self.unconfirmed {
            true => Err(SessionError::TooManySessions { retry_after: Duration::from_secs(1) }),
            false => Ok(()),
        }
    }
}

impl TrackedSession {
    /// Nothing is known yet; changes are written through `redis`.
    pub fn new(redis: StateClient, settings: Arc<SessionSettings>) -> Self {
        Self { redis, settings, history: Mutex::default() }
    }

    /// The status of `Session`'s changes so far.
    pub fn commit_status(&self) -> CommitStatus {
        self.lock_history().commit_status.clone()
    }

    /// The id that `Session` released, until its session is moved or ended.
    pub fn released_id(&self) -> Option<Id> {
        self.lock_history().released_id
    }

    /// Whether all changes of `Session` are stored, and none of them failed.
    pub fn is_complete(&self) -> bool {
        let state = self.lock_history();
        let is_done = matches!(
            state.commit_status,
            CommitStatus::Unchanged | CommitStatus::Stored(_) | CommitStatus::Destroyed
        );
        is_done && state.released_id.is_none()
    }

    /// The user who is logged in with the session that is known.
    pub fn user(&self) -> Option<UserTag> {
        self.lock_history().loaded.as_ref()?.user()
    }

    pub(super) fn lock_history(&self) -> MutexGuard<'_, SessionHistory> {
        // A panic while it was held left whole values: every change is one assignment.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id that replaced this one; none if this request ended the session.
    pub fn current_id(&self, id: Id) -> Option<Id> {
        let state = self.lock_history();
        state.replaced_ids.iter().try_fold(id, |now, (old, new)| if now == *old { *new } else { Some(now) })
    }

    /// The session with this id, if it is known.
    pub fn known(&self, id: Id) -> Option<LoadedSession> {
        self.lock_history().loaded.as_ref().filter(|known| known.id == id).cloned()
    }

    /// The session as it is now.
    pub(super) async fn reload(&self, id: Id) -> Result<LoadedSession, SessionError> {
        let arg = SessionQuery {
            key: keys::session(&self.settings.prefix, &digest(id)),
            generation: None,
            access: SessionAccess::Read,
            provisional: None,
            idle_ms: self.settings.lifetimes.idle_ms(),
            absolute_ms: self.settings.lifetimes.absolute_ms(),
        };
        let request = begin::BeginRequest { session: Some(&arg), ..begin::BeginRequest::default() };
        match self.redis.begin(&request).await? {
            begin::BeginReply::Granted { session, .. } => self.record_lookup(id, session),
            begin::BeginReply::Denied { .. } => Err(SessionError::Denied),
        }
    }

    /// What was found under this id is what is known from now on.
    ///
    /// # Errors
    /// `Gone`, `Rotated`.
    pub fn record_lookup(&self, id: Id, reply: SessionLookup) -> Result<LoadedSession, SessionError> {
        let (created_ms, own, stored) = match reply {
            SessionLookup::Found { created_ms, attributes: own, fields, .. } => (created_ms, own, fields),
            SessionLookup::Rotated => return Err(SessionError::Rotated),
            _ => return Err(SessionError::Gone),
        };
        let digest = digest(id);
        let SessionAttributes { user, details, lineage, unconfirmed, .. } =
            own.map(|own| *own).unwrap_or_default();
        let known = LoadedSession {
            id,
            user,
            details: details.and_then(|stored| self.decrypt_details(&digest, stored)),
            created_ms,
            lineage,
            unconfirmed,
            fields: fields::decrypt(self.settings.cipher.as_ref(), &digest, stored),
            digest,
        };
        self.lock_history().loaded = Some(known.clone());
        Ok(known)
    }

    /// Changes fields of a session that is known, if those it names `certain` are still as they are known to be.
    pub(super) async fn commit_fields(
        &self,
        known: LoadedSession,
        delta: &FieldChanges,
        certain: &[String],
    ) -> Result<LoadedSession, SessionError> {
        known.check_accepts_data()?;
        let mut after = known.fields.clone();
        delta.apply(&mut after);
        let size = fields::size(&after);
        if size > SESSION_BYTES_MAX || after.len() as u64 > SESSION_FIELDS_MAX {
            return Err(SessionError::TooLarge);
        }
        let expect = delta.names().filter(|name| certain.contains(name));
        let expect: Vec<(String, Option<Bytes>)> = expect
            .map(|name| (name.clone(), known.fields.get(name).map(|field| field.stored.clone())))
            .collect();
        let key = keys::session(&self.settings.prefix, &known.digest);
        let request = commit::CommitSession {
            key: &key,
            expect: &expect,
            set: &delta.to_wire(),
            remove: &delta.remove,
            max_fields: SESSION_FIELDS_MAX,
            // What is far below the bound is not measured again by the server, which knows other requests' fields.
            max_bytes: if size > SESSION_BYTES_MAX / 2 { SESSION_BYTES_MAX as u64 } else { 0 },
            ..commit::CommitSession::default()
        };
        into_sums(self.redis.commit(&request).await?)?;
        let known = LoadedSession { fields: after, ..known };
        self.lock_history().loaded = Some(known.clone());
        Ok(known)
    }

    /// Fields with these texts, ready to be stored in the session with this digest.
    pub(super) fn encrypt_fields(
        &self,
        digest: &str,
        set: Vec<(String, Bytes)>,
    ) -> Result<Vec<(String, fields::SessionField)>, SessionError> {
        let cipher = self.settings.cipher.as_ref();
        let sealed = set.into_iter().map(|(name, text)| {
            let field = fields::encrypt(cipher, digest, &name, text)?;
            Ok((name, field))
        });
        sealed.collect()
    }
}

/// The sums of a commit that was done.
pub(super) fn into_sums(reply: commit::CommitOutcome) -> Result<Vec<i64>, SessionError> {
    match reply {
        commit::CommitOutcome::Committed { sums } => Ok(sums),
        commit::CommitOutcome::Gone | commit::CommitOutcome::Exists => Err(SessionError::Gone),
        commit::CommitOutcome::Rotated => Err(SessionError::Rotated),
        commit::CommitOutcome::TooLarge => Err(SessionError::TooLarge),
        commit::CommitOutcome::Conflict => Err(SessionError::Conflict),
        commit::CommitOutcome::NotANumber => Err(SessionError::NotANumber),
    }
}
