//! A text that only this session's pages have.

use std::fmt;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use tower_sessions::session::Id;

use crate::facade::error::Error;
use crate::facade::session::auth_session::AuthSession;
use crate::facade::session::error::Error as SessionError;
use crate::http::csrf;
use crate::sessions::cookie::CookieKeyring;

/// A text that only this session's pages have, for a hidden field of a form: no other site can send the form then.
///
/// It is another one in each request, and all of them are valid as long as the session keeps its id. A visitor without a
/// session gets the cookie for one, of which nothing is stored before it comes back.
///
/// ```
/// use axum::Form;
/// use axum::response::Html;
/// use regatta::session::{CsrfToken, Error};
///
/// #[derive(serde::Deserialize)]
/// struct Order {
///     token: String,
/// }
///
/// async fn page(token: CsrfToken) -> Html<String> {
///     Html(format!("<form method=post><input type=hidden name=token value='{token}'><button>Buy</button></form>"))
/// }
///
/// async fn order(token: CsrfToken, Form(order): Form<Order>) -> Result<&'static str, Error> {
///     token.verify(&order.token)?;
///     Ok("bought\n")
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(page).post(order));
/// ```
#[derive(Clone)]
pub struct CsrfToken {
    keyring: Arc<CookieKeyring>,
    id: Id,
    text: String,
}

impl CsrfToken {
    /// Checks that a form came from a page of this session. Costs no round trip.
    ///
    /// # Errors
    /// [`Error::Csrf`](SessionError::Csrf).
    pub fn verify(&self, text: &str) -> Result<(), SessionError> {
        if csrf::is_session_token(&self.keyring, self.id, text) { Ok(()) } else { Err(SessionError::Csrf) }
    }
}

impl fmt::Display for CsrfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for CsrfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the text, with which a form could be sent in the visitor's name.
        f.debug_struct("CsrfToken").finish_non_exhaustive()
    }
}

impl<S: Sync> FromRequestParts<S> for CsrfToken {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let session = AuthSession::from_request_parts(parts, state).await?;
        let (keyring, id) = session.form_signer().await?;
        let text = csrf::session_token(&keyring, id).ok_or_else(SessionError::random_source)?;
        Ok(Self { keyring, id, text })
    }
}
