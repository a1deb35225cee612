//! CPU work on request, off the event loop: counts the primes below `n`.

use std::time::Instant;

use axum::Json;
use axum::extract::{Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use regatta::FleetHandle;
use serde::{Deserialize, Serialize};

use crate::app::cpu;

/// Some hundredths of a second of work.
const DEFAULT: u32 = 200_000;

/// Half a second of work: what one request may cost others.
const MAX: u32 = 2_000_000;

#[derive(Deserialize)]
pub(super) struct HeavyParams {
    n: Option<u32>,
}

#[derive(Serialize)]
struct HeavyResult {
    worker: u32,
    n: u32,
    result: u32,
    elapsed_ms: u64,
}

pub(super) async fn heavy(
    Shared(state): Shared<FleetHandle>,
    Query(HeavyParams { n }): Query<HeavyParams>,
) -> Response {
    let n = n.unwrap_or(DEFAULT);
    if n > MAX {
        return (StatusCode::BAD_REQUEST, format!("n is {n}; allowed: 0 to {MAX}")).into_response();
    }
    let started = Instant::now();
    match state.spawn_blocking(move || cpu::primes_in(0..n)).await {
        Ok(result) => {
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            Json(HeavyResult { worker: state.worker().pid(), n, result, elapsed_ms }).into_response()
        }
        Err(error) => regatta::RequestError::from(error).into_response(),
    }
}
