//! Logging in and out: a demonstration, so any name is let in, and the page says so. An application of its own checks a
//! password, or what an identity provider says, before it calls [`Account::login`].

use std::time::Duration;

use askama::Template;
use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use regatta::{AuthSession, RequestError};
use serde::Deserialize;
use serde_json::json;

use crate::app::content::{CsrfField, RequestBody};
use crate::app::home::Accepts;
use crate::app::{assets, content};

/// Longest name, letters.
const NAME_MAX: usize = 64;

/// How long "remember me" lasts, used or not.
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a login sends.
#[derive(Debug, Default, Deserialize)]
pub(super) struct LoginParams {
    name: String,
    #[serde(default)]
    token: String,
    /// Anything at all in a form means yes.
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

pub(super) async fn page(account: AuthSession) -> Result<Response, RequestError> {
    form(&account, StatusCode::OK, "", None).await
}

async fn form(
    account: &AuthSession,
    status: StatusCode,
    name: &str,
    error: Option<&str>,
) -> Result<Response, RequestError> {
    let token = account.csrf_token().await?;
    let page = LoginPage { style: assets::style_path(), token, user: account.user_id(), name, error };
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
    mut account: AuthSession,
    accepts: Accepts,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    let (params, own) = match RequestBody::<LoginParams>::read(request).await? {
        RequestBody::Form(params) => {
            let own = content::has_valid_csrf_token(&account, &headers, &params.token).await;
            (params, own)
        }
        RequestBody::Json(params) => (params, true),
        RequestBody::Nothing => (LoginParams::default(), true),
    };
    let name = params.name.trim();
    let fault = match name.chars().count() {
        _ if !own => Some((StatusCode::FORBIDDEN, content::CSRF_EXPIRED)),
        0 => Some((StatusCode::BAD_REQUEST, "say a name")),
        length if length > NAME_MAX => Some((StatusCode::BAD_REQUEST, "a name has at most 64 letters")),
        _ => None,
    };
    if let Some((status, text)) = fault {
        return match accepts {
            Accepts::Html => {
                form(&account, status, name, Some(text)).await.map_err(RequestError::into_response)
            }
            Accepts::Text => Err((status, text).into_response()),
        };
    }
    log_in(&mut account, name, params.remember_me.is_requested())
        .await
        .map_err(IntoResponse::into_response)?;
    Ok(match accepts {
        Accepts::Html => Redirect::to("/me").into_response(),
        Accepts::Text => Json(json!({"user": name})).into_response(),
    })
}

async fn log_in(account: &mut AuthSession, name: &str, remember_me: bool) -> Result<(), RequestError> {
    account.login(name).await?;
    if remember_me {
        account.remember(MONTH, MONTH).await?;
    }
    Ok(())
}

pub(super) async fn logout(
    mut account: AuthSession,
    accepts: Accepts,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    if let RequestBody::Form(CsrfField { token }) = RequestBody::read(request).await?
        && !content::has_valid_csrf_token(&account, &headers, &token).await
    {
        return Err((StatusCode::FORBIDDEN, content::CSRF_EXPIRED).into_response());
    }
    account.logout().await.map_err(IntoResponse::into_response)?;
    Ok(match accepts {
        Accepts::Html => Redirect::to("/").into_response(),
        Accepts::Text => StatusCode::NO_CONTENT.into_response(),
    })
}
