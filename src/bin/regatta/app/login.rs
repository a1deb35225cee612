//! Logging in and out: a demonstration, so any name is let in, and the page says so. An application of its own checks a
//! password, or what an identity provider says, before it calls [`Account::login`].

use std::time::Duration;

use askama::Template;
use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::Html;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use regatta::Account;
use regatta::Error;
use serde::Deserialize;
use serde_json::json;

use crate::app::assets;
use crate::app::forms;
use crate::app::forms::Sent;
use crate::app::forms::Token;
use crate::app::home::Wanted;

/// Longest name, letters.
const NAME_MAX: usize = 64;

/// How long "remember me" lasts, used or not.
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a login sends.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wish {
    name: String,
    #[serde(default)]
    token: String,
    /// Anything at all in a form means yes.
    #[serde(default)]
    remember: Remember,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Remember {
    Json(bool),
    Form(String),
    #[default]
    No,
}

impl Remember {
    fn is_wanted(&self) -> bool {
        match self {
            Self::Json(wanted) => *wanted,
            Self::Form(value) => !value.is_empty(),
            Self::No => false,
        }
    }
}

#[derive(Template)]
#[template(path = "login.html")]
struct Page<'a> {
    style: String,
    token: String,
    user: Option<&'a str>,
    name: &'a str,
    error: Option<&'a str>,
}

pub(super) async fn page(account: Account) -> Result<Response, Error> {
    form(&account, StatusCode::OK, "", None).await
}

async fn form(
    account: &Account,
    status: StatusCode,
    name: &str,
    error: Option<&str>,
) -> Result<Response, Error> {
    let token = account.form_token().await?;
    let page = Page { style: assets::style_path(), token, user: account.user(), name, error };
    Ok(rendered(&page, status))
}

/// A template as a response.
pub(super) fn rendered(page: &impl Template, status: StatusCode) -> Response {
    match page.render() {
        Ok(page) => (status, [(header::VARY, "Accept")], Html(page)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

pub(super) async fn login(
    mut account: Account,
    wanted: Wanted,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    let (wish, own) = match Sent::<Wish>::read(request).await? {
        Sent::Form(wish) => {
            let own = forms::is_own(&account, &headers, &wish.token).await;
            (wish, own)
        }
        Sent::Json(wish) => (wish, true),
        Sent::Nothing => (Wish::default(), true),
    };
    let name = wish.name.trim();
    let fault = match name.chars().count() {
        _ if !own => Some((StatusCode::FORBIDDEN, forms::EXPIRED)),
        0 => Some((StatusCode::BAD_REQUEST, "say a name")),
        length if length > NAME_MAX => Some((StatusCode::BAD_REQUEST, "a name has at most 64 letters")),
        _ => None,
    };
    if let Some((status, text)) = fault {
        return match wanted {
            Wanted::Document => form(&account, status, name, Some(text)).await.map_err(Error::into_response),
            Wanted::Line => Err((status, text).into_response()),
        };
    }
    enter(&mut account, name, wish.remember.is_wanted()).await.map_err(IntoResponse::into_response)?;
    Ok(match wanted {
        Wanted::Document => Redirect::to("/me").into_response(),
        Wanted::Line => Json(json!({"user": name})).into_response(),
    })
}

async fn enter(account: &mut Account, name: &str, remember: bool) -> Result<(), Error> {
    account.login(name).await?;
    if remember {
        account.remember(MONTH, MONTH).await?;
    }
    Ok(())
}

pub(super) async fn logout(
    mut account: Account,
    wanted: Wanted,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    if let Sent::Form(Token { token }) = Sent::read(request).await?
        && !forms::is_own(&account, &headers, &token).await
    {
        return Err((StatusCode::FORBIDDEN, forms::EXPIRED).into_response());
    }
    account.logout().await.map_err(IntoResponse::into_response)?;
    Ok(match wanted {
        Wanted::Document => Redirect::to("/").into_response(),
        Wanted::Line => StatusCode::NO_CONTENT.into_response(),
    })
}
