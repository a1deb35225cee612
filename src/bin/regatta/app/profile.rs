//! The session: the name that the visitor entered, and its sessions.
//!
//! Any visitor may enter any name here, so other sessions of a name may be strangers': the address is shown of the current
//! session only.

use std::time::SystemTime;

use askama::Template;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use regatta::Worker;
use regatta::session::{ActiveSession, AuthSession, Error};
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::app::assets;
use crate::app::auth::render_page;
use crate::app::content::{self, Accepts, RequestBody};

#[derive(Template)]
#[template(path = "me.html")]
struct ProfilePage<'a> {
    style: String,
    token: String,
    user: &'a str,
    pid: u32,
}

#[derive(Template)]
#[template(path = "sessions.html")]
struct SessionsPage<'a> {
    style: String,
    token: String,
    user: &'a str,
    sessions: Vec<SessionView>,
}

/// One session.
#[derive(Debug, Serialize)]
struct SessionView {
    handle: String,
    created: String,
    last_seen: String,
    #[serde(skip)]
    created_short: String,
    #[serde(skip)]
    last_seen_short: String,
    /// Of the current session alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    agent: String,
    current: bool,
}

pub(super) async fn me(session: AuthSession, worker: Worker, accepts: Accepts) -> Result<Response, Error> {
    let Some(user) = session.user_id() else { return not_logged_in(accepts) };
    Ok(match accepts {
        Accepts::Html => {
            let token = session.csrf_token().await?;
            let page = ProfilePage { style: assets::style_path(), token, user, pid: worker.pid() };
            render_page(&page, StatusCode::OK)
        }
        Accepts::Text => {
            ([(header::VARY, "Accept")], Json(json!({"user": user, "worker": worker.pid()}))).into_response()
        }
    })
}

/// A browser is redirected to the login page; other clients get 401.
fn not_logged_in(accepts: Accepts) -> Result<Response, Error> {
    match accepts {
        Accepts::Html => Ok(Redirect::to("/login").into_response()),
        Accepts::Text => Err(Error::NotLoggedIn),
    }
}

pub(super) async fn sessions(session: AuthSession, accepts: Accepts) -> Result<Response, Error> {
    let Some(user) = session.user_id() else { return not_logged_in(accepts) };
    let sessions: Vec<SessionView> = session.sessions().await?.into_iter().map(SessionView::from).collect();
    Ok(match accepts {
        Accepts::Html => {
            let token = session.csrf_token().await?;
            let page = SessionsPage { style: assets::style_path(), token, user, sessions };
            render_page(&page, StatusCode::OK)
        }
        Accepts::Text => {
            let body = Json(json!({"user": user, "sessions": sessions}));
            ([(header::VARY, "Accept")], body).into_response()
        }
    })
}

/// The session to end.
#[derive(Debug, Default, Deserialize)]
pub(super) struct SessionParam {
    id: Option<String>,
}

/// Ends the session that the query names, or all of them.
pub(super) async fn destroy(
    mut session: AuthSession,
    Query(SessionParam { id }): Query<SessionParam>,
) -> Result<Response, Error> {
    destroy_sessions(&mut session, id.as_deref()).await
}

/// Ends the session that the path names.
pub(super) async fn destroy_one(mut session: AuthSession, Path(id): Path<String>) -> Result<Response, Error> {
    destroy_sessions(&mut session, Some(&id)).await
}

async fn destroy_sessions(session: &mut AuthSession, id: Option<&str>) -> Result<Response, Error> {
    match id {
        None => session.logout_everywhere().await?,
        Some(id) => {
            if !session.revoke(id).await? {
                return Ok((StatusCode::NOT_FOUND, "you have no such session").into_response());
            }
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What the page's forms send: a form cannot send DELETE.
#[derive(Debug, Deserialize)]
pub(super) struct EndSessionParams {
    #[serde(default)]
    token: String,
    /// A session's handle, or `all`: handles are longer.
    #[serde(rename = "end")]
    session: String,
}

pub(super) async fn destroy_by_form(
    mut session: AuthSession,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    let RequestBody::Form(EndSessionParams { token, session: ended }) = RequestBody::read(request).await?
    else {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form, or DELETE").into_response());
    };
    if !content::has_valid_csrf_token(&session, &headers, &token).await {
        return Err((StatusCode::FORBIDDEN, content::CSRF_EXPIRED).into_response());
    }
    if session.user_id().is_none() {
        return Ok(Redirect::to("/login").into_response());
    }
    let destroyed = match ended.as_str() {
        "all" => session.logout_everywhere().await.map(|()| "/"),
        // A session that has ended meanwhile is no error.
        handle => session.revoke(handle).await.map(|_| "/me/sessions"),
    };
    destroyed.map(|next| Redirect::to(next).into_response()).map_err(IntoResponse::into_response)
}

impl From<ActiveSession> for SessionView {
    fn from(session: ActiveSession) -> Self {
        let (current, handle) = (session.is_current(), session.handle().to_owned());
        let agent = if session.user_agent().is_empty() { "unknown client" } else { session.user_agent() };
        let agent = agent.to_owned();
        let address = session.client_ip().filter(|_| current).map(|address| address.to_string());
        let (created, created_short) = format_time(session.created_at());
        let (last_seen, last_seen_short) = format_time(session.last_seen_at());
        Self { handle, created, last_seen, created_short, last_seen_short, address, agent, current }
    }
}

/// A time for programs and for people; both in UTC, because the visitor's time zone is unknown.
fn format_time(at: SystemTime) -> (String, String) {
    let at = OffsetDateTime::from(at).truncate_to_second();
    let short = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    (at.format(&Rfc3339).unwrap_or_default(), at.format(short).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_for_programs_and_for_people() {
        assert_eq!(
            format_time(SystemTime::UNIX_EPOCH + Duration::from_millis(1_763_694_494_123)),
            ("2025-11-21T03:08:14Z".to_owned(), "2025-11-21 03:08 UTC".to_owned())
        );
    }
}
