//! Bounds on a request's body: its size, and how long it may pause; and what a response's body holds until it is sent.
//!
//! A body that breaks one ends with an error for whoever reads it, and is remembered, because most readers turn every
//! error into the same 400.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;
use http_body_util::LengthLimitError;
use http_body_util::Limited;
use tokio::time::Instant;
use tokio::time::Sleep;
use tokio::time::sleep;

use crate::config::schema::Http;
use crate::http::exchange::Exchange;
use crate::http::pace::Pace;
use crate::http::problem::Problem;
use crate::limiter::place::Place;

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
    let pace = Pace::new(bounds.body_min_rate, bounds.body_timeout);
    let paced = Paced { body: Box::pin(body), pace, waiting: None, exchange: Arc::clone(&exchange) };
    Body::new(Limited::new(paced, bounds.body_limit).map_err(move |error| {
        if error.is::<LengthLimitError>() {
            exchange.body_fault.store(TOO_LARGE, Relaxed);
        } else if error.is::<TooSlow>() {
            exchange.body_fault.store(TOO_SLOW, Relaxed);
        }
        error
    }))
}

/// A body that its client sends too slowly ends with this.
#[derive(Debug, thiserror::Error)]
#[error("the request body came too slowly")]
struct TooSlow;

/// A body that must keep its pace.
struct Paced<B> {
    body: Pin<Box<B>>,
    pace: Pace,
    /// Since when the next piece is waited for, and until when.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    exchange: Arc<Exchange>,
}

impl<B> http_body::Body for Paced<B>
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
            this.exchange.body_waits.store(false, Relaxed);
            let bytes =
                frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            this.pace.came(bytes, waited);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        this.exchange.body_waits.store(true, Relaxed);
        let (_, until) =
            this.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(this.pace.patience()))));
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

/// What a body that announces this many bytes gets at once.
pub(super) fn too_large(limit: usize) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a request body may have {limit} bytes"))
}

/// What was found wrong while the body was read.
pub(super) fn fault(fault: &AtomicU8, bounds: &Http) -> Option<Problem> {
    match fault.load(Relaxed) {
        TOO_LARGE => Some(too_large(bounds.body_limit)),
        TOO_SLOW => Some(Problem::new(StatusCode::REQUEST_TIMEOUT, "the request body came too slowly")),
        _ => None,
    }
}

/// What a request holds that goes on after its response, among the response's extensions: a WebSocket.
#[derive(Debug, Clone, Default)]
pub(super) struct Lasting(Arc<Mutex<Vec<Place>>>);

/// A response that keeps the request's places in concurrency limits until its body was sent or given up, or until
/// whatever goes on after it has ended.
pub(super) fn keep(mut response: Response, places: Vec<Place>) -> Response {
    if let Some(lasting) = response.extensions_mut().remove::<Lasting>() {
        lasting.0.lock().unwrap_or_else(PoisonError::into_inner).extend(places);
        return response;
    }
    if places.is_empty() {
        return response;
    }
    response.map(|body| Body::new(Keeping { body, _places: places }))
}

struct Keeping {
    body: Body,
    _places: Vec<Place>,
}

impl http_body::Body for Keeping {
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
