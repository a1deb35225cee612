//! Counters that all workers share: `GET` reads, `POST` adds `by`, which is 1 unless the query or the body says more.

use axum::Form;
use axum::Json;
use axum::body::Body;
use axum::extract::FromRequest;
use axum::extract::Path;
use axum::extract::Query;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use regatta::Counters;
use regatta::Error;
use serde::Deserialize;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Counter {
    name: String,
    value: i64,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Amount {
    by: Option<i64>,
}

pub(super) async fn read(counters: Counters, Path(name): Path<String>) -> Result<Json<Counter>, Error> {
    let value = counters.value(&name).await?;
    Ok(Json(Counter { name, value }))
}

pub(super) async fn add(
    counters: Counters,
    Path(name): Path<String>,
    Query(Amount { by }): Query<Amount>,
    request: Request,
) -> Result<Json<Counter>, Response> {
    let by = match by {
        Some(by) => by,
        None => sent(request).await?.by.unwrap_or(1),
    };
    let value = counters.add(&name, by).await.map_err(IntoResponse::into_response)?;
    Ok(Json(Counter { name, value }))
}

/// The amount in a body, which may be a form or JSON, or missing.
async fn sent(request: Request<Body>) -> Result<Amount, Response> {
    let kind =
        request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "" => Ok(Amount::default()),
        "application/json" => {
            let sent = Json::from_request(request, &()).await;
            sent.map(|Json(amount)| amount).map_err(IntoResponse::into_response)
        }
        "application/x-www-form-urlencoded" => {
            let sent = Form::from_request(request, &()).await;
            sent.map(|Form(amount)| amount).map_err(IntoResponse::into_response)
        }
        _ => {
            Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form or JSON, or by in the query")
                .into_response())
        }
    }
}
