//! The visitor's cookie: which session a request names, and what is told to the browser afterwards.
//!
//! Guarantees that a name nobody signed is no name, and that a cookie is sent only when there is something new to say.

use http::HeaderMap;
use http::HeaderValue;
use http::header::COOKIE;
use tower_sessions::session::Id;

use crate::config::schema::Secure;
use crate::http::exchange::Begun;
use crate::http::exchange::Exchange;
use crate::http::identity::Client;
use crate::http::identity::Transport;
use crate::http::state::Core;
use crate::session;
use crate::session::LIFETIME_MAX;
use crate::session::cookie;
use crate::session::cookie::Keyring;
use crate::session::user::UserTag;

/// Who sent the cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Visitor {
    /// The signing keys are not known yet, so nobody can be told from anybody.
    Unverifiable,
    /// No genuine cookie.
    Anonymous,
    /// We once gave this visitor a session.
    Known {
        /// The session's id.
        id: Id,
        /// Its hash, by which Redis and limits know it.
        digest: String,
        /// Who logged in with it, if anybody.
        user: Option<UserTag>,
        /// Signed with an old key or under the other name: signed anew when the session is used.
        renew: bool,
    },
}

impl Visitor {
    /// Reads the request's cookies. Under TLS the plain name is accepted too, for visitors from before TLS; without
    /// TLS only the plain one, because browsers never send a `__Host-` cookie there.
    pub(super) fn read(core: &Core, headers: &HeaderMap, secure: bool) -> Self {
        let Some(keyring) = core.keyring() else { return Self::Unverifiable };
        if !headers.contains_key(COOKIE) {
            return Self::Anonymous;
        }
        let cookies = || headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
        let known = |visitor: cookie::Visitor, renew: bool| Self::Known {
            id: visitor.id,
            digest: session::digest(visitor.id),
            user: visitor.user,
            renew,
        };
        let right = if secure { &core.cookies.secure } else { &core.cookies.plain };
        if let Some(visitor) = keyring.read(cookies(), right) {
            return known(visitor, visitor.renew);
        }
        if secure
            && core.config.session.secure == Secure::Auto
            && let Some(visitor) = keyring.read(cookies(), &core.cookies.plain)
        {
            return known(visitor, true);
        }
        Self::Anonymous
    }

    pub(super) fn id(&self) -> Option<Id> {
        match self {
            Self::Known { id, .. } => Some(*id),
            Self::Unverifiable | Self::Anonymous => None,
        }
    }

    /// The user who logged in with the session, as limits know him.
    pub(super) fn user(&self) -> Option<UserTag> {
        match self {
            Self::Known { user, .. } => *user,
            Self::Unverifiable | Self::Anonymous => None,
        }
    }

    pub(super) fn digest(&self) -> Option<&str> {
        match self {
            Self::Known { digest, .. } => Some(digest),
            Self::Unverifiable | Self::Anonymous => None,
        }
    }
}

/// Whether this client's cookie is a secure one.
pub(super) fn is_secure(core: &Core, client: &Client) -> bool {
    match core.config.session.secure {
        Secure::Auto => client.transport == Transport::Tls,
        Secure::Always => true,
        Secure::Never => false,
    }
}

/// A `Set-Cookie` that gives the visitor this session.
///
/// It lasts as long as a session can: what ends earlier, Redis ends, so the cookie need not be sent again and again.
pub(super) fn give(keyring: &Keyring, exchange: &Exchange, begun: &Begun, id: Id) -> Option<HeaderValue> {
    let (core, secure) = (&exchange.core, exchange.secure);
    let name = if secure { &core.cookies.secure } else { &core.cookies.plain };
    let value = keyring.sign(name, id, begun.user);
    let age = begun.cookie_age.unwrap_or_else(|| match begun.lives_on_its_own() {
        true => LIFETIME_MAX,
        false => core.lifetimes.absolute,
    });
    HeaderValue::try_from(cookie::set_cookie(name, &value, secure, age)).ok()
}

/// A `Set-Cookie` that takes the session away.
pub(super) fn take(core: &Core, secure: bool) -> Option<HeaderValue> {
    let name = if secure { &core.cookies.secure } else { &core.cookies.plain };
    HeaderValue::try_from(cookie::removal_cookie(name, secure)).ok()
}
