//! The one round trip at a request's first use of state.

use tower_sessions::session::Id;

use crate::counters::CounterName;
use crate::counters::commands::CounterIncrement;
use crate::http::error::{RedisFailure, RequestError, StateError};
use crate::http::request_state::state::{BeginFailure, RequestState, RequestStateInner};
use crate::limiter::pending::PendingDecision;
use crate::request_state::begin;
use crate::sessions::query::{SessionAccess, SessionLookup, SessionQuery};
use crate::{counters, redis};

/// Integers below this are exact in Lua, whose numbers are doubles.
const EXACT_INTEGER_MAX: u64 = 1 << 53;

impl RequestState {
    /// Decides the limits, if that was not done yet.
    pub(crate) async fn decide_limits(&self) -> Result<(), RequestError> {
        let mut inner = self.lock_unless_failed().await?;
        if !inner.limits.are_undecided() {
            return Ok(());
        }
        // A named path's handler most likely uses the session it is sent, and the call is made anyway. That makes none:
        // there may be no such page.
        let unread = inner.stored_session_id().filter(|_| inner.lookup.is_none());
        let session = unread.map(|id| self.session_query(&inner, id, SessionAccess::Read, false));
        match (self.send_begin(&mut inner, session.as_ref(), &[]).await, unread) {
            (Ok((reply, _)), Some(id)) if !reply.is_unconfirmed() => {
                self.record_lookup(&mut inner, id, reply).await
            }
            (Ok(_), _) => {}
            // The limits allow it; an extractor that needs the session gets what is known, or tries again.
            (Err(BeginFailure::RedisUnavailable(error)), unread) => {
                let known = Box::pin(self.session_without_redis(session.as_ref(), &error)).await;
                if let (Some((how, reply)), Some(id)) = (known, unread) {
                    inner.freshness = Some(how);
                    self.record_lookup(&mut inner, id, reply).await;
                }
            }
            (Err(failure), _) => return Err(inner.record_failure(failure)),
        }
        Ok(())
    }

    /// Adds to a counter; 0 only reads.
    pub(crate) async fn add_to_counter(&self, name: &CounterName, by: i64) -> Result<i64, RequestError> {
        let mut inner = self.lock_unless_failed().await?;
        let prefix = &self.services.prefix;
        if inner.limits.are_undecided() {
            // A handler that named the session uses it, and the call is made anyway.
            let read = |_: &Id| inner.session_accessed && inner.lookup.is_none();
            let unread = inner.stored_session_id().filter(read);
            let session = unread
                .map(|id| self.session_query(&inner, id, SessionAccess::Read, !self.creates_no_session));
            let added = &[name.increment(prefix, by)];
            let (reply, sums) = self.begin(&mut inner, session.as_ref(), added).await?;
            if let Some(id) = unread {
                self.record_lookup(&mut inner, id, reply).await;
            }
            match sums.first() {
                Some(sum) if sum.unsigned_abs() < EXACT_INTEGER_MAX => return Ok(*sum),
                // It was added, but so large a sum lost digits on its way through Lua: read it without.
                Some(_) => return Ok(counters::value(&self.services.redis, prefix, name).await?),
                None => {
                    return Err(RequestError::Redis(RedisFailure::unavailable(
                        "a request had to do without it",
                    )));
                }
            }
        }
        let counted = self.services.redis.add_to_counter(prefix, name, by).await;
        if let Err(counters::CounterError::Redis(error)) = &counted {
            inner.failure = Some(error.into());
        }
        Ok(counted?)
    }

    /// The visitor's session for the store; one that is not this request's any more is gone.
    pub(crate) async fn lookup_session(&self, id: Id) -> Result<SessionLookup, RequestError> {
        let mut inner = self.lock_unless_failed().await?;
        if inner.stored_session_id() != Some(id) {
            return Ok(if inner.came_with_rotated_id() {
                SessionLookup::Rotated
            } else {
                SessionLookup::Gone
            });
        }
        if inner.lookup.is_none() {
            let arg = self.session_query(&inner, id, SessionAccess::Read, !self.creates_no_session);
            let (reply, _) = self.begin(&mut inner, Some(&arg), &[]).await?;
            self.record_lookup(&mut inner, id, reply).await;
        }
        Ok(inner.lookup.clone().unwrap_or(SessionLookup::Gone))
    }

    /// One round trip; it carries the limits if they are not decided yet.
    async fn begin(
        &self,
        inner: &mut RequestStateInner,
        session: Option<&SessionQuery>,
        counters: &[CounterIncrement],
    ) -> Result<(SessionLookup, Vec<i64>), RequestError> {
        match self.send_begin(inner, session, counters).await {
            Ok(answer) => Ok(answer),
            Err(BeginFailure::RedisUnavailable(error)) => {
                // A counter has no stand-in: a number that is not exact is not shown.
                let session = session.filter(|_| counters.is_empty());
                match Box::pin(self.session_without_redis(session, &error)).await {
                    Some((how, session)) => {
                        inner.freshness = Some(how);
                        Ok((session, Vec::new()))
                    }
                    None => Err(inner.record_failure(BeginFailure::RedisUnavailable(error))),
                }
            }
            Err(failure) => Err(inner.record_failure(failure)),
        }
    }

    pub(crate) async fn send_begin(
        &self,
        inner: &mut RequestStateInner,
        session: Option<&SessionQuery>,
        counters: &[CounterIncrement],
    ) -> Result<(SessionLookup, Vec<i64>), BeginFailure> {
        let mut pending = self.check_limits(inner).await?;
        let limits = pending.as_ref().map_or(&[][..], PendingDecision::checks);
        if limits.is_empty() && session.is_none() && counters.is_empty() {
            // All of it was prefetched.
            if let Some(pending) = pending {
                self.grant(&mut inner.limits, pending, &[]);
            }
            return Ok((SessionLookup::NotRequested, Vec::new()));
        }
        let token = pending.as_ref().map_or("", PendingDecision::permit_name);
        let request = begin::BeginRequest { limits, session, counters, token };
        let mut answer = self.services.redis.begin(&request).await;
        // Ends at the latest when the request has waited as long as it may (`limiter/reclaim.rs`).
        while let (Ok(begin::BeginReply::Denied { limits: replies }), Some(undecided)) =
            (&answer, &mut pending)
            && inner.limits.needs_retry(undecided, replies).await
        {
            let (limits, token) = (undecided.checks(), undecided.permit_name());
            answer =
                self.services.redis.begin(&begin::BeginRequest { limits, token, session, counters }).await;
        }
        match (answer, pending) {
            (Ok(begin::BeginReply::Granted { limits, session: found, counters, now_ms }), pending) => {
                inner.now_ms = Some(now_ms).filter(|now_ms| *now_ms > 0).or(inner.now_ms);
                if let Some(pending) = pending {
                    self.grant(&mut inner.limits, pending, &limits);
                }
                if let Some(session) = session {
                    self.cache_session(session, &found);
                }
                Ok((found, counters))
            }
            (Ok(begin::BeginReply::Denied { limits }), Some(pending)) => {
                Err(self.deny(&mut inner.limits, pending, &limits))
            }
            // No limit was part of the call.
            (Ok(begin::BeginReply::Denied { .. }), None) => Err(BeginFailure::Rejected(
                StateError::Unavailable(RedisFailure::unavailable("a session was not read")),
            )),
            (Err(redis::RedisError::Overflow), _) => Err(BeginFailure::Overflow),
            // It is not away, and will never do it.
            (Err(error @ redis::RedisError::Unsupported { .. }), _) => {
                Err(BeginFailure::Rejected(StateError::from(&error)))
            }
            (Err(error), Some(pending)) => Err(self.fall_back(&mut inner.limits, pending, error)),
            (Err(error), None) => Err(BeginFailure::RedisUnavailable(error)),
        }
    }
}
