//! Logging in and out: a demonstration, so any name is accepted, and the page says so. A real application checks a
//! password, or asks an identity provider, before it calls [`AuthSession::login`].

use std::time::Duration;

use askama::Template;
use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use regatta::session::{AuthSession, Error};
use serde::Deserialize;
use serde_json::json;

use crate::app::assets;
use crate::app::content::{self, Accepts, CsrfField, RequestBody};

/// Longest name, characters.
const NAME_MAX: usize = 64;

/// How long "remember me" lasts, used or not.
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a login sends.
#[derive(Debug, Default, Deserialize)]
pub(super) struct LoginParams {
    name: String,
    #[serde(default)]
    token: String,
    /// In a form any value means yes.
    #[serde(default)]
    #[serde(rename = "remember")]
    remember_me: RememberMe,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum RememberMe {
    Json(bool),
    Form(String),
    #[default]
    No,
}

impl RememberMe {
    fn is_requested(&self) -> bool {
        match self {
            Self::Json(checked) => *checked,
            Self::Form(value) => !value.is_empty(),
            Self::No => false,
        }
    }
}

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage<'a> {
    style: String,
    token: String,
    user: Option<&'a str>,
    name: &'a str,
    error: Option<&'a str>,
}

pub(super) async fn page(session: AuthSession) -> Result<Response, Error> {
    form(&session, StatusCode::OK, "", None).await
}

async fn form(
    session: &AuthSession,
    status: StatusCode,
    name: &str,
    error: Option<&str>,
) -> Result<Response, Error> {
    let token = session.csrf_token().await?;
    let page = LoginPage { style: assets::style_path(), token, user: session.user_id(), name, error };
    Ok(render_page(&page, status))
}

/// A template as a response.
pub(super) fn render_page(page: &impl Template, status: StatusCode) -> Response {
    match page.render() {
        Ok(page) => (status, [(header::VARY, "Accept")], Html(page)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

pub(super) async fn login(
    mut session: AuthSession,
    accepts: Accepts,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    let (params, is_own_form) = match RequestBody::<LoginParams>::read(request).await? {
        RequestBody::Form(params) => {
            let is_own_form = content::has_valid_csrf_token(&session, &headers, &params.token).await;
            (params, is_own_form)
        }
        RequestBody::Json(params) => (params, true),
        RequestBody::Nothing => (LoginParams::default(), true),
    };
    let name = params.name.trim();
    let fault = match name.chars().count() {
        _ if !is_own_form => Some((StatusCode::FORBIDDEN, content::CSRF_EXPIRED)),
        0 => Some((StatusCode::BAD_REQUEST, "a name is required")),
        length if length > NAME_MAX => Some((StatusCode::BAD_REQUEST, "a name has at most 64 letters")),
        _ => None,
    };
    if let Some((status, text)) = fault {
        return match accepts {
            Accepts::Html => form(&session, status, name, Some(text)).await.map_err(Error::into_response),
            Accepts::Text => Err((status, text).into_response()),
        };
    }
    log_in(&mut session, name, params.remember_me.is_requested())
        .await
        .map_err(IntoResponse::into_response)?;
    Ok(match accepts {
        Accepts::Html => Redirect::to("/me").into_response(),
        Accepts::Text => Json(json!({"user": name})).into_response(),
    })
}

async fn log_in(session: &mut AuthSession, name: &str, remember_me: bool) -> Result<(), Error> {
    session.login(name).await?;
    if remember_me {
        session.remember(MONTH, MONTH).await?;
    }
    Ok(())
}

pub(super) async fn logout(
    mut session: AuthSession,
    accepts: Accepts,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    if let RequestBody::Form(CsrfField { token }) = RequestBody::read(request).await?
        && !content::has_valid_csrf_token(&session, &headers, &token).await
    {
        return Err((StatusCode::FORBIDDEN, content::CSRF_EXPIRED).into_response());
    }
    session.logout().await.map_err(IntoResponse::into_response)?;
    Ok(match accepts {
        Accepts::Html => Redirect::to("/").into_response(),
        Accepts::Text => StatusCode::NO_CONTENT.into_response(),
    })
}
