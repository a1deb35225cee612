//! What a browser or a program sends to change something, and whether its own page sent it.
//!
//! Three things keep other sites from acting in a visitor's name: the cookie is `SameSite=Lax`; the browser says where
//! a request comes from, which is looked at for all routes that write, in one place (`writes` in `mod.rs`); and a form
//! carries a text that only this session's pages have.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Form, Json};
use regatta::AuthSession;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A body, by its media type.
#[derive(Debug)]
pub(super) enum RequestBody<T> {
    /// A form, which any site could have sent.
    Form(T),
    /// JSON, which browsers send to their own site only, unless that says otherwise.
    Json(T),
    /// Nothing.
    Nothing,
}

impl<T: DeserializeOwned> RequestBody<T> {
    pub(super) async fn read(request: Request<Body>) -> Result<Self, Response> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "" => Ok(Self::Nothing),
            "application/json" => match Json::from_request(request, &()).await {
                Ok(Json(sent)) => Ok(Self::Json(sent)),
                Err(error) => Err(error.into_response()),
            },
            "application/x-www-form-urlencoded" => match Form::from_request(request, &()).await {
                Ok(Form(sent)) => Ok(Self::Form(sent)),
                Err(error) => Err(error.into_response()),
            },
            _ => Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form or JSON").into_response()),
        }
    }
}

/// The hidden field of a form.
#[derive(Debug, Default, Deserialize)]
pub(super) struct CsrfField {
    #[serde(default)]
    pub(super) token: String,
}

/// Whether a form is from one of the session's own pages. Without any cookie there is no session that could be abused.
pub(super) async fn has_valid_csrf_token(account: &AuthSession, headers: &HeaderMap, token: &str) -> bool {
    !headers.contains_key(header::COOKIE) || account.verify_csrf_token(token).await
}

pub(super) const CSRF_EXPIRED: &str = "this form is too old or not from here; open its page again";
