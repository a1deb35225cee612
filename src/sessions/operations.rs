//! The calls about whole sessions: new ids, lifetimes, and their ends. Each is one step in Redis and one round trip.

use crate::redis::functions::ServerFunction;
use crate::redis::wire::{Value, call_args, number};
use crate::redis::{CallKind, RedisClient, RedisError, RedisTransport};
use crate::sessions::commands::{
    RotateOutcome, RotateSession, SESSION_DESTROYED, USER_SESSIONS_REVOKED, decode_outcome,
    provisional_ttl_ms,
};
use crate::sessions::{keys, plain as session_plain};

impl RedisClient {
    /// Gives a session another id, or creates one.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::Timeout`] it may have been done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn rotate_session(&self, request: &RotateSession<'_>) -> Result<RotateOutcome, RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Write, async |caller| {
                    session_plain::rotate_session(caller, request).await
                })
                .await;
        }
        let reply = self.call(ServerFunction::SessionRotate, |entry| request.encode(entry)).await?;
        let outcome = decode_outcome(&reply)?;
        // Workers must drop their copies: with the old id nothing may be read any more.
        if let (RotateOutcome::Done { .. }, Some(old)) = (&outcome, request.from.digest()) {
            self.publish_notification(SESSION_DESTROYED, old);
        }
        Ok(outcome)
    }

    /// Ends one session; with `only_of_user` only if it is this user's. Returns whether there was one.
    ///
    /// It works on a full server too. A young session leaves a mark that keeps a provisional id from creating it again.
    ///
    /// # Errors
    /// As [`RedisClient::rotate_session`].
    pub async fn destroy_session(
        &self,
        prefix: &str,
        digest: &str,
        user: Option<&str>,
        only_of_user: bool,
    ) -> Result<bool, RedisError> {
        let mut keys = vec![keys::session(prefix, digest)];
        if self.is_plain() && !only_of_user {
            return self
                .call_plain(CallKind::Delete, async |caller| {
                    session_plain::destroy_session(caller, &keys[0]).await
                })
                .await;
        }
        keys.extend(user.map(|user| keys::user_sessions(prefix, user)));
        let tag = user.filter(|_| only_of_user).unwrap_or_default();
        let args = [Value::from(digest), Value::from(tag), number(provisional_ttl_ms())];
        let reply =
            self.call(ServerFunction::SessionDestroy, |entry| call_args(entry, &keys, args.to_vec())).await?;
        let destroyed = reply.as_i64() == Some(1);
        self.publish_notification(SESSION_DESTROYED, digest);
        Ok(destroyed)
    }

    /// Logs a user out everywhere, except in the session `except`.
    ///
    /// # Errors
    /// As [`RedisClient::rotate_session`].
    pub async fn destroy_user_sessions(
        &self,
        prefix: &str,
        user: &str,
        except: Option<&str>,
        kept_ms: u64,
        absolute_ms: u64,
    ) -> Result<(), RedisError> {
        let mut keys = vec![keys::user_generation(prefix, user), keys::user_sessions(prefix, user)];
        keys.extend(except.map(|digest| keys::session(prefix, digest)));
        let args = [number(kept_ms), Value::from(except.unwrap_or_default()), number(absolute_ms)];
        self.call(ServerFunction::SessionDestroyAll, |entry| call_args(entry, &keys, args.to_vec())).await?;
        self.publish_notification(USER_SESSIONS_REVOKED, user);
        Ok(())
    }

    /// Gives a session its own lifetimes; returns whether it exists.
    ///
    /// # Errors
    /// As [`RedisClient::rotate_session`].
    pub async fn set_session_lifetimes(
        &self,
        prefix: &str,
        digest: &str,
        user: Option<&str>,
        idle_ms: u64,
        absolute_ms: u64,
    ) -> Result<bool, RedisError> {
        let mut keys = vec![keys::session(prefix, digest)];
        keys.extend(user.map(|user| keys::user_sessions(prefix, user)));
        let args = [Value::from(digest), number(idle_ms), number(absolute_ms), number(provisional_ttl_ms())];
        let reply = self
            .call(ServerFunction::SessionSetLifetimes, |entry| call_args(entry, &keys, args.to_vec()))
            .await?;
        Ok(reply.as_i64() == Some(1))
    }

    /// Quarantines the value of a session's key that is no session, for `kept_ms`; returns whether there was one.
    ///
    /// # Errors
    /// As [`RedisClient::rotate_session`].
    pub async fn quarantine_session(
        &self,
        prefix: &str,
        digest: &str,
        kept_ms: u64,
    ) -> Result<bool, RedisError> {
        let keys = [keys::session(prefix, digest), keys::quarantine(prefix, digest)];
        if self.is_plain() {
            let work = async |caller: &RedisTransport| {
                session_plain::quarantine_session(caller, &keys[0], &keys[1], kept_ms).await
            };
            return self.call_plain(CallKind::Write, work).await;
        }
        let reply = self
            .call(ServerFunction::SessionQuarantine, |entry| call_args(entry, &keys, vec![number(kept_ms)]))
            .await?;
        Ok(reply.as_i64() == Some(1))
    }
}
