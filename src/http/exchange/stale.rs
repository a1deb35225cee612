//! What a request is told of its session when Redis cannot do all it was asked.
//!
//! Guarantees that nothing is made, counted or taken away meanwhile, and that no number stands in for one that was not
//! counted: a visitor sees the session's data as last known, marked as such, or a 503.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use http::HeaderValue;
use http::Method;
use tower_sessions::session::Id;

use crate::http::exchange::Begun;
use crate::http::exchange::Exchange;
use crate::redis;
use crate::redis::Redis;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::redis::news::Listener;
use crate::redis::sessions::ENDED;
use crate::redis::sessions::ENDED_ALL;
use crate::session;
use crate::session::last_known::LastKnown;
use crate::session::last_known::Moment;
use crate::sys::time;

/// How a session that could not be used as usual was come by; the response's `Session-State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Degraded {
    /// Redis is there and takes no writes: what is shown is true, and nothing was counted.
    ReadOnly,
    /// Redis is away: what is shown is the last this worker knows.
    Stale,
    /// Redis is away, and this worker knows nothing of the session: the page shows none of it.
    Unknown,
}

impl Degraded {
    pub(in crate::http) fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::ReadOnly => "read-only",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        })
    }
}

/// Whether a method only looks (RFC 9110 §9.2.1).
pub(super) fn only_looks(method: &Method) -> bool {
    method.is_safe()
}

impl Exchange {
    /// Takes note of what Redis said.
    pub(super) fn remember(&self, session: &SessionArg, reply: &SessionReply) {
        let Some(digest) = self.digest_of(session) else { return };
        if reply.user().is_some() && !self.core.hears_of_ends.swap(true, Relaxed) {
            hear_of_ends(&self.core.redis, &self.core.last_known);
        }
        let unix_ms = u64::try_from(time::unix().as_millis()).unwrap_or(u64::MAX);
        self.known().note(digest, reply, self.core.uptime(), unix_ms);
    }

    /// A view could not be counted: takes note of what is known of its session, without a number.
    pub(super) async fn uncounted(&self, begun: &mut Begun, error: &redis::Error) {
        if begun.degraded.is_some() {
            return;
        }
        let unread = begun.stored().filter(|_| begun.session.is_none());
        let session = unread.map(|id| self.session_arg(begun, id, SessionMode::Read, false));
        match (self.in_place_of_begin(session.as_ref(), error).await, unread) {
            (Some((how, reply)), Some(id)) => {
                begun.degraded = Some(how);
                self.found(begun, id, reply).await;
            }
            _ => begun.degraded = Some(Degraded::Unknown),
        }
    }

    /// The session is changed, or may be: what is known of it is not true any more.
    pub(in crate::http) fn forget(&self, id: Id) {
        self.known().forget(&session::digest(id));
    }

    /// The session of the visitor's cookie; none if there is nothing to be shown.
    ///
    /// A server that only refuses writes is read, whatever the method: what writes fails by itself, and logging out
    /// need not. The last known session is for methods that only look.
    pub(super) async fn in_place_of_begin(
        &self,
        session: Option<&SessionArg>,
        error: &redis::Error,
    ) -> Option<(Degraded, SessionReply)> {
        let session = session?;
        let digest = self.digest_of(session)?;
        // A server that was just silent is not asked again; one that is away or held back refuses at once.
        let peeked = match error {
            redis::Error::Timeout | redis::Error::Lost { .. } => None,
            _ => self.core.redis.peek(session).await.ok(),
        };
        match peeked {
            // A ticket is good for its session later on.
            Some(SessionReply::Gone) if session.ticket.is_some() => {
                Some((Degraded::ReadOnly, SessionReply::Ticket))
            }
            Some(reply) => Some((Degraded::ReadOnly, reply)),
            None if self.only_looks => Some((Degraded::Stale, self.recall(digest)?)),
            None => None,
        }
    }

    fn recall(&self, digest: &str) -> Option<SessionReply> {
        let now = self.core.uptime();
        let heard_at = now.saturating_sub(self.core.redis.silent_for()?);
        self.known().recall(digest, &self.core.lifetimes, Moment { now, heard_at })
    }

    /// The hashed id of the visitor's cookie, if this is about its session.
    fn digest_of(&self, session: &SessionArg) -> Option<&str> {
        self.visitor.digest().filter(|digest| session.key.ends_with(digest))
    }

    fn known(&self) -> MutexGuard<'_, LastKnown> {
        self.core.last_known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From now on copies are dropped when their sessions end on other workers. Not before somebody is logged in here:
/// it takes a connection, and what nobody logs in to is not logged out of.
fn hear_of_ends(redis: &Redis, known: &Arc<Mutex<LastKnown>>) {
    let listener = |act: fn(&mut LastKnown, &str)| -> Listener {
        let known = Arc::clone(known);
        Arc::new(move |whose: &str| act(&mut known.lock().unwrap_or_else(PoisonError::into_inner), whose))
    };
    redis.listen(ENDED, listener(LastKnown::forget));
    redis.listen(ENDED_ALL, listener(LastKnown::forget_user));
}
