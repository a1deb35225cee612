//! Bounds on a request's body: its size, and how long it may pause; and what a response's body holds until it is sent.
//!
//! A body that exceeds one ends with an error for its reader, and the request records which: most readers turn every error
//! into the same 400.

use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::{Instant, Sleep, sleep};

use crate::config::settings::HttpConfig;
use crate::http::body_pace::BodyPace;
use crate::http::problem::Problem;
use crate::http::request_state::RequestState;
use crate::limiter::permit::ConcurrencyPermit;

const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;

/// Bounds a body's size and pace.
pub(crate) fn limit_body<B>(body: B, bounds: &HttpConfig, state: &Arc<RequestState>) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    // Most requests have none, and this allocates nothing.
    if body.is_end_stream() {
        return Body::empty();
    }
    let state = Arc::clone(state);
    let pace = BodyPace::new(bounds.min_body_rate, bounds.body_timeout);
    let paced = PacedBody { body: Box::pin(body), pace, waiting: None, state: Arc::clone(&state) };
    Body::new(Limited::new(paced, bounds.max_body_size).map_err(move |error| {
        if error.is::<LengthLimitError>() {
            state.body_fault.store(TOO_LARGE, Relaxed);
        } else if error.is::<TooSlow>() {
            state.body_fault.store(TOO_SLOW, Relaxed);
        }
        error
    }))
}

/// The error of a body that its client sends too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the request body came too slowly")]
struct TooSlow;

/// A body with a lowest pace.
struct PacedBody<B> {
    body: Pin<Box<B>>,
    pace: BodyPace,
    /// Since when the next piece is waited for, and until when.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    state: Arc<RequestState>,
}

impl<B> http_body::Body for PacedBody<B>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = this.body.as_mut().poll_frame(context) {
            let waited = this.waiting.take().map(|(since, _)| since.elapsed()).unwrap_or_default();
            this.state.body_waits.store(false, Relaxed);
            let bytes =
                frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            this.pace.record_received(bytes, waited);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        this.state.body_waits.store(true, Relaxed);
        let (_, until) =
            this.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(this.pace.wait_allowed()))));
        match until.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(TooSlow.into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The response to a body that announces too many bytes.
pub(crate) fn too_large(limit: usize) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a request body may have {limit} bytes"))
}

/// Which bound the body exceeded while it was read.
pub(crate) fn body_error(fault: &AtomicU8, bounds: &HttpConfig) -> Option<Problem> {
    match fault.load(Relaxed) {
        TOO_LARGE => Some(too_large(bounds.max_body_size)),
        TOO_SLOW => Some(Problem::new(StatusCode::REQUEST_TIMEOUT, "the request body came too slowly")),
        _ => None,
    }
}

/// The permits of a request that goes on after its response, among the response's extensions: a WebSocket.
#[derive(Debug, Clone, Default)]
pub(super) struct UpgradePermits(Arc<Mutex<Vec<ConcurrencyPermit>>>);

/// Has a response hold the request's concurrency permits until its body was sent or dropped, or until the upgraded
/// connection that follows it has ended.
pub(crate) fn hold_permits(response: &mut Response, permits: Vec<ConcurrencyPermit>) {
    if permits.is_empty() {
        return;
    }
    if let Some(permits_of_upgrade) = response.extensions_mut().remove::<UpgradePermits>() {
        permits_of_upgrade.0.lock().unwrap_or_else(PoisonError::into_inner).extend(permits);
        return;
    }
    hold_permits_in_body(response.body_mut(), permits);
}

/// Has a body hold the request's concurrency permits until it was sent or dropped.
pub(crate) fn hold_permits_in_body(body: &mut Body, permits: Vec<ConcurrencyPermit>) {
    *body = Body::new(PermitBody { body: std::mem::take(body), _permits: permits });
}

struct PermitBody {
    body: Body,
    _permits: Vec<ConcurrencyPermit>,
}

impl http_body::Body for PermitBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
