//! Counters that all workers share: `GET` reads, `POST` adds.
//!
//! There are those in [`NAMES`] and no others: a counter is stored for ever, so a client that could create counters could
//! fill Redis. A real application names its counters, too.
//!
//! Parameters are in the query or in the body, a form or JSON:
//!
//! - `kind`: `exact` (if missing), `batched`, `bounded` or `distinct` (also `unique`);
//! - `by`: how much to add, 1 if missing; of a bounded one it takes, or gives back if it is negative;
//! - `max` (bounded): the stock; `token`: take or give back only once for it;
//! - `item` (distinct): what is inserted; `window`: `hour` or `day`, to count only the items of the current one.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Form, Json};
use regatta::counter::{Approximate, Counters, DistinctCounter, Error};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A counter; what its kind does not have is left out.
#[derive(Debug, Serialize)]
pub(super) struct CounterView {
    name: String,
    kind: CounterKind,
    /// `None` if this worker does not know it yet: adding to a batched counter reads nothing.
    value: Option<i128>,
    /// How old the value may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    staleness_seconds: Option<f64>,
    /// Whether it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    granted: Option<bool>,
    /// Whether the item was inserted for the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<bool>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CounterKind {
    #[default]
    Exact,
    Batched,
    Bounded,
    #[serde(alias = "unique")]
    Distinct,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CounterWindow {
    Hour,
    Day,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct CounterParams {
    kind: Option<CounterKind>,
    by: Option<i64>,
    max: Option<u64>,
    token: Option<String>,
    item: Option<String>,
    window: Option<CounterWindow>,
}

impl CounterView {
    fn new(name: String, kind: CounterKind, value: impl Into<i128>) -> Self {
        Self { name, kind, value: Some(value.into()), staleness_seconds: None, granted: None, new: None }
    }

    fn read(name: String, reading: Option<Approximate>) -> Self {
        Self {
            value: reading.map(|reading| reading.value().into()),
            staleness_seconds: reading.map(|reading| reading.staleness().as_secs_f64()),
            ..Self::new(name, CounterKind::Batched, 0)
        }
    }
}

impl CounterParams {
    fn kind(&self) -> CounterKind {
        self.kind.unwrap_or_default()
    }

    fn distinct(&self, counters: &Counters, name: &str) -> DistinctCounter {
        let distinct = counters.distinct(name);
        match self.window {
            None => distinct,
            Some(CounterWindow::Hour) => distinct.per(Duration::from_secs(60 * 60)),
            Some(CounterWindow::Day) => distinct.per(Duration::from_secs(24 * 60 * 60)),
        }
    }

    /// The query's parameters, and the body's where the query has none.
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

/// The names of the counters, for every kind.
const NAMES: [&str; 10] = ["bell", "hits", "hot", "laps", "mine", "orders", "seats", "shared", "steps", "x"];

/// The name of an existing counter.
#[derive(Debug)]
pub(super) struct KnownCounter(String);

impl<S: Send + Sync> FromRequestParts<S> for KnownCounter {
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
    KnownCounter(name): KnownCounter,
    counters: Counters,
    Query(params): Query<CounterParams>,
) -> Result<Json<CounterView>, Error> {
    let kind = params.kind();
    Ok(Json(match kind {
        CounterKind::Exact => CounterView::new(name.clone(), kind, counters.get(&name).await?),
        CounterKind::Batched => {
            let reading = counters.batched(&name).value().await?;
            CounterView::read(name, Some(reading))
        }
        CounterKind::Bounded => CounterView::new(name.clone(), kind, counters.bounded(&name, 0).get().await?),
        CounterKind::Distinct => {
            CounterView::new(name.clone(), kind, params.distinct(&counters, &name).count().await?)
        }
    }))
}

pub(super) async fn add(
    KnownCounter(name): KnownCounter,
    counters: Counters,
    Query(query): Query<CounterParams>,
    request: Request,
) -> Result<Response, Response> {
    // A query with an amount and no kind needs no body.
    let params = match (query.by, query.kind) {
        (Some(_), None) => query,
        _ => query.or(read_body(request).await?),
    };
    let counter = match params.kind() {
        CounterKind::Exact => add_exact(&counters, name, &params).await,
        CounterKind::Batched => add_batched(&counters, name, &params).await,
        CounterKind::Bounded if params.max.is_none() && params.by.is_none_or(|by| by >= 0) => {
            return Err(missing("max, the stock"));
        }
        CounterKind::Bounded => change_bounded(&counters, name, &params).await,
        CounterKind::Distinct => match &params.item {
            None => return Err(missing("item, what is inserted")),
            Some(item) => insert_distinct(&counters, name, &params, item).await,
        },
    };
    let counter = counter.map_err(IntoResponse::into_response)?;
    let status = if counter.granted == Some(false) { StatusCode::CONFLICT } else { StatusCode::OK };
    Ok((status, Json(counter)).into_response())
}

async fn add_exact(counters: &Counters, name: String, params: &CounterParams) -> Result<CounterView, Error> {
    let value = counters.add(&name, params.by.unwrap_or(1)).await?;
    Ok(CounterView::new(name, CounterKind::Exact, value))
}

/// Costs no round trip, so a worker that does not know the counter yet returns no value.
async fn add_batched(
    counters: &Counters,
    name: String,
    params: &CounterParams,
) -> Result<CounterView, Error> {
    let batched = counters.batched(&name);
    batched.add(params.by.unwrap_or(1)).await?;
    Ok(CounterView::read(name, batched.known()))
}

async fn change_bounded(
    counters: &Counters,
    name: String,
    params: &CounterParams,
) -> Result<CounterView, Error> {
    let by = params.by.unwrap_or(1);
    let bounded = counters.bounded(&name, params.max.unwrap_or(0));
    let count = by.unsigned_abs();
    let taken = match (by < 0, &params.token) {
        (false, None) => bounded.try_take(count).await?,
        (false, Some(token)) => bounded.take_once(count, token).await?,
        (true, None) => bounded.give_back(count).await?,
        (true, Some(token)) => bounded.give_back_once(count, token).await?,
    };
    Ok(CounterView {
        granted: Some(taken.is_granted()),
        ..CounterView::new(name, CounterKind::Bounded, taken.value())
    })
}

async fn insert_distinct(
    counters: &Counters,
    name: String,
    params: &CounterParams,
    item: &str,
) -> Result<CounterView, Error> {
    let inserted = params.distinct(counters, &name).insert(item).await?;
    Ok(CounterView {
        new: Some(inserted.is_new()),
        ..CounterView::new(name, CounterKind::Distinct, inserted.count())
    })
}

fn missing(what: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("this kind of counter needs {what}")).into_response()
}

/// The parameters of a body: a form, JSON, or none.
async fn read_body(request: Request<Body>) -> Result<CounterParams, Response> {
    let kind =
        request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "" => Ok(CounterParams::default()),
        "application/json" => {
            let sent = Json::from_request(request, &()).await;
            sent.map(|Json(params)| params).map_err(IntoResponse::into_response)
        }
        "application/x-www-form-urlencoded" => {
            let sent = Form::from_request(request, &()).await;
            sent.map(|Form(params)| params).map_err(IntoResponse::into_response)
        }
        _ => {
            Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form or JSON, or by in the query")
                .into_response())
        }
    }
}
