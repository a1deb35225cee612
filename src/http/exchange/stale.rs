//! What a request is told of its session when Redis cannot do all it was asked.
//!
//! Guarantees that nothing is made, counted or taken away meanwhile: a visitor sees the last that is known, marked as
//! such, or a 503.

use std::sync::PoisonError;

use http::HeaderValue;
use http::Method;
use tower_sessions::session::Id;

use crate::http::exchange::Exchange;
use crate::http::visitor::Visitor;
use crate::redis;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::session::last_known::Moment;
use crate::sys::time;

/// How a session that could not be used as usual was come by; the response's `Session-State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Degraded {
    /// Redis is there and takes no writes: what is shown is true, and nothing was counted.
    ReadOnly,
    /// Redis is away: what is shown is the last this worker knows.
    Stale,
}

impl Degraded {
    pub(in crate::http) fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::ReadOnly => "read-only",
            Self::Stale => "stale",
        })
    }
}

/// Whether a method only looks (RFC 9110 §9.2.1).
pub(super) fn only_looks(method: &Method) -> bool {
    method.is_safe()
}

impl Exchange {
    /// Takes note of what Redis said.
    pub(super) fn remember(&self, session: &SessionArg, reply: &SessionReply, total: Option<i64>) {
        let Some(id) = self.id_of(session) else { return };
        let mut known = self.core.last_known.lock().unwrap_or_else(PoisonError::into_inner);
        known.note(id, reply, self.core.uptime());
        if let Some(total) = total.filter(|_| session.mode == SessionMode::Visit) {
            known.note_total(total);
        }
    }

    /// The session is changed, or may be: what is known of it is not true any more.
    pub(in crate::http) fn forget(&self, id: Id) {
        self.core.last_known.lock().unwrap_or_else(PoisonError::into_inner).forget(id);
    }

    /// The session of the visitor's cookie, and what there is in place of the counters; none if there is nothing to
    /// be shown.
    ///
    /// A server that only refuses writes is read, whatever the method: what writes fails by itself, and logging out
    /// need not. The last known session is for methods that only look.
    pub(super) async fn in_place_of_begin(
        &self,
        session: Option<&SessionArg>,
        counters: usize,
        error: &redis::Error,
    ) -> Option<(Degraded, SessionReply, Vec<i64>)> {
        let session = session.filter(|session| !session.create)?;
        let id = self.id_of(session)?;
        if session.mode == SessionMode::Visit && !self.only_looks {
            return None;
        }
        let (how, reply) = match error.is_about_writes() {
            true => (Degraded::ReadOnly, self.core.redis.peek(session).await.ok()),
            false => (Degraded::Stale, None),
        };
        let (how, reply) = match reply {
            Some(reply) => (how, reply),
            None if self.only_looks => (Degraded::Stale, self.recall(id)?),
            None => return None,
        };
        let total = self.core.last_known.lock().unwrap_or_else(PoisonError::into_inner).total();
        Some((how, reply, vec![total; counters]))
    }

    fn recall(&self, id: Id) -> Option<SessionReply> {
        let now = self.core.uptime();
        let heard_at = now.saturating_sub(self.core.redis.silent_for()?);
        let unix_ms = u64::try_from(time::unix().as_millis()).unwrap_or(u64::MAX);
        let mut known = self.core.last_known.lock().unwrap_or_else(PoisonError::into_inner);
        known.recall(id, &self.core.lifetimes, Moment { now, heard_at, unix_ms })
    }

    /// The id of the visitor's cookie, if this is about its session.
    fn id_of(&self, session: &SessionArg) -> Option<Id> {
        match &self.visitor {
            Visitor::Known { id, digest, .. } if session.key.ends_with(digest.as_str()) => Some(*id),
            _ => None,
        }
    }
}
