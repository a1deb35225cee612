//! The name that the visitor entered, and where else it is logged in.
//!
//! In a demonstration every visitor may enter any name, so other sessions of a name may be strangers': no address is told but
//! that of the session itself.

use askama::Template;
use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::Query;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use regatta::Account;
use regatta::Error;
use regatta::ListedSession;
use regatta::Worker;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::app::assets;
use crate::app::forms;
use crate::app::forms::Sent;
use crate::app::home::Wanted;
use crate::app::login::rendered;

#[derive(Template)]
#[template(path = "me.html")]
struct Me<'a> {
    style: String,
    token: String,
    user: &'a str,
    pid: u32,
}

#[derive(Template)]
#[template(path = "sessions.html")]
struct Sessions<'a> {
    style: String,
    token: String,
    user: &'a str,
    sessions: Vec<Shown>,
}

/// One session as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    handle: String,
    created: String,
    last_seen: String,
    #[serde(skip)]
    created_short: String,
    #[serde(skip)]
    last_seen_short: String,
    /// Of this session alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    agent: String,
    current: bool,
}

pub(super) async fn me(account: Account, worker: Worker, wanted: Wanted) -> Result<Response, Error> {
    let Some(user) = account.user() else { return strangers(wanted) };
    Ok(match wanted {
        Wanted::Document => {
            let token = account.form_token().await?;
            let page = Me { style: assets::style_path(), token, user, pid: worker.pid() };
            rendered(&page, StatusCode::OK)
        }
        Wanted::Line => {
            ([(header::VARY, "Accept")], Json(json!({"user": user, "worker": worker.pid()}))).into_response()
        }
    })
}

/// A visitor who is not logged in is sent to the login page, and a program is answered 401.
fn strangers(wanted: Wanted) -> Result<Response, Error> {
    match wanted {
        Wanted::Document => Ok(Redirect::to("/login").into_response()),
        Wanted::Line => Err(Error::LoggedOut),
    }
}

pub(super) async fn sessions(account: Account, wanted: Wanted) -> Result<Response, Error> {
    let Some(user) = account.user() else { return strangers(wanted) };
    let sessions: Vec<Shown> = account.sessions().await?.into_iter().map(Shown::from).collect();
    Ok(match wanted {
        Wanted::Document => {
            let token = account.form_token().await?;
            let page = Sessions { style: assets::style_path(), token, user, sessions };
            rendered(&page, StatusCode::OK)
        }
        Wanted::Line => {
            let body = Json(json!({"user": user, "sessions": sessions}));
            ([(header::VARY, "Accept")], body).into_response()
        }
    })
}

/// Which session is to end.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Which {
    id: Option<String>,
}

/// Ends the session that the query names, or all of them.
pub(super) async fn end(mut account: Account, Query(Which { id }): Query<Which>) -> Result<Response, Error> {
    finish(&mut account, id.as_deref()).await
}

/// Ends the session that the path names.
pub(super) async fn end_one(mut account: Account, Path(id): Path<String>) -> Result<Response, Error> {
    finish(&mut account, Some(&id)).await
}

async fn finish(account: &mut Account, id: Option<&str>) -> Result<Response, Error> {
    match id {
        None => account.logout_everywhere().await?,
        Some(id) => {
            if !account.revoke(id).await? {
                return Ok((StatusCode::NOT_FOUND, "you have no such session").into_response());
            }
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What the page's forms send, because a form cannot send DELETE.
#[derive(Debug, Deserialize)]
pub(super) struct Ending {
    #[serde(default)]
    token: String,
    /// A session's handle, or `all`, which is none: handles are longer.
    end: String,
}

pub(super) async fn end_form(
    mut account: Account,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    let Sent::Form(Ending { token, end }) = Sent::read(request).await? else {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form, or DELETE").into_response());
    };
    if !forms::is_own(&account, &headers, &token).await {
        return Err((StatusCode::FORBIDDEN, forms::EXPIRED).into_response());
    }
    if account.user().is_none() {
        return Ok(Redirect::to("/login").into_response());
    }
    let ended = match end.as_str() {
        "all" => account.logout_everywhere().await.map(|()| "/"),
        // One that ended by itself meanwhile is what was wanted.
        handle => account.revoke(handle).await.map(|_| "/me/sessions"),
    };
    ended.map(|next| Redirect::to(next).into_response()).map_err(IntoResponse::into_response)
}

impl From<ListedSession> for Shown {
    fn from(session: ListedSession) -> Self {
        let ListedSession { handle, created_ms, last_seen_ms, address, agent, current } = session;
        let agent = if agent.is_empty() { "something without a name".to_owned() } else { agent };
        let address = current.then_some(address);
        let (created, created_short) = written(created_ms);
        let (last_seen, last_seen_short) = written(last_seen_ms);
        Self { handle, created, last_seen, created_short, last_seen_short, address, agent, current }
    }
}

/// A time for programs and for people; both in UTC, because no one said where the visitor is.
fn written(at_ms: u64) -> (String, String) {
    let seconds = i64::try_from(at_ms / 1000).unwrap_or(i64::MAX);
    let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let short = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    (at.format(&Rfc3339).unwrap_or_default(), at.format(short).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_for_programs_and_for_people() {
        assert_eq!(
            written(1_763_694_494_123),
            ("2025-11-21T03:08:14Z".to_owned(), "2025-11-21 03:08 UTC".to_owned())
        );
    }
}
