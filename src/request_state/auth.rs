//! A session's ids, its user and its end.

use std::time::Duration;

use bytes::Bytes;
use tower_sessions::session::Id;

use crate::request_state::tracked_session::{LoadedSession, NewSessionSeed, TrackedSession};
use crate::sessions::commands::{RotateFrom as MoveSource, RotateOutcome, RotateSession};
use crate::sessions::fields::{ChangeSet, FieldChanges};
use crate::sessions::user::{LoginDetails, UserTag};
use crate::sessions::{
    LIFETIME_MAX, ROTATION_GRACE, SESSION_BYTES_MAX, SESSION_FIELDS_MAX, SessionError, cookie, digest,
    fields, millis, public_handle,
};
/// How often a new id is tried if one is taken (128 random bits never are) or a field changed meanwhile.
const ATTEMPTS: usize = 4;
/// What details of a login are encrypted under.
const DETAILS_FIELD: &str = "_d";

/// One of a user's sessions, as its user may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveSession {
    /// Names it; does not give access to it.
    pub handle: String,
    /// Time of the login, ms since 1970 by Redis's clock.
    pub created_ms: u64,
    /// When it was last used, ms since 1970; exact to a tenth of its idle lifetime.
    pub last_seen_ms: u64,
    /// Address the login came from.
    pub address: String,
    /// The browser's `User-Agent`.
    pub agent: String,
    /// Whether it is this request's.
    pub current: bool,
}

/// A login: the user, and from where.
#[derive(Debug, Clone)]
pub struct UserLogin {
    /// The user's tag.
    pub user: UserTag,
    /// What the session keeps of it.
    pub details: LoginDetails,
}

/// What a new id comes with.
pub(super) enum RotationCause<'a> {
    /// A login.
    Login(&'a UserLogin),
    /// The id alone is new; fields change in the same step: texts to set, names to remove.
    CycleId(&'a ChangeSet),
}

impl TrackedSession {
    /// Logs a user in: the session gets another id, or is created; of the old id only a mark stays.
    ///
    /// # Errors
    /// `Rotated` if another request replaced the old id already; `Redis`, after a timeout of which it is unknown
    /// whether it was done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn login(
        &self,
        known: Option<LoadedSession>,
        login: &UserLogin,
        seed: NewSessionSeed,
    ) -> Result<Id, SessionError> {
        let (id, sessions) = self.rotate(known, &RotationCause::Login(login), seed).await?;
        let most = self.settings.sessions_max();
        if sessions > most {
            // The user is logged in; if another session cannot be ended now, the next login ends it.
            let (prefix, user, stays) = (&self.settings.prefix, login.user.to_string(), digest(id));
            let absolute_ms = self.settings.lifetimes.absolute_ms();
            if let Err(error) =
                self.redis.destroy_surplus_sessions(prefix, &user, absolute_ms, most, &stays).await
            {
                tracing::warn!(%error, "a user's surplus session was not ended: {error}");
            }
        }
        Ok(id)
    }

    /// Gives the session another id and keeps everything else.
    ///
    /// # Errors
    /// `Gone`, `Rotated`, `Redis`.
    ///
    /// # Cancel safety
    /// As [`TrackedSession::login`].
    pub async fn cycle_id(&self, known: LoadedSession, seed: NewSessionSeed) -> Result<Id, SessionError> {
        Ok(self.rotate(Some(known), &RotationCause::CycleId(&(Vec::new(), Vec::new())), seed).await?.0)
    }

    /// Makes a session with these fields.
    ///
    /// # Errors
    /// `TooLarge`, `NoRandomness`, `Redis`.
    pub async fn create_with_fields(
        &self,
        set: Vec<(String, Bytes)>,
        seed: NewSessionSeed,
    ) -> Result<Id, SessionError> {
        Ok(self.rotate(None, &RotationCause::CycleId(&(set, Vec::new())), seed).await?.0)
    }

    /// Moves a session that is known, or makes one; returns the new id and how many sessions its user has.
    pub(super) async fn rotate(
        &self,
        known: Option<LoadedSession>,
        cause: &RotationCause<'_>,
        seed: NewSessionSeed,
    ) -> Result<(Id, u64), SessionError> {
        let (mut known, mut seed) = (known, seed);
        for _ in 0..ATTEMPTS {
            let own = seed.id.take().filter(|_| known.is_none());
            let id = own.map_or_else(cookie::new_id, Ok)?;
            let (moved, after) = self.try_rotate(id, known.as_ref(), cause, &seed).await?;
            let old = known.as_ref().map(|known| known.id);
            match moved {
                RotateOutcome::Done { created_ms, sessions } => {
                    let mut state = self.lock_history();
                    state.replaced_ids.extend(old.map(|old| (old, Some(id))));
                    state.loaded = Some(LoadedSession { created_ms, ..after });
                    return Ok((id, sessions));
                }
                RotateOutcome::IdInUse => {}
                RotateOutcome::Conflict => {
                    if let Some(old) = old {
                        known = Some(self.reload(old).await?);
                    }
                }
                RotateOutcome::Gone => return Err(SessionError::Gone),
                RotateOutcome::AlreadyRotated => return Err(SessionError::Rotated),
                RotateOutcome::TooLarge => return Err(SessionError::TooLarge),
                RotateOutcome::RateLimited { retry_after_ms } => {
                    return Err(SessionError::TooManySessions {
                        retry_after: Duration::from_millis(retry_after_ms),
                    });
                }
            }
        }
        Err(SessionError::Conflict)
    }

    async fn try_rotate(
        &self,
        id: Id,
        known: Option<&LoadedSession>,
        cause: &RotationCause<'_>,
        seed: &NewSessionSeed,
    ) -> Result<(RotateOutcome, LoadedSession), SessionError> {
        let settings = &self.settings;
        let new = digest(id);
        let nothing = fields::FieldMap::new();
        let before = known.map_or(&nothing, |known| &known.fields);
        let (expect, set) = fields::reencrypt(settings.cipher.as_ref(), &new, before)?;
        let mut delta = FieldChanges { set, remove: Vec::new() };
        let (login, user, details) = match cause {
            RotationCause::Login(login) => (true, Some(login.user.to_string()), Some(login.details.clone())),
            RotationCause::CycleId((set, remove)) => {
                delta.set.retain(|(name, _)| !remove.contains(name));
                delta.set.extend(self.encrypt_fields(&new, set.clone())?);
                delta.remove.clone_from(remove);
                let (user, details) = known.map(|known| (known.user.clone(), known.details.clone())).unzip();
                (false, user.flatten(), details.flatten())
            }
        };
        let mut after = before.clone();
        delta.apply(&mut after);
        check_size(&after)?;
        let stored = details.as_ref().map(|details| self.encrypt_details(&new, details)).transpose()?;
        let lineage = known.map(|known| known.lineage.clone().unwrap_or_else(|| known.digest.to_string()));
        let request = RotateSession {
            prefix: &settings.prefix,
            new: &new,
            from: match known {
                None => MoveSource::Nothing,
                Some(known) if login => MoveSource::SessionIfPresent(&known.digest),
                Some(known) => MoveSource::Session(&known.digest),
            },
            user: user.as_deref(),
            login,
            details: stored.as_ref(),
            idle_ms: settings.lifetimes.idle_ms(),
            absolute_ms: settings.lifetimes.absolute_ms(),
            grace_ms: millis(ROTATION_GRACE),
            max_fields: SESSION_FIELDS_MAX,
            max_bytes: SESSION_BYTES_MAX as u64,
            lineage: lineage.as_deref(),
            set: &delta.to_wire(),
            remove: &delta.remove,
            expect: &expect,
            initial: seed.initial,
            limit: seed.limit.as_ref().filter(|_| login || known.is_none_or(|known| known.unconfirmed)),
        };
        let moved = self.redis.rotate_session(&request).await?;
        let created_ms = known.map_or(0, |known| known.created_ms);
        let known = LoadedSession {
            id,
            digest: new,
            user,
            details,
            created_ms,
            lineage,
            unconfirmed: false,
            fields: after,
        };
        Ok((moved, known))
    }

    /// Ends a session of this request; one that is not there is ended already.
    ///
    /// # Errors
    /// `Redis`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was ended.
    pub async fn destroy(&self, id: Id, user: Option<UserTag>) -> Result<(), SessionError> {
        let user = user.map(|user| user.to_string());
        self.redis.destroy_session(&self.settings.prefix, &digest(id), user.as_deref(), false).await?;
        let mut state = self.lock_history();
        state.replaced_ids.push((id, None));
        state.loaded = None;
        Ok(())
    }

    /// A user's sessions, the current one first, then the latest login.
    ///
    /// # Errors
    /// `Redis`.
    pub async fn list_user_sessions(
        &self,
        user: UserTag,
        current: Option<Id>,
    ) -> Result<Vec<ActiveSession>, SessionError> {
        let current = current.map(digest);
        let absolute_ms = self.settings.lifetimes.absolute_ms();
        let found = self.redis.user_sessions(&self.settings.prefix, &user.to_string(), absolute_ms).await?;
        let mut listed: Vec<ActiveSession> = found
            .into_iter()
            .map(|found| {
                let details = self.decrypt_details(&found.digest, found.details).unwrap_or_default();
                ActiveSession {
                    handle: public_handle(&found.digest).to_owned(),
                    created_ms: found.created_ms,
                    last_seen_ms: found.last_used_ms,
                    address: details.address,
                    agent: details.agent,
                    current: current.as_deref() == Some(found.digest.as_str()),
                }
            })
            .collect();
        listed.sort_by_key(|session| (!session.current, std::cmp::Reverse(session.created_ms)));
        Ok(listed)
    }

    /// Ends the user's session with this handle; whether there was one.
    ///
    /// # Errors
    /// `Redis`.
    pub async fn revoke(&self, user: UserTag, requested_handle: &str) -> Result<bool, SessionError> {
        let (prefix, tag) = (&self.settings.prefix, user.to_string());
        let found = self.redis.user_sessions(prefix, &tag, self.settings.lifetimes.absolute_ms()).await?;
        match found.iter().find(|found| public_handle(&found.digest) == requested_handle) {
            None => Ok(false),
            Some(found) => Ok(self.redis.destroy_session(prefix, &found.digest, Some(&tag), true).await?),
        }
    }

    /// Logs a user out everywhere, except in the session `stays`.
    ///
    /// # Errors
    /// `Redis`.
    pub async fn destroy_all(&self, user: UserTag, stays: Option<Id>) -> Result<(), SessionError> {
        let kept = LIFETIME_MAX.max(self.settings.lifetimes.absolute) + Duration::from_secs(60);
        let stays = stays.map(digest);
        let tag = user.to_string();
        let (kept_ms, absolute_ms) = (millis(kept), self.settings.lifetimes.absolute_ms());
        let (prefix, stays) = (&self.settings.prefix, stays.as_deref());
        Ok(self.redis.destroy_user_sessions(prefix, &tag, stays, kept_ms, absolute_ms).await?)
    }

    /// Gives a session a lifetime of its own, from now; none is longer than [`LIFETIME_MAX`].
    ///
    /// # Errors
    /// `Gone`, `Redis`.
    pub async fn set_lifetimes(
        &self,
        id: Id,
        user: Option<UserTag>,
        idle: Duration,
        absolute: Duration,
    ) -> Result<(), SessionError> {
        let absolute = absolute.min(LIFETIME_MAX);
        let (prefix, tag) = (&self.settings.prefix, user.map(|user| user.to_string()));
        let (idle_ms, absolute_ms) = (millis(idle.min(absolute)), millis(absolute));
        let there = self
            .redis
            .set_session_lifetimes(prefix, &digest(id), tag.as_deref(), idle_ms, absolute_ms)
            .await?;
        if there { Ok(()) } else { Err(SessionError::Gone) }
    }

    pub(super) fn decrypt_details(&self, digest: &str, stored: Bytes) -> Option<LoginDetails> {
        let fields =
            fields::decrypt(self.settings.cipher.as_ref(), digest, vec![(DETAILS_FIELD.to_owned(), stored)]);
        serde_json::from_slice(fields.get(DETAILS_FIELD)?.text.as_ref()?).ok()
    }

    fn encrypt_details(&self, digest: &str, details: &LoginDetails) -> Result<Bytes, SessionError> {
        let text = serde_json::to_vec(details).map_err(|_| SessionError::InvalidField)?;
        Ok(fields::encrypt(self.settings.cipher.as_ref(), digest, DETAILS_FIELD, text.into())?.stored)
    }
}

/// Whether a session of these fields may be stored.
fn check_size(fields: &fields::FieldMap) -> Result<(), SessionError> {
    let too_large = fields::size(fields) > SESSION_BYTES_MAX || fields.len() as u64 > SESSION_FIELDS_MAX;
    if too_large { Err(SessionError::TooLarge) } else { Ok(()) }
}
