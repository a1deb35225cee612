//! A cart in a session: every way in which a handler can use one, for its tests and to copy from.
//!
//! `cargo run --example cart`, then `curl -c jar -b jar -X POST localhost:3000/incr/cart` a few times.

use std::time::Duration;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use regatta::session::{AuthSession, PageView, Session, SessionFields};
use regatta::{Context, Error, Fleet};
use serde::Deserialize;
use serde_json::{Value, json};

fn main() -> std::process::ExitCode {
    Fleet::new(app).run()
}

async fn app(_: Context) -> Router {
    Router::new()
        .route("/get/{name}", get(value))
        .route("/count/{prefix}/{most}", get(count))
        .route("/set/{name}/{value}", post(set))
        .route("/fill/{name}/{bytes}", post(fill))
        .route("/incr/{name}", post(incr))
        .route("/push/{name}/{value}", post(push))
        .route("/login/{user}", post(login))
        .route("/both/{user}", post(both))
        .route("/remember/{seconds}", post(remember))
        .route("/me", get(me))
        .route("/account/{what}", post(account))
        .route("/session/{what}", post(session))
        .route("/visit/{steps}", get(visit))
}

/// How long a handler thinks before it answers, and whether it fails then.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Manner {
    slow_ms: u64,
    fail: bool,
}

impl Manner {
    async fn answer(&self, response: impl IntoResponse) -> Response {
        if self.fail { StatusCode::INTERNAL_SERVER_ERROR.into_response() } else { response.into_response() }
    }

    async fn think(&self) {
        tokio::time::sleep(Duration::from_millis(self.slow_ms)).await;
    }
}

async fn value(session: Session, Path(name): Path<String>) -> Result<Json<Value>, Error> {
    Ok(Json(session.get_value(&name).await?.unwrap_or(Value::Null)))
}

/// How many of `prefix0`, `prefix1`, … there are.
async fn count(session: Session, Path((prefix, most)): Path<(String, usize)>) -> Result<Json<Value>, Error> {
    let mut found = 0;
    for index in 0..most {
        found += usize::from(session.get_value(&format!("{prefix}{index}")).await?.is_some());
    }
    Ok(Json(json!(found)))
}

/// Reads the session, thinks, and changes a field: stored after the handler, this field alone.
async fn set(
    session: Session,
    Path((name, value)): Path<(String, String)>,
    Query(manner): Query<Manner>,
) -> Result<Response, Error> {
    session.get_value(&name).await?;
    manner.think().await;
    session.insert(&name, &value).await?;
    Ok(manner.answer(value).await)
}

async fn fill(session: Session, Path((name, bytes)): Path<(String, usize)>) -> Result<&'static str, Error> {
    session.insert(&name, "x".repeat(bytes)).await?;
    Ok("filled")
}

async fn incr(fields: SessionFields, Path(name): Path<String>) -> Result<Json<i64>, Error> {
    Ok(Json(fields.incr(&name, 1).await?))
}

async fn push(
    fields: SessionFields,
    Path((name, value)): Path<(String, u64)>,
) -> Result<Json<Vec<u64>>, Error> {
    let change = |list: Option<Vec<u64>>| {
        let mut list = list.unwrap_or_default();
        list.push(value);
        list
    };
    Ok(Json(fields.update(&name, change).await?))
}

async fn login(mut account: AuthSession, Path(user): Path<String>) -> Result<Response, Error> {
    account.login(&user).await?;
    Ok(Json(json!({"user": account.user_id()})).into_response())
}

/// A field through `Session`, one through `SessionFields`, and a login, in one request.
async fn both(
    session: Session,
    fields: SessionFields,
    mut account: AuthSession,
    Path(user): Path<String>,
) -> Result<Json<Value>, Error> {
    session.insert("session", &user).await?;
    let sum = fields.incr("fields", 1).await?;
    account.login(&user).await?;
    let again = fields.incr("fields", 1).await?;
    Ok(Json(json!([sum, again])))
}

async fn remember(account: AuthSession, Path(seconds): Path<u64>) -> Result<StatusCode, Error> {
    account.remember(Duration::from_secs(seconds), Duration::from_secs(seconds)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn me(account: AuthSession) -> Json<Value> {
    Json(json!({"user": account.user_id()}))
}

async fn account(
    session: Session,
    mut account: AuthSession,
    Path(what): Path<String>,
    Query(manner): Query<Manner>,
) -> Result<Response, Error> {
    match what.as_str() {
        "logout" => account.logout().await?,
        "regenerate" => account.cycle_id().await?,
        // More than a session may hold: refused, though the id is another one already.
        "regenerate-and-fill" => {
            account.cycle_id().await?;
            session.insert("huge", "x".repeat(17 * 1024)).await?;
        }
        "everywhere" => account.logout_everywhere().await?,
        "others" => account.logout_others().await?,
        _ => return Ok(StatusCode::NOT_FOUND.into_response()),
    }
    Ok(manner.answer(StatusCode::NO_CONTENT).await)
}

async fn session(
    session: Session,
    Path(what): Path<String>,
    Query(manner): Query<Manner>,
) -> Result<Response, Error> {
    match what.as_str() {
        "cycle" => session.cycle_id().await?,
        "flush" => session.flush().await?,
        "flush-and-begin" => {
            session.flush().await?;
            session.insert("fresh", true).await?;
        }
        _ => return Ok(StatusCode::NOT_FOUND.into_response()),
    }
    manner.think().await;
    Ok(manner.answer(StatusCode::NO_CONTENT).await)
}

/// What a page can do, in the order that the path names it; answered with the visitor's views, if one was counted.
async fn visit(
    session: Session,
    fields: SessionFields,
    account: AuthSession,
    Path(steps): Path<String>,
    mut parts: Parts,
) -> Result<Json<Option<u64>>, Error> {
    let mut views = None;
    for step in steps.split('-') {
        match step {
            "view" => views = Some(PageView::from_request_parts(&mut parts, &()).await?.count()),
            "form" => _ = account.csrf_token().await?,
            "data" => session.insert("cart", 1).await?,
            "sum" => _ = fields.incr("sum", 1).await?,
            _ => {}
        }
    }
    Ok(Json(views))
}
