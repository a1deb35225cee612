//! The `Set-Cookie` by which a visitor gets, keeps or loses a session.

use http::HeaderValue;
use tower_sessions::session::Id;

use crate::http::request_state::state::{RequestState, RequestStateInner};
use crate::sessions::cookie::CookieKeyring;
use crate::sessions::services::SessionServices;
use crate::sessions::{LIFETIME_MAX, cookie};

/// A `Set-Cookie` that gives the visitor this session.
///
/// It lasts as long as a session can: what ends earlier, Redis ends, so the cookie need not be sent again and again.
/// To the browser a provisional cookie is like any other.
pub(crate) fn session_cookie(
    keyring: &CookieKeyring,
    state: &RequestState,
    inner: &RequestStateInner,
    id: Id,
) -> Option<HeaderValue> {
    let (sessions, secure) = (&state.services.sessions, state.secure);
    let name = sessions.cookie_names.get(secure);
    let value = match inner.provisional {
        Some(provisional) => keyring.sign_provisional(name, id, provisional),
        None => keyring.sign(name, id, inner.user),
    };
    let age = inner.cookie_age.unwrap_or_else(|| match inner.has_own_lifetime() {
        true => LIFETIME_MAX,
        false => sessions.settings.lifetimes.absolute,
    });
    HeaderValue::try_from(cookie::set_cookie(name, &value, secure, age)).ok()
}

/// A `Set-Cookie` that takes the session away.
pub(crate) fn removal_cookie(sessions: &SessionServices, secure: bool) -> Option<HeaderValue> {
    let name = sessions.cookie_names.get(secure);
    HeaderValue::try_from(cookie::removal_cookie(name, secure)).ok()
}
