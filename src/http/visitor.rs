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
use crate::http::head::has;
use crate::http::identity::Client;
use crate::http::identity::Transport;
use crate::http::state::Core;
use crate::session::LIFETIME_MAX;
use crate::session::cookie;
use crate::session::cookie::Keyring;
use crate::session::cookie::Ticket;
use crate::session::cookie_header;
use crate::session::digest::Digest;
use crate::session::memo::Known;
use crate::session::user::UserTag;

/// Who sent the cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Visitor {
    /// The signing keys are not known yet, so nobody can be told from anybody.
    Unverifiable,
    /// Among so many cookies of our name that not all are checked; a stranger would get a new session each time.
    TooManyCookies,
    /// No genuine cookie.
    Anonymous,
    /// We once gave this visitor a cookie.
    Known {
        /// The session's id.
        id: Id,
        /// Its hash, by which Redis and limits know it.
        digest: Digest,
        /// Who logged in with it, if anybody.
        user: Option<UserTag>,
        /// Signed with an old key: signed anew when the session is used.
        renew: bool,
        /// It is a ticket: its session may not be made yet.
        ticket: Option<Ticket>,
        /// It came over TLS under the name for plain connections: it may have been overheard there, so its session gets
        /// another id when it is used.
        exposed: bool,
    },
}

/// What a request's cookies say.
#[derive(Debug)]
pub(super) struct Cookies {
    pub(super) visitor: Visitor,
    /// Whether the cookie that this client is to have is a secure one.
    pub(super) secure: bool,
    /// Whether there is a genuine one under the plain name beside the secure one that counts.
    pub(super) leftover: bool,
}

impl Cookies {
    /// Reads a request's cookies.
    ///
    /// The secure one counts first: browsers never send a `__Host-` cookie without TLS, so where one comes over a
    /// connection that is said to be plain, it is not. Over TLS the plain one is accepted too, for visitors from before
    /// TLS, and is replaced. With `secure = always` the plain one is never read, with `never` the secure one.
    pub(super) fn read(core: &Core, headers: &HeaderMap, client: &Client) -> Self {
        let (rule, tls) = (core.config.session.secure, client.transport == Transport::Tls);
        let secure = rule == Secure::Always || rule == Secure::Auto && tls;
        let of = |visitor, secure, leftover| Self { visitor, secure, leftover };
        let Some(keyring) = core.keyring() else { return of(Visitor::Unverifiable, secure, false) };
        if !has(headers, &COOKIE) {
            return of(Visitor::Anonymous, secure, false);
        }
        let named = |name, not_by: Secure| (rule != not_by).then_some(name);
        let names = [
            named(core.cookies.secure.as_str(), Secure::Never),
            named(core.cookies.plain.as_str(), Secure::Always),
        ];
        let lines = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
        let [hosts, plain] = cookie_header::read(&keyring, lines, names);
        match (hosts, plain) {
            (Ok(Some(known)), plain) => of(Visitor::known(known, false), true, matches!(plain, Ok(Some(_)))),
            (Ok(None), Ok(Some(known))) => of(Visitor::known(known, secure), secure, false),
            (Ok(None), Ok(None)) => of(Visitor::Anonymous, secure, false),
            (Err(_), _) | (_, Err(_)) => of(Visitor::TooManyCookies, secure, false),
        }
    }
}

impl Visitor {
    fn known(Known { visitor, digest }: Known, exposed: bool) -> Self {
        let cookie::Visitor { id, user, renew, ticket } = visitor;
        Self::Known { id, digest, user, renew, ticket, exposed }
    }

    pub(super) fn id(&self) -> Option<Id> {
        match self {
            Self::Known { id, .. } => Some(*id),
            Self::Unverifiable | Self::TooManyCookies | Self::Anonymous => None,
        }
    }

    /// The user who logged in with the session, as limits know him.
    pub(super) fn user(&self) -> Option<UserTag> {
        match self {
            Self::Known { user, .. } => *user,
            Self::Unverifiable | Self::TooManyCookies | Self::Anonymous => None,
        }
    }

    pub(super) fn digest(&self) -> Option<&str> {
        match self {
            Self::Known { digest, .. } => Some(digest),
            Self::Unverifiable | Self::TooManyCookies | Self::Anonymous => None,
        }
    }

    /// The digest of a session that was made. A ticket names none: a client that collects tickets would otherwise count
    /// as many.
    pub(super) fn confirmed(&self) -> Option<&str> {
        match self {
            Self::Known { digest, ticket: None, .. } => Some(digest),
            _ => None,
        }
    }

    /// Its ticket, if it is one.
    pub(super) fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Known { ticket, .. } => *ticket,
            _ => None,
        }
    }

    /// Whether its session gets another id when it is used.
    pub(super) fn is_exposed(&self) -> bool {
        matches!(self, Self::Known { exposed: true, .. })
    }
}

/// A `Set-Cookie` that gives the visitor this session.
///
/// It lasts as long as a session can: what ends earlier, Redis ends, so the cookie need not be sent again and again.
/// A ticket is a session's cookie like any other to the browser.
pub(super) fn give(keyring: &Keyring, exchange: &Exchange, begun: &Begun, id: Id) -> Option<HeaderValue> {
    let (core, secure) = (&exchange.core, exchange.secure);
    let name = if secure { &core.cookies.secure } else { &core.cookies.plain };
    let value = match begun.ticket {
        Some(ticket) => keyring.sign_ticket(name, id, ticket),
        None => keyring.sign(name, id, begun.user),
    };
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
