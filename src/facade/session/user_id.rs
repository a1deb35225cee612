//! The user who is logged in, as an argument of a handler.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;

use crate::facade::error::Error;
use crate::facade::session::auth_session::AuthSession;
use crate::facade::session::error::Error as SessionError;

/// The user who is logged in, by the id that [`AuthSession::login`] was given; 401 for others, and `Option<UserId>` turns
/// away none.
///
/// Costs what [`AuthSession`] costs.
///
/// ```
/// use regatta::session::UserId;
///
/// async fn me(UserId(name): UserId) -> String {
///     format!("You are {name}\n")
/// }
///
/// async fn home(user: Option<UserId>) -> String {
///     user.map_or_else(|| "Ahoy\n".to_owned(), |UserId(name)| format!("Ahoy {name}\n"))
/// }
/// # let _: axum::Router = axum::Router::new()
/// #     .route("/me", axum::routing::get(me)).route("/", axum::routing::get(home));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserId(pub String);

impl<S: Sync> FromRequestParts<S> for UserId {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let user = <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state).await?;
        user.ok_or_else(|| SessionError::NotLoggedIn.into())
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for UserId {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, Error> {
        let session = AuthSession::from_request_parts(parts, state).await?;
        Ok(session.user_id().map(|user| Self(user.to_owned())))
    }
}
