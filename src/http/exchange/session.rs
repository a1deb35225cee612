//! The request's session: what is asked about it, and what the answer means for the visitor.

use tower_sessions::session::Id;

use crate::http::exchange::Begun;
use crate::http::exchange::Exchange;
use crate::http::exchange::Origin;
use crate::http::visitor::Visitor;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::redis::keys;

impl Exchange {
    /// What is asked of this session.
    pub(super) fn session_arg(&self, id: Id, mode: SessionMode, create: bool) -> SessionArg {
        let prefix = &self.core.config.redis.prefix;
        let key = match &self.visitor {
            Visitor::Known { id: known, digest, .. } if *known == id => keys::session(prefix, digest),
            _ => crate::session::key(prefix, id),
        };
        let lifetimes = &self.core.lifetimes;
        SessionArg {
            key,
            generation: None,
            mode,
            create,
            idle_ms: lifetimes.idle_ms(),
            absolute_ms: lifetimes.absolute_ms(),
        }
    }
}

impl Begun {
    /// Takes note of what was found.
    pub(super) fn found(&mut self, reply: SessionReply) {
        if !matches!(reply, SessionReply::Live { .. }) {
            self.current = None;
        }
        self.session = Some(reply);
    }

    /// Whether the response depends on who the visitor is.
    pub(in crate::http) fn used_session(&self) -> bool {
        self.session.is_some() || self.origin != Origin::Cookie
    }
}
