//! A session's ids, its user and its end.

use std::time::Duration;

use bytes::Bytes;
use tower_sessions::session::Id;

use crate::redis::sessions::Move;
use crate::redis::sessions::Moved;
use crate::redis::sessions::Source as MoveSource;
use crate::session::BYTES_MAX;
use crate::session::Error;
use crate::session::FIELDS_MAX;
use crate::session::GRACE;
use crate::session::LIFETIME_MAX;
use crate::session::cookie;
use crate::session::digest;
use crate::session::fields;
use crate::session::fields::Changes;
use crate::session::fields::Delta;
use crate::session::handle;
use crate::session::millis;
use crate::session::store::Known;
use crate::session::store::Newcomer;
use crate::session::store::RequestStore;
use crate::session::store::Source;
use crate::session::user::Details;
use crate::session::user::UserTag;
/// How often a new id is tried if one is taken (128 random bits never are) or a field changed meanwhile.
const ATTEMPTS: usize = 4;
/// What details of a login are encrypted under.
const DETAILS: &str = "_d";

/// One of a user's sessions, as he may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Names it; of no use to anybody who wants to get into it.
    pub handle: String,
    /// When he logged in, ms since 1970 by Redis's clock.
    pub created_ms: u64,
    /// When it was last used, ms since 1970; exact to a tenth of its idle lifetime.
    pub last_seen_ms: u64,
    /// Address the login came from.
    pub address: String,
    /// What the browser said it is.
    pub agent: String,
    /// Whether it is this request's.
    pub current: bool,
}

/// A login: who, and from where.
#[derive(Debug, Clone)]
pub struct Login {
    /// His tag.
    pub user: UserTag,
    /// What the session keeps of it.
    pub details: Details,
}

/// What a new id comes with.
pub(super) enum Cause<'a> {
    /// Somebody logged in.
    Login(&'a Login),
    /// The id alone is new; fields change in the same step: texts to set, names to remove.
    Cycle(&'a Changes),
}

impl<S: Source> RequestStore<S> {
    /// Logs a user in: the session gets another id, or is made; of the old id nothing but a mark stays.
    ///
    /// # Errors
    /// `Rotated` if another request replaced the old id already; `Redis`, after a timeout of which it is unknown
    /// whether it was done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn login(&self, old: Option<Id>, login: &Login) -> Result<Id, Error> {
        let known = match old {
            None => None,
            Some(old) => match self.known(old).await {
                Ok(known) => Some(known),
                Err(Error::Gone) => None,
                Err(error) => return Err(error),
            },
        };
        let (id, sessions) = self.relocate(known, &Cause::Login(login)).await?;
        let most = self.setup.sessions_max();
        if sessions > most {
            // The user is logged in; if another session cannot be ended now, the next login ends it.
            let (prefix, user, stays) = (&self.setup.prefix, login.user.to_string(), digest(id));
            let absolute_ms = self.setup.lifetimes.absolute_ms();
            if let Err(error) = self.redis.end_surplus(prefix, &user, absolute_ms, most, &stays).await {
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
    /// As [`RequestStore::login`].
    pub async fn regenerate(&self, old: Id) -> Result<Id, Error> {
        let known = self.known(old).await?;
        Ok(self.relocate(Some(known), &Cause::Cycle(&(Vec::new(), Vec::new()))).await?.0)
    }

    /// Makes a session with these fields.
    ///
    /// # Errors
    /// `TooLarge`, `NoRandomness`, `Redis`.
    pub async fn make(&self, set: Vec<(String, Bytes)>) -> Result<Id, Error> {
        Ok(self.relocate(None, &Cause::Cycle(&(set, Vec::new()))).await?.0)
    }

    /// Moves a session that is known, or makes one; returns the new id and how many sessions its user has.
    pub(super) async fn relocate(&self, known: Option<Known>, cause: &Cause<'_>) -> Result<(Id, u64), Error> {
        let mut known = known;
        let mut newcomer = self.source.newcomer().await;
        for _ in 0..ATTEMPTS {
            let own = newcomer.id.take().filter(|_| known.is_none());
            let id = own.map_or_else(cookie::new_id, Ok)?;
            let (moved, after) = self.try_move(id, known.as_ref(), cause, &newcomer).await?;
            let old = known.as_ref().map(|known| known.id);
            match moved {
                Moved::Done { created_ms, sessions } => {
                    let mut state = self.state();
                    state.past.extend(old.map(|old| (old, Some(id))));
                    state.known = Some(Known { created_ms, ..after });
                    return Ok((id, sessions));
                }
                Moved::Taken => {}
                Moved::Conflict => {
                    if let Some(old) = old {
                        known = Some(self.read_again(old).await?);
                    }
                }
                Moved::Gone => return Err(Error::Gone),
                Moved::Rotated => return Err(Error::Rotated),
                Moved::Full => return Err(Error::TooLarge),
                Moved::Limited { retry_after_ms } => {
                    return Err(Error::TooMany { retry_after: Duration::from_millis(retry_after_ms) });
                }
            }
        }
        Err(Error::Conflict)
    }

    async fn try_move(
        &self,
        id: Id,
        known: Option<&Known>,
        cause: &Cause<'_>,
        newcomer: &Newcomer,
    ) -> Result<(Moved, Known), Error> {
        let setup = &self.setup;
        let new = digest(id);
        let nothing = fields::Fields::new();
        let before = known.map_or(&nothing, |known| &known.fields);
        let (expect, set) = fields::reseal(setup.cipher.as_ref(), &new, before)?;
        let mut delta = Delta { set, remove: Vec::new() };
        let (login, user, details) = match cause {
            Cause::Login(login) => (true, Some(login.user.to_string()), Some(login.details.clone())),
            Cause::Cycle((set, remove)) => {
                delta.set.retain(|(name, _)| !remove.contains(name));
                delta.set.extend(self.seal(&new, set.clone())?);
                delta.remove.clone_from(remove);
                (
                    false,
                    known.and_then(|known| known.user.clone()),
                    known.and_then(|known| known.details.clone()),
                )
            }
        };
        let mut after = before.clone();
        delta.apply(&mut after);
        if fields::size(&after) > BYTES_MAX || after.len() as u64 > FIELDS_MAX {
            return Err(Error::TooLarge);
        }
        let stored = details.as_ref().map(|details| self.write_details(&new, details)).transpose()?;
        let lineage = known.map(|known| known.lineage.clone().unwrap_or_else(|| known.digest.to_string()));
        let request = Move {
            prefix: &setup.prefix,
            new: &new,
            from: match known {
                None => MoveSource::Nothing,
                Some(known) if login => MoveSource::SessionIfThere(&known.digest),
                Some(known) => MoveSource::Session(&known.digest),
            },
            user: user.as_deref(),
            login,
            details: stored.as_ref(),
            idle_ms: setup.lifetimes.idle_ms(),
            absolute_ms: setup.lifetimes.absolute_ms(),
            grace_ms: millis(GRACE),
            max_fields: FIELDS_MAX,
            max_bytes: BYTES_MAX as u64,
            lineage: lineage.as_deref(),
            set: &delta.wire(),
            remove: &delta.remove,
            expect: &expect,
            made: newcomer.made,
            limit: newcomer.limit.as_ref().filter(|_| login || known.is_none_or(|known| known.unconfirmed)),
        };
        let moved = self.redis.move_session(&request).await?;
        let created_ms = known.map_or(0, |known| known.created_ms);
        let known =
            Known { id, digest: new, user, details, created_ms, lineage, unconfirmed: false, fields: after };
        Ok((moved, known))
    }

    /// Ends a session of this request; one that is not there is ended already.
    ///
    /// # Errors
    /// `Redis`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was ended.
    pub async fn end(&self, id: Id, user: Option<UserTag>) -> Result<(), Error> {
        let user = user.map(|user| user.to_string());
        self.redis.end_session(&self.setup.prefix, &digest(id), user.as_deref(), false).await?;
        let mut state = self.state();
        state.past.push((id, None));
        state.known = None;
        Ok(())
    }

    /// A user's sessions, the one he uses now first, then the latest login.
    ///
    /// # Errors
    /// `Redis`.
    pub async fn sessions_of(&self, user: UserTag, current: Option<Id>) -> Result<Vec<Listed>, Error> {
        let current = current.map(digest);
        let absolute_ms = self.setup.lifetimes.absolute_ms();
        let found = self.redis.sessions_of(&self.setup.prefix, &user.to_string(), absolute_ms).await?;
        let mut listed: Vec<Listed> = found
            .into_iter()
            .map(|found| {
                let details = self.read_details(&found.digest, found.details).unwrap_or_default();
                Listed {
                    handle: handle(&found.digest).to_owned(),
                    created_ms: found.created_ms,
                    last_seen_ms: found.touched_ms,
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
    pub async fn revoke(&self, user: UserTag, wanted: &str) -> Result<bool, Error> {
        let (prefix, tag) = (&self.setup.prefix, user.to_string());
        let found = self.redis.sessions_of(prefix, &tag, self.setup.lifetimes.absolute_ms()).await?;
        match found.iter().find(|found| handle(&found.digest) == wanted) {
            None => Ok(false),
            Some(found) => Ok(self.redis.end_session(prefix, &found.digest, Some(&tag), true).await?),
        }
    }

    /// Logs a user out everywhere, except in the session `stays`.
    ///
    /// # Errors
    /// `Redis`.
    pub async fn end_all(&self, user: UserTag, stays: Option<Id>) -> Result<(), Error> {
        let kept = LIFETIME_MAX.max(self.setup.lifetimes.absolute) + Duration::from_secs(60);
        let stays = stays.map(digest);
        let tag = user.to_string();
        let (kept_ms, absolute_ms) = (millis(kept), self.setup.lifetimes.absolute_ms());
        let (prefix, stays) = (&self.setup.prefix, stays.as_deref());
        Ok(self.redis.end_sessions_of(prefix, &tag, stays, kept_ms, absolute_ms).await?)
    }

    /// Gives a session a lifetime of its own, from now; none is longer than [`LIFETIME_MAX`].
    ///
    /// # Errors
    /// `Gone`, `Redis`.
    pub async fn remember(
        &self,
        id: Id,
        user: Option<UserTag>,
        idle: Duration,
        absolute: Duration,
    ) -> Result<(), Error> {
        let absolute = absolute.min(LIFETIME_MAX);
        let (prefix, tag) = (&self.setup.prefix, user.map(|user| user.to_string()));
        let (idle_ms, absolute_ms) = (millis(idle.min(absolute)), millis(absolute));
        let there =
            self.redis.remember_session(prefix, &digest(id), tag.as_deref(), idle_ms, absolute_ms).await?;
        if there { Ok(()) } else { Err(Error::Gone) }
    }

    /// The details of the session's login, if somebody is logged in.
    ///
    /// # Errors
    /// `Gone`, `Rotated`; what kept it from being read.
    pub async fn details(&self, id: Id) -> Result<Option<Details>, Error> {
        let known = self.known(id).await?;
        Ok(known.details.filter(|_| known.user.is_some()))
    }

    pub(super) fn read_details(&self, digest: &str, stored: Bytes) -> Option<Details> {
        let fields = fields::open(self.setup.cipher.as_ref(), digest, vec![(DETAILS.to_owned(), stored)]);
        serde_json::from_slice(fields.get(DETAILS)?.text.as_ref()?).ok()
    }

    fn write_details(&self, digest: &str, details: &Details) -> Result<Bytes, Error> {
        let text = serde_json::to_vec(details).map_err(|_| Error::Form)?;
        Ok(fields::seal(self.setup.cipher.as_ref(), digest, DETAILS, text.into())?.stored)
    }
}
