//! Counters that all workers share: `GET` reads, `POST` adds.
//!
//! There are those in [`NAMES`] and no others: a counter is kept for ever, so a stranger who could make one could make as
//! many as fill Redis. An application of its own names its counters, too.
//!
//! What is asked stands in the query or in the body, a form or JSON:
//!
//! - `kind`: `exact` (if missing), `batched`, `bounded` or `unique`;
//! - `by`: how much to add, 1 if missing; to a bounded one it takes, or gives back if it is negative;
//! - `max` (bounded): how much there is; `token`: take or give back only once for it;
//! - `item` (unique): what was seen; `window`: `hour` or `day`, to count only what was seen in the present one.

use std::time::Duration;

use axum::Form;
use axum::Json;
use axum::body::Body;
use axum::extract::FromRequest;
use axum::extract::FromRequestParts;
use axum::extract::Path;
use axum::extract::Query;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use axum::response::Response;
use regatta::Counters;
use regatta::Error;
use regatta::Reading;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;

/// A counter as it is told; what its kind does not have is left out.
#[derive(Debug, Serialize)]
pub(super) struct Counter {
    name: String,
    kind: Kind,
    /// None if this worker has not heard of it yet and was not asked to find out.
    value: Option<i128>,
    /// How far the value may be behind, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    staleness_ms: Option<u128>,
    /// Whether it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    granted: Option<bool>,
    /// Whether it was seen for the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<bool>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    #[default]
    Exact,
    Batched,
    Bounded,
    Unique,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Window {
    Hour,
    Day,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Wish {
    kind: Option<Kind>,
    by: Option<i64>,
    max: Option<u64>,
    token: Option<String>,
    item: Option<String>,
    window: Option<Window>,
}

impl Counter {
    fn new(name: String, kind: Kind, value: impl Into<i128>) -> Self {
        Self { name, kind, value: Some(value.into()), staleness_ms: None, granted: None, new: None }
    }

    fn read(name: String, reading: Option<Reading>) -> Self {
        Self {
            value: reading.map(|reading| reading.value.into()),
            staleness_ms: reading.map(|reading| reading.staleness.as_millis()),
            ..Self::new(name, Kind::Batched, 0)
        }
    }
}

impl Wish {
    fn kind(&self) -> Kind {
        self.kind.unwrap_or_default()
    }

    fn unique(&self, counters: &Counters, name: &str) -> Result<regatta::Unique, Error> {
        let unique = counters.unique(name)?;
        Ok(match self.window {
            None => unique,
            Some(Window::Hour) => unique.per(Duration::from_secs(60 * 60)),
            Some(Window::Day) => unique.per(Duration::from_secs(24 * 60 * 60)),
        })
    }

    /// What the query says, and the body where the query says nothing.
    fn or(self, sent: Self) -> Self {
        Self {
            kind: self.kind.or(sent.kind),
            by: self.by.or(sent.by),
            max: self.max.or(sent.max),
            token: self.token.or(sent.token),
            item: self.item.or(sent.item),
            window: self.window.or(sent.window),
        }
    }
}

/// The counters that there are, of every kind.
const NAMES: [&str; 10] = ["bell", "hits", "hot", "laps", "mine", "orders", "seats", "shared", "steps", "x"];

/// The name of a counter that there is.
#[derive(Debug)]
pub(super) struct Known(String);

impl<S: Send + Sync> FromRequestParts<S> for Known {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        let Path(name) = name.map_err(IntoResponse::into_response)?;
        match NAMES.contains(&name.as_str()) {
            true => Ok(Self(name)),
            false => {
                let names = NAMES.join(", ");
                Err((StatusCode::NOT_FOUND, format!("there is no counter of this name; there are {names}"))
                    .into_response())
            }
        }
    }
}

pub(super) async fn list() -> Json<serde_json::Value> {
    Json(json!({"counters": NAMES}))
}

pub(super) async fn read(
    Known(name): Known,
    counters: Counters,
    Query(wish): Query<Wish>,
) -> Result<Json<Counter>, Error> {
    let kind = wish.kind();
    Ok(Json(match kind {
        Kind::Exact => Counter::new(name.clone(), kind, counters.value(&name).await?),
        Kind::Batched => {
            let reading = counters.batched(&name)?.value().await?;
            Counter::read(name, Some(reading))
        }
        Kind::Bounded => Counter::new(name.clone(), kind, counters.bounded(&name, 0)?.value().await?),
        Kind::Unique => Counter::new(name.clone(), kind, wish.unique(&counters, &name)?.value().await?),
    }))
}

pub(super) async fn add(
    Known(name): Known,
    counters: Counters,
    Query(asked): Query<Wish>,
    request: Request,
) -> Result<Response, Response> {
    // A query that says it all needs no body.
    let wish = match (asked.by, asked.kind) {
        (Some(_), None) => asked,
        _ => asked.or(sent(request).await?),
    };
    let counter = match wish.kind() {
        Kind::Exact => add_exact(&counters, name, &wish).await,
        Kind::Batched => add_batched(&counters, name, &wish).await,
        Kind::Bounded if wish.max.is_none() && wish.by.is_none_or(|by| by >= 0) => {
            return Err(missing("max, how much there is"));
        }
        Kind::Bounded => share(&counters, name, &wish).await,
        Kind::Unique => match &wish.item {
            None => return Err(missing("item, what was seen")),
            Some(item) => see(&counters, name, &wish, item).await,
        },
    };
    let counter = counter.map_err(IntoResponse::into_response)?;
    let status = if counter.granted == Some(false) { StatusCode::CONFLICT } else { StatusCode::OK };
    Ok((status, Json(counter)).into_response())
}

async fn add_exact(counters: &Counters, name: String, wish: &Wish) -> Result<Counter, Error> {
    let value = counters.add(&name, wish.by.unwrap_or(1)).await?;
    Ok(Counter::new(name, Kind::Exact, value))
}

/// Costs no command, so a worker that has not heard of the counter yet does not tell its value.
async fn add_batched(counters: &Counters, name: String, wish: &Wish) -> Result<Counter, Error> {
    let batched = counters.batched(&name)?;
    batched.add(wish.by.unwrap_or(1)).await?;
    Ok(Counter::read(name, batched.known()))
}

async fn share(counters: &Counters, name: String, wish: &Wish) -> Result<Counter, Error> {
    let by = wish.by.unwrap_or(1);
    let bounded = counters.bounded(&name, wish.max.unwrap_or(0))?;
    let count = by.unsigned_abs();
    let taken = match (by < 0, &wish.token) {
        (false, None) => bounded.take(count).await?,
        (false, Some(token)) => bounded.take_once(count, token).await?,
        (true, None) => bounded.give(count).await?,
        (true, Some(token)) => bounded.give_once(count, token).await?,
    };
    Ok(Counter { granted: Some(taken.granted), ..Counter::new(name, Kind::Bounded, taken.value) })
}

async fn see(counters: &Counters, name: String, wish: &Wish, item: &str) -> Result<Counter, Error> {
    let seen = wish.unique(counters, &name)?.see(item).await?;
    Ok(Counter { new: Some(seen.new), ..Counter::new(name, Kind::Unique, seen.value) })
}

fn missing(what: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("this kind of counter needs {what}")).into_response()
}

/// What a body says, which may be a form or JSON, or missing.
async fn sent(request: Request<Body>) -> Result<Wish, Response> {
    let kind =
        request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "" => Ok(Wish::default()),
        "application/json" => {
            let sent = Json::from_request(request, &()).await;
            sent.map(|Json(wish)| wish).map_err(IntoResponse::into_response)
        }
        "application/x-www-form-urlencoded" => {
            let sent = Form::from_request(request, &()).await;
            sent.map(|Form(wish)| wish).map_err(IntoResponse::into_response)
        }
        _ => {
            Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form or JSON, or by in the query")
                .into_response())
        }
    }
}
