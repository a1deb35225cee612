//! The index of a user's sessions. It may name ended sessions, which every read removes.

use bytes::Bytes;

use crate::redis::functions::ServerFunction;
use crate::redis::wire::{Value, call_args, number};
use crate::redis::{CallKind, RedisClient, RedisError};
use crate::sessions::keys;

/// Entries that are read in one call.
const PAGE: usize = 256;
/// The last entry that one read covers: a longer index of an earlier release is cleaned by later reads.
const LAST_RANK: &str = "16383";

/// One of a user's sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionIndexEntry {
    /// Its hashed id.
    pub digest: String,
    /// When its user logged in, ms since 1970 by Redis's clock.
    pub created_ms: u64,
    /// When it was last used, ms since 1970; exact to a tenth of its idle lifetime.
    pub last_used_ms: u64,
    /// Details of the login, as stored.
    pub details: Bytes,
    /// Its position among the user's sessions, ordered by their end.
    pub order: u64,
}

/// From which end an index is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IndexEnd {
    First,
    Last,
}

impl RedisClient {
    /// A user's latest sessions, at most 256, the latest first.
    ///
    /// Two round trips, and two more for each 256 that have ended: the index is read first, because a call names every
    /// key it uses.
    ///
    /// # Errors
    /// As [`RedisClient::rotate_session`].
    pub async fn user_sessions(
        &self,
        prefix: &str,
        user: &str,
        absolute_ms: u64,
    ) -> Result<Vec<SessionIndexEntry>, RedisError> {
        self.live_sessions(prefix, user, absolute_ms, IndexEnd::Last, PAGE).await
    }

    /// Ends a user's surplus sessions, those that expire first; never the session `except`.
    ///
    /// Only live sessions count, whatever the index names.
    ///
    /// # Errors
    /// As [`RedisClient::rotate_session`].
    pub async fn destroy_surplus_sessions(
        &self,
        prefix: &str,
        user: &str,
        absolute_ms: u64,
        most: u64,
        except: &str,
    ) -> Result<(), RedisError> {
        let mut lives = self.live_sessions(prefix, user, absolute_ms, IndexEnd::First, usize::MAX).await?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let surplus = lives.len().saturating_sub(most);
        lives.sort_by_key(|session| session.order);
        for session in lives.iter().filter(|session| session.digest != except).take(surplus) {
            self.destroy_session(prefix, &session.digest, Some(user), true).await?;
        }
        Ok(())
    }

    /// Live sessions, at least as many as requested if they exist; ended ones are removed from the index.
    async fn live_sessions(
        &self,
        prefix: &str,
        user: &str,
        absolute_ms: u64,
        from: IndexEnd,
        at_least: usize,
    ) -> Result<Vec<SessionIndexEntry>, RedisError> {
        let index = keys::user_sessions(prefix, user);
        let range = [index.as_str(), "0", LAST_RANK];
        let command = if from == IndexEnd::First { "ZRANGE" } else { "ZREVRANGE" };
        let named =
            self.send(CallKind::Read, |active| async move { active.transport.call(command, range).await });
        let Value::Array(named) = named.await? else {
            return Err(RedisError::protocol("the index of a user's sessions is no list"));
        };
        let named: Vec<String> = named.iter().filter_map(Value::as_string).collect();
        let mut lives = Vec::new();
        for page in named.chunks(PAGE) {
            let mut keys = vec![index.clone(), keys::user_generation(prefix, user)];
            keys.extend(page.iter().map(|digest| keys::session(prefix, digest)));
            let mut args = vec![Value::from(user), number(absolute_ms)];
            args.extend(page.iter().map(|digest| Value::from(digest.as_str())));
            let reply =
                self.call(ServerFunction::SessionList, |entry| call_args(entry, &keys, args.clone())).await?;
            let Value::Array(found) = reply else {
                return Err(RedisError::protocol("the list of a user's sessions is no list"));
            };
            lives.extend(page.iter().zip(found).filter_map(|(digest, found)| decode_entry(digest, found)));
            if lives.len() >= at_least {
                break;
            }
        }
        lives.truncate(at_least);
        Ok(lives)
    }
}

fn decode_entry(digest: &str, found: Value) -> Option<SessionIndexEntry> {
    let Value::Array(parts) = found else { return None };
    let [created, touched, details, order] = <[Value; 4]>::try_from(parts).ok()?;
    Some(SessionIndexEntry {
        digest: digest.to_owned(),
        created_ms: created.as_u64()?,
        last_used_ms: touched.as_u64()?,
        details: details.into_bytes().unwrap_or_default(),
        order: order.as_u64()?,
    })
}
