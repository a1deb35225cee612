//! The session that a request's cookies name.
//!
//! Guarantees that a cookie without a genuine signature names none.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use tower_sessions::session::Id;

use crate::config::settings::CookieSecurity;
use crate::http::real_ip::{ClientInfo, ClientTransport};
use crate::http::request_head::has_header;
use crate::sessions::cookie_search;
use crate::sessions::cookie_value::{ProvisionalCookie, VerifiedCookie};
use crate::sessions::digest::SessionDigest;
use crate::sessions::services::SessionServices;
use crate::sessions::user::UserTag;
use crate::sessions::verified_cookie_cache::RecognizedCookie;

/// The visitor, as the cookies identify them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CookieIdentity {
    /// The signing keys are not known yet, so no cookie can be verified.
    Unverifiable,
    /// More cookies of our name than are checked; treated as anonymous, the visitor would get a new session each time.
    TooManyCookies,
    /// No genuine cookie.
    Anonymous,
    /// A genuine cookie.
    Verified {
        /// The session's id.
        id: Id,
        /// Its hash, by which Redis and limits know it.
        digest: SessionDigest,
        /// The user who logged in with it, if one did.
        user: Option<UserTag>,
        /// Signed with an old key: signed anew when the session is used.
        re_sign: bool,
        /// Set if its session may not be stored yet.
        provisional: Option<ProvisionalCookie>,
        /// It came over TLS under the name for plain connections: it may have been overheard there, so its session gets
        /// another id when it is used.
        exposed: bool,
    },
}

/// What a request's cookies name.
#[derive(Debug)]
pub(crate) struct RequestCookies {
    pub(crate) visitor: CookieIdentity,
    /// Whether the cookie that this client is to have is a secure one.
    pub(crate) secure: bool,
    /// Whether there is a genuine one under the plain name beside the secure one that counts.
    pub(crate) leftover: bool,
}

impl RequestCookies {
    /// Reads a request's cookies.
    ///
    /// The secure one counts first: browsers never send a `__Host-` cookie without TLS, so where one comes over a
    /// connection that is said to be plain, it is not. Over TLS the plain one is accepted too, for visitors from before
    /// TLS, and is replaced. With `secure = always` the plain one is never read, with `never` the secure one.
    pub(crate) fn from_headers(sessions: &SessionServices, headers: &HeaderMap, client: &ClientInfo) -> Self {
        let (rule, tls) = (sessions.cookie_security, client.transport == ClientTransport::Tls);
        let secure = rule == CookieSecurity::Always || rule == CookieSecurity::Auto && tls;
        let of = |visitor, secure, leftover| Self { visitor, secure, leftover };
        let Some(keyring) = sessions.signing_keys.keyring() else {
            return of(CookieIdentity::Unverifiable, secure, false);
        };
        if !has_header(headers, &COOKIE) {
            return of(CookieIdentity::Anonymous, secure, false);
        }
        let named = |name, not_by: CookieSecurity| (rule != not_by).then_some(name);
        let names = [
            named(sessions.cookie_names.secure.as_str(), CookieSecurity::Never),
            named(sessions.cookie_names.plain.as_str(), CookieSecurity::Always),
        ];
        let lines = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
        let [hosts, plain] = cookie_search::find_session_cookies(&keyring, lines, names);
        match (hosts, plain) {
            (Ok(Some(known)), plain) => {
                of(CookieIdentity::from_recognized(known, false), true, matches!(plain, Ok(Some(_))))
            }
            (Ok(None), Ok(Some(known))) => of(CookieIdentity::from_recognized(known, secure), secure, false),
            (Ok(None), Ok(None)) => of(CookieIdentity::Anonymous, secure, false),
            (Err(_), _) | (_, Err(_)) => of(CookieIdentity::TooManyCookies, secure, false),
        }
    }
}

impl CookieIdentity {
    fn from_recognized(
        RecognizedCookie { cookie: visitor, digest }: RecognizedCookie,
        exposed: bool,
    ) -> Self {
        let VerifiedCookie { id, user, re_sign: renew, provisional } = visitor;
        Self::Verified { id, digest, user, re_sign: renew, provisional, exposed }
    }

    pub(crate) fn id(&self) -> Option<Id> {
        match self {
            Self::Verified { id, .. } => Some(*id),
            Self::Unverifiable | Self::TooManyCookies | Self::Anonymous => None,
        }
    }

    /// The user who logged in with the session, as limits identify users.
    pub(crate) fn user(&self) -> Option<UserTag> {
        match self {
            Self::Verified { user, .. } => *user,
            Self::Unverifiable | Self::TooManyCookies | Self::Anonymous => None,
        }
    }

    pub(crate) fn digest(&self) -> Option<&str> {
        match self {
            Self::Verified { digest, .. } => Some(digest),
            Self::Unverifiable | Self::TooManyCookies | Self::Anonymous => None,
        }
    }

    /// The digest of a session that is stored. A provisional cookie names none: a client that collects such cookies would
    /// otherwise count as many clients.
    pub(crate) fn confirmed_digest(&self) -> Option<&str> {
        match self {
            Self::Verified { digest, provisional: None, .. } => Some(digest),
            _ => None,
        }
    }

    /// Its contents, if it is provisional.
    pub(crate) fn provisional(&self) -> Option<ProvisionalCookie> {
        match self {
            Self::Verified { provisional, .. } => *provisional,
            _ => None,
        }
    }

    /// Whether its session gets another id when it is used.
    pub(crate) fn is_exposed(&self) -> bool {
        matches!(self, Self::Verified { exposed: true, .. })
    }
}
