//! Any response of server-sent events, as a worker sends it: it goes on until its source ends, its client disconnects, or
//! its worker drains.
//!
//! The first bytes say when to connect again should the connection break. At least a comment follows every keep-alive
//! interval: without it the client, proxies and the worker would not notice a broken connection. A draining worker sends
//! each client another `retry` and ends the response between two events; with one time for all, the successor would get
//! them all at once.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Error;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep_until};

use crate::http::drain_state::DrainState;
use crate::http::error::RequestError;
use crate::http::header_names::X_ACCEL_BUFFERING;
use crate::http::services::worker::WorkerContext;
use crate::http::streams::event_position::EventPosition;
use crate::http::streams::on_drain::{OnDrain, until_leaving};
use crate::http::streams::worker_streams::{StreamPlace, WorkerStreams};
use crate::sse::{KEEP_ALIVE, SseEvent};
use crate::sys::random;

/// When a client connects again whose connection broke, milliseconds.
const RETRY_AFTER_DISCONNECT_MS: std::ops::RangeInclusive<u64> = 500..=1500;

/// When a client connects again whose worker drains, milliseconds: its successor serves already.
const RETRY_AFTER_DRAIN_MS: std::ops::RangeInclusive<u64> = 50..=1000;

/// How long the rest of an event may take once the worker drains. A client forgets an event that is not complete.
const EVENT_GRACE: Duration = Duration::from_secs(2);

const EVENT_STREAM: &str = "text/event-stream";

/// A mark that a text may begin with, and that means nothing anywhere else.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Sends a stream's keep-alive at once, which shows whether its client is still connected.
///
/// One of the extensions of a stream's response, for the worker's side of the connection.
#[derive(Debug, Clone, Default)]
pub struct KeepAliveTrigger(Arc<Notify>);

impl KeepAliveTrigger {
    /// Sends it.
    pub fn send_now(&self) {
        self.0.notify_one();
    }

    /// Whether the stream goes on.
    pub fn is_stream_open(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// What the pieces of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Whole events.
    Events,
    /// Text that may be cut anywhere.
    Text,
    /// Encoded, so that nothing can be inserted and no event's end is seen.
    Opaque,
}

/// How a stream is kept and ended.
pub(crate) struct StreamOptions {
    pub(crate) framing: Framing,
    pub(crate) drain: DrainState,
    pub(crate) on_drain: OnDrain,
    pub(crate) keep_alive_interval: Duration,
    /// Held until the response has ended; none where something else bounds the streams.
    pub(crate) place: Option<StreamPlace>,
}

/// A handler's response; one of server-sent events without an end of its own becomes a stream of its worker, 503 while
/// there is no place for it.
///
/// Any other response is looked at for its body's length alone.
pub(crate) fn adopt(response: Response, worker: &WorkerContext) -> Response {
    if response.body().size_hint().exact().is_some() || !is_unadopted(&response) {
        return response;
    }
    match worker.streams.take_place() {
        Some(place) => adopt_stream(response, place, &worker.streams),
        None => RequestError::TooManySubscribers.into_response(),
    }
}

/// The same for operators, who are bounded by their listener's connections: visitors must not take their places.
pub(crate) fn adopt_for_operators(response: Response, worker: &WorkerContext) -> Response {
    match response.body().size_hint().exact().is_none() && is_unadopted(&response) {
        true => adopt_stream(response, worker.streams.count(), &worker.streams),
        false => response,
    }
}

/// Whether it is a stream that the worker knows nothing of.
fn is_unadopted(response: &Response) -> bool {
    let headers = response.headers();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case(EVENT_STREAM)
        && response.status().is_success()
        && !headers.contains_key(header::CONTENT_LENGTH)
        && response.extensions().get::<KeepAliveTrigger>().is_none()
}

fn adopt_stream(response: Response, place: StreamPlace, streams: &WorkerStreams) -> Response {
    let (mut parts, body) = response.into_parts();
    let options = StreamOptions {
        framing: if is_encoded(&parts.headers) { Framing::Opaque } else { Framing::Text },
        drain: streams.drain.clone(),
        on_drain: parts.extensions.get().copied().unwrap_or_default(),
        keep_alive_interval: streams.keep_alive_interval,
        place: Some(place),
    };
    let (body, trigger) = EventStream::start(body, options);
    parts.extensions.insert(trigger);
    parts.headers.entry(X_ACCEL_BUFFERING).or_insert(HeaderValue::from_static("no"));
    parts.headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    Response::from_parts(parts, body)
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity")
}

/// A new response of server-sent events.
pub(crate) fn respond(body: Body, options: StreamOptions) -> Response {
    let (body, trigger) = EventStream::start(body, options);
    let mut response = Response::new(body);
    response.extensions_mut().insert(trigger);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// A body of events with what the worker adds to it.
struct EventStream {
    body: Body,
    framing: Framing,
    position: EventPosition,
    leaving: Pin<Box<dyn Future<Output = ()> + Send>>,
    keep_alive: Interval,
    trigger: KeepAliveTrigger,
    phase: StreamPhase,
    _place: Option<StreamPlace>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamPhase {
    /// Nothing was sent yet.
    Opening,
    /// The first piece may begin with a mark.
    First,
    /// Events are passed on.
    Open,
    /// The worker drains: the event that was begun is completed until then.
    Leaving(Instant),
    /// Nothing follows.
    Finished,
}

impl EventStream {
    /// The body that is sent instead, and what has it show that it lives.
    fn start(body: Body, options: StreamOptions) -> (Body, KeepAliveTrigger) {
        let interval = options.keep_alive_interval;
        let mut keep_alive = tokio::time::interval_at(Instant::now() + interval, interval);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let trigger = KeepAliveTrigger::default();
        let events = Self {
            body,
            framing: options.framing,
            position: EventPosition::start(),
            leaving: Box::pin(until_leaving(options.drain, options.on_drain)),
            keep_alive,
            trigger: trigger.clone(),
            phase: StreamPhase::Opening,
            _place: options.place,
        };
        let pieces = stream::unfold(events, |mut events| async move {
            let piece = events.next().await?;
            Some((piece, events))
        });
        (Body::from_stream(pieces), trigger)
    }

    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            match self.phase {
                StreamPhase::Opening => {
                    self.phase = StreamPhase::First;
                    if self.framing != Framing::Opaque {
                        return Some(Ok(retry_hint(RETRY_AFTER_DISCONNECT_MS)));
                    }
                }
                StreamPhase::First | StreamPhase::Open => tokio::select! {
                    // Events that are not sent any more reach the client from the successor.
                    biased;
                    () = self.leaving.as_mut() => self.phase = StreamPhase::Leaving(Instant::now() + EVENT_GRACE),
                    piece = next_piece(&mut self.body) => return self.pass_on(piece),
                    _ = self.keep_alive.tick() => if self.may_insert() { return Some(Ok(KEEP_ALIVE)) },
                    () = self.trigger.0.notified() => if self.may_insert() { return Some(Ok(KEEP_ALIVE)) },
                },
                StreamPhase::Leaving(_) if self.framing == Framing::Opaque => {
                    self.phase = StreamPhase::Finished
                }
                StreamPhase::Leaving(_) if self.position.is_between() => {
                    self.phase = StreamPhase::Finished;
                    return Some(Ok(retry_hint(RETRY_AFTER_DRAIN_MS)));
                }
                StreamPhase::Leaving(until) => tokio::select! {
                    biased;
                    piece = next_piece(&mut self.body) => return self.pass_on(piece),
                    () = sleep_until(until) => self.phase = StreamPhase::Finished,
                },
                StreamPhase::Finished => return None,
            }
        }
    }

    /// Whether a comment is one here.
    fn may_insert(&self) -> bool {
        self.framing != Framing::Opaque && self.position.is_between()
    }

    fn pass_on(&mut self, piece: Option<Result<Bytes, Error>>) -> Option<Result<Bytes, Error>> {
        let Some(Ok(mut bytes)) = piece else {
            self.phase = StreamPhase::Finished;
            return piece;
        };
        if self.framing != Framing::Text {
            return Some(Ok(bytes));
        }
        if self.phase == StreamPhase::First && !bytes.is_empty() {
            self.phase = StreamPhase::Open;
            if bytes.starts_with(BYTE_ORDER_MARK) {
                bytes = bytes.slice(BYTE_ORDER_MARK.len()..);
            }
        }
        match self.phase {
            StreamPhase::Leaving(_) => {
                if let Some(end) = self.position.finish_event(&bytes) {
                    bytes.truncate(end);
                }
            }
            _ => self.position.advance(&bytes),
        }
        Some(Ok(bytes))
    }
}

/// The next bytes of a body; none at its end.
async fn next_piece(body: &mut Body) -> Option<Result<Bytes, Error>> {
    loop {
        match body.frame().await?.map(http_body::Frame::into_data) {
            Ok(Ok(bytes)) => return Some(Ok(bytes)),
            // Trailers: a stream of events has none that a client could see.
            Ok(Err(_)) => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

fn retry_hint(within_ms: std::ops::RangeInclusive<u64>) -> Bytes {
    SseEvent::default().retry_ms(random::within(within_ms)).to_bytes()
}

#[cfg(test)]
mod tests;
