//! The session of one request: what its one call fetched, what is known of it since, and what became of changes.
//!
//! Fields of the session are fields of the hash, as JSON text. Requests that change different fields keep both
//! changes; of one field the last writer wins, unless it is strict. Nothing here brings a session back that is gone.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tower_sessions::session::Id;

use crate::redis;
use crate::redis::Redis;
use crate::redis::begin;
use crate::redis::begin::NewSessions;
use crate::redis::begin::Own;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::redis::commit;
use crate::redis::keys;
use crate::redis::sessions::Made;
use crate::session::BYTES_MAX;
use crate::session::Error;
use crate::session::FIELDS_MAX;
use crate::session::Setup;
use crate::session::digest;
use crate::session::digest::Digest;
use crate::session::fields;
use crate::session::fields::Delta;
use crate::session::fields::Fields;
use crate::session::user::Details;
use crate::session::user::UserTag;

/// Gives the store this request's session, with the request's one call if it was not made yet.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// The session with this id, as it was at the request's begin.
    fn begun(&self, id: &Id) -> impl Future<Output = Result<SessionReply, Error>> + Send;

    /// What a session begins with that this request makes.
    fn newcomer(&self) -> impl Future<Output = Newcomer> + Send {
        std::future::ready(Newcomer::default())
    }
}

/// What a session begins with that a request makes.
#[derive(Debug, Clone, Default)]
pub struct Newcomer {
    /// Its id, if it has been used for something already; it was not sent yet.
    pub id: Option<Id>,
    /// Its views and creation.
    pub made: Made,
    /// The limit on new sessions of the request's client.
    pub limit: Option<NewSessions>,
}

/// What became of what a request did to its session through tower-sessions' `Session`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was to be stored.
    #[default]
    Untouched,
    /// It is stored under this id.
    Stored(Id),
    /// The session was ended.
    Ended,
    /// The session is gone; nothing was stored and nothing made.
    Gone,
    /// The session would be too large; nothing was stored.
    TooLarge,
    /// Another request changed the same strict field; nothing was stored.
    Conflict,
    /// The client has made too many sessions; nothing was stored. It may try again after so long.
    Limited(Duration),
    /// Redis did not store it, or it is unknown whether it did; the response may go out without.
    Unstored(redis::Error),
    /// The same of something that the client must not believe to be done: a new id, an end, a strict field.
    Failed(redis::Error),
}

/// The store for one request.
#[derive(Debug)]
pub struct RequestStore<S> {
    pub(super) source: S,
    pub(super) redis: Redis,
    pub(super) setup: Arc<Setup>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The session as Redis has it, as far as this request knows.
    pub(super) known: Option<Known>,
    /// What tower-sessions' `Session` was given; its changes are what differs from that.
    pub(super) given: Option<HashMap<String, Value>>,
    /// The id that `Session` let go: it is to be replaced, or ended.
    pub(super) left: Option<Id>,
    /// Ids that this request replaced, or ended.
    pub(super) past: Vec<(Id, Option<Id>)>,
    pub(super) outcome: Outcome,
}

/// A session as Redis has it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) id: Id,
    pub(super) digest: Digest,
    /// Tag of the user who is logged in.
    pub(super) user: Option<String>,
    pub(super) details: Option<Details>,
    pub(super) created_ms: u64,
    /// Its first hashed id, if it was given another one since.
    pub(super) lineage: Option<String>,
    /// Its client has made too many sessions: nothing is stored in it.
    pub(super) unconfirmed: bool,
    pub(super) fields: Fields,
}

impl Known {
    /// Whether anything may be stored in it.
    ///
    /// # Errors
    /// `TooMany`.
    pub(super) fn takes_data(&self) -> Result<(), Error> {
        match self.unconfirmed {
            true => Err(Error::TooMany { retry_after: Duration::from_secs(1) }),
            false => Ok(()),
        }
    }
}

impl<S: Source> RequestStore<S> {
    /// A store that reads through `source` and writes through `redis`.
    pub fn new(source: S, redis: Redis, setup: Arc<Setup>) -> Self {
        Self { source, redis, setup, state: Mutex::default() }
    }

    /// What became of `Session`'s changes so far.
    pub fn outcome(&self) -> Outcome {
        self.state().outcome.clone()
    }

    /// The id that `Session` let go without that anything was done about it.
    pub fn left(&self) -> Option<Id> {
        self.state().left
    }

    /// Whether nothing is left to be done of what `Session` was told, and nothing of it failed.
    pub fn is_settled(&self) -> bool {
        let state = self.state();
        let is_done = matches!(state.outcome, Outcome::Untouched | Outcome::Stored(_) | Outcome::Ended);
        is_done && state.left.is_none()
    }

    /// The user who is logged in with the session that is known.
    pub fn user(&self) -> Option<UserTag> {
        self.state().known.as_ref()?.user.as_ref()?.parse().ok()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held left whole values: every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id that is in the place of this one now; none if this request ended it.
    pub fn present(&self, id: Id) -> Option<Id> {
        let state = self.state();
        state.past.iter().try_fold(id, |now, (old, new)| if now == *old { *new } else { Some(now) })
    }

    /// The session, read with the request's begin unless it is known already.
    ///
    /// # Errors
    /// `Gone`, `Rotated`, and whatever kept it from being read.
    pub(super) async fn known(&self, id: Id) -> Result<Known, Error> {
        if let Some(known) = self.state().known.as_ref().filter(|known| known.id == id) {
            return Ok(known.clone());
        }
        let reply = self.source.begun(&id).await?;
        self.learn(id, reply)
    }

    /// The session as it is now.
    pub(super) async fn read_again(&self, id: Id) -> Result<Known, Error> {
        let arg = SessionArg {
            key: keys::session(&self.setup.prefix, &digest(id)),
            generation: None,
            mode: SessionMode::Read,
            ticket: None,
            idle_ms: self.setup.lifetimes.idle_ms(),
            absolute_ms: self.setup.lifetimes.absolute_ms(),
        };
        let request = begin::Request { session: Some(&arg), ..begin::Request::default() };
        match self.redis.begin(&request).await? {
            begin::Reply::Granted { session, .. } => self.learn(id, session),
            begin::Reply::Denied { .. } => Err(Error::Denied),
        }
    }

    fn learn(&self, id: Id, reply: SessionReply) -> Result<Known, Error> {
        let (created_ms, own, stored) = match reply {
            SessionReply::Live { created_ms, own, fields, .. } => (created_ms, own, fields),
            SessionReply::Rotated => return Err(Error::Rotated),
            _ => return Err(Error::Gone),
        };
        let digest = digest(id);
        let Own { user, details, lineage, unconfirmed, .. } = own.map(|own| *own).unwrap_or_default();
        let known = Known {
            id,
            user,
            details: details.and_then(|stored| self.read_details(&digest, stored)),
            created_ms,
            lineage,
            unconfirmed,
            fields: fields::open(self.setup.cipher.as_ref(), &digest, stored),
            digest,
        };
        self.state().known = Some(known.clone());
        Ok(known)
    }

    /// Changes fields of a session that is known, if those it names `certain` are still as they are known to be.
    pub(super) async fn store(
        &self,
        known: Known,
        delta: &Delta,
        certain: &[String],
    ) -> Result<Known, Error> {
        known.takes_data()?;
        let mut after = known.fields.clone();
        delta.apply(&mut after);
        let size = fields::size(&after);
        if size > BYTES_MAX || after.len() as u64 > FIELDS_MAX {
            return Err(Error::TooLarge);
        }
        let expect = delta.names().filter(|name| certain.contains(name));
        let expect: Vec<(String, Option<Bytes>)> = expect
            .map(|name| (name.clone(), known.fields.get(name).map(|field| field.stored.clone())))
            .collect();
        let key = keys::session(&self.setup.prefix, &known.digest);
        let request = commit::Request {
            key: &key,
            expect: &expect,
            set: &delta.wire(),
            remove: &delta.remove,
            max_fields: FIELDS_MAX,
            // What is far below the bound is not measured again by the server, which knows other requests' fields.
            max_bytes: if size > BYTES_MAX / 2 { BYTES_MAX as u64 } else { 0 },
            ..commit::Request::default()
        };
        committed(self.redis.commit(&request).await?)?;
        let known = Known { fields: after, ..known };
        self.state().known = Some(known.clone());
        Ok(known)
    }

    /// Fields with these texts, ready to be stored in the session with this digest.
    pub(super) fn seal(
        &self,
        digest: &str,
        set: Vec<(String, Bytes)>,
    ) -> Result<Vec<(String, fields::Field)>, Error> {
        let cipher = self.setup.cipher.as_ref();
        let sealed = set.into_iter().map(|(name, text)| {
            let field = fields::seal(cipher, digest, &name, text)?;
            Ok((name, field))
        });
        sealed.collect()
    }
}

/// The sums of a commit that was done.
pub(super) fn committed(reply: commit::Reply) -> Result<Vec<i64>, Error> {
    match reply {
        commit::Reply::Committed { sums } => Ok(sums),
        commit::Reply::Gone | commit::Reply::Exists => Err(Error::Gone),
        commit::Reply::Rotated => Err(Error::Rotated),
        commit::Reply::Full => Err(Error::TooLarge),
        commit::Reply::Conflict => Err(Error::Conflict),
        commit::Reply::NoSum => Err(Error::NoSum),
    }
}
