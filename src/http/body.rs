//! Bounds on a request's body: its size, and how long it may pause.
//!
//! A body that breaks one ends with an error for whoever reads it, and is remembered, because most readers turn every
//! error into the same 400.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;
use http_body_util::LengthLimitError;
use http_body_util::Limited;
use tower_http::timeout::TimeoutBody;

use crate::config::schema::Http;
use crate::http::exchange::Exchange;
use crate::http::problem::Problem;

const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;

/// The body within its bounds.
pub(super) fn bound<B>(body: B, bounds: &Http, exchange: &Arc<Exchange>) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    // Most requests have none, and this allocates nothing.
    if body.is_end_stream() {
        return Body::empty();
    }
    let exchange = Arc::clone(exchange);
    let paused = TimeoutBody::new(bounds.body_timeout, body);
    Body::new(Limited::new(paused, bounds.body_limit).map_err(move |error| {
        if error.is::<LengthLimitError>() {
            exchange.body_fault.store(TOO_LARGE, Relaxed);
        } else if error.is::<tower_http::timeout::TimeoutError>() {
            exchange.body_fault.store(TOO_SLOW, Relaxed);
        }
        error
    }))
}

/// What a body that announces this many bytes gets at once.
pub(super) fn too_large(limit: usize) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a request body may have {limit} bytes"))
}

/// What was found wrong while the body was read.
pub(super) fn fault(fault: &AtomicU8, bounds: &Http) -> Option<Problem> {
    match fault.load(Relaxed) {
        TOO_LARGE => Some(too_large(bounds.body_limit)),
        TOO_SLOW => Some(Problem::new(StatusCode::REQUEST_TIMEOUT, "the request body paused for too long")),
        _ => None,
    }
}
