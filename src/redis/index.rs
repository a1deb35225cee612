//! The index of a user's sessions: advice, which every look at it mends.

use bytes::Bytes;
use fred::types::Value;

use crate::redis::Redis;
use crate::redis::count::number;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::sessions::call;

/// Entries that are looked at in one call.
const PAGE: usize = 256;
/// The last entry that one look reads: what an index of an earlier release has beyond that, later looks mend.
const LAST: &str = "16383";

/// One of a user's sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its hashed id.
    pub digest: String,
    /// When its user logged in, ms since 1970 by Redis's clock.
    pub created_ms: u64,
    /// When it was last used, ms since 1970; exact to a tenth of its idle lifetime.
    pub touched_ms: u64,
    /// Details of the login, as stored.
    pub details: Bytes,
    /// Where it stands among the user's sessions: those that end first come first.
    pub order: u64,
}

/// From which end an index is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    First,
    Last,
}

impl Redis {
    /// A user's latest sessions, at most 256, the latest first.
    ///
    /// Two round trips, and two more for each 256 that are gone: the index is read first, because a call names every key
    /// it touches.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn sessions_of(
        &self,
        prefix: &str,
        user: &str,
        absolute_ms: u64,
    ) -> Result<Vec<Listed>, Error> {
        self.living_sessions(prefix, user, absolute_ms, From::Last, PAGE).await
    }

    /// Ends those of a user's sessions that are too many, which are those that end first; `stays` is none of them.
    ///
    /// Only sessions that live count, whatever the index names.
    ///
    /// # Errors
    /// As [`Redis::move_session`].
    pub async fn end_surplus(
        &self,
        prefix: &str,
        user: &str,
        absolute_ms: u64,
        most: u64,
        stays: &str,
    ) -> Result<(), Error> {
        let mut lives = self.living_sessions(prefix, user, absolute_ms, From::First, usize::MAX).await?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let surplus = lives.len().saturating_sub(most);
        lives.sort_by_key(|session| session.order);
        for session in lives.iter().filter(|session| session.digest != stays).take(surplus) {
            self.end_session(prefix, &session.digest, Some(user), true).await?;
        }
        Ok(())
    }

    /// Sessions that live, as many as are wanted at least if there are; those that are gone leave the index.
    async fn living_sessions(
        &self,
        prefix: &str,
        user: &str,
        absolute_ms: u64,
        from: From,
        wanted: usize,
    ) -> Result<Vec<Listed>, Error> {
        let index = keys::sessions_of(prefix, user);
        let range = [index.as_str(), "0", LAST];
        let command = if from == From::First { "ZRANGE" } else { "ZREVRANGE" };
        let named = self.guard_as(Kind::Read, |live| async move { live.caller.call(command, range).await });
        let Value::Array(named) = named.await? else {
            return Err(Error::protocol("the index of a user's sessions is no list"));
        };
        let named: Vec<String> = named.iter().filter_map(Value::as_string).collect();
        let mut lives = Vec::new();
        for page in named.chunks(PAGE) {
            let mut keys = vec![index.clone(), keys::generation(prefix, user)];
            keys.extend(page.iter().map(|digest| keys::session(prefix, digest)));
            let mut args = vec![Value::from(user), number(absolute_ms)];
            args.extend(page.iter().map(|digest| Value::from(digest.as_str())));
            let reply = self.run(Entry::SessionList, |entry| call(entry, &keys, args.clone())).await?;
            let Value::Array(found) = reply else {
                return Err(Error::protocol("the list of a user's sessions is no list"));
            };
            lives.extend(page.iter().zip(found).filter_map(|(digest, found)| listed(digest, found)));
            if lives.len() >= wanted {
                break;
            }
        }
        lives.truncate(wanted);
        Ok(lives)
    }
}

fn listed(digest: &str, found: Value) -> Option<Listed> {
    let Value::Array(parts) = found else { return None };
    let [created, touched, details, order] = <[Value; 4]>::try_from(parts).ok()?;
    Some(Listed {
        digest: digest.to_owned(),
        created_ms: created.as_u64()?,
        touched_ms: touched.as_u64()?,
        details: details.into_bytes().unwrap_or_default(),
        order: order.as_u64()?,
    })
}
