//! Server-sent events as a response: it goes on until its source ends, its client disconnects, or its worker drains.
//!
//! The first bytes say when to connect again should the connection break. At least a comment follows every keep-alive
//! interval: without it the client, proxies and the worker would not notice a broken connection. A draining worker sends
//! each client another `retry` and ends the response; with one time for all, the successor would get them all at once.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, header};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::http::drain_state::DrainState;
use crate::http::error::RequestError;
use crate::http::header_names::X_ACCEL_BUFFERING;
use crate::http::services::stream::StreamServices;
use crate::sse::{KEEP_ALIVE, SseEvent};
use crate::sys::random;

/// When a client connects again whose connection broke, milliseconds.
const RETRY_AFTER_DISCONNECT_MS: std::ops::RangeInclusive<u64> = 500..=1500;

/// When a client connects again whose worker drains, milliseconds: its successor serves already.
const RETRY_AFTER_DRAIN_MS: std::ops::RangeInclusive<u64> = 50..=1000;

/// What a stream of events is made of.
///
/// ```
/// use bytes::Bytes;
/// use regatta::EventSource;
///
/// /// Sends a number whenever it changes.
/// struct Numbers(tokio::sync::watch::Receiver<u64>);
///
/// impl EventSource for Numbers {
///     async fn next(&mut self) -> Option<Bytes> {
///         self.0.changed().await.ok()?;
///         let number = *self.0.borrow_and_update();
///         Some(regatta::event("number", &number.to_string()))
///     }
/// }
/// ```
pub trait SseSource: Send + 'static {
    /// The next event or events as they go over the wire, see `event`; `None` ends the response.
    ///
    /// # Cancel safety
    /// Required: the future is dropped whenever a keep-alive is due, and no event may be lost with it.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

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

/// The response; it ends when `drain` closes streams.
pub(crate) fn respond(source: impl SseSource, interval: Duration, drain: &DrainState) -> Response {
    let drain = drain.clone();
    let mut keep_alive = tokio::time::interval_at(Instant::now() + interval, interval);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let streams_closed = Box::pin(async move { drain.streams_closed().await });
    let trigger = KeepAliveTrigger::default();
    let sse_stream = SseStream {
        source,
        streams_closed,
        keep_alive,
        trigger: trigger.clone(),
        phase: StreamPhase::Opening,
    };
    let pieces = stream::unfold(sse_stream, |mut sse_stream| async move {
        let piece = sse_stream.next().await?;
        Some((Ok::<_, Infallible>(piece), sse_stream))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.extensions_mut().insert(trigger);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// The same for a source that takes one of the worker's permits of streams: 503 when there is none left.
pub(crate) fn respond_permitted(source: impl SseSource, services: &StreamServices) -> Response {
    let Ok(permit) = Arc::clone(&services.stream_permits).try_acquire_owned() else {
        return RequestError::TooManySubscribers.into_response();
    };
    let source = PermittedSource { source, _permit: permit };
    respond(source, services.broadcast.keep_alive_interval, &services.drain)
}

/// A source that holds a permit until its response ends.
struct PermittedSource<S> {
    source: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: SseSource> SseSource for PermittedSource<S> {
    async fn next(&mut self) -> Option<Bytes> {
        self.source.next().await
    }
}

struct SseStream<S> {
    source: S,
    streams_closed: Pin<Box<dyn Future<Output = ()> + Send>>,
    keep_alive: Interval,
    trigger: KeepAliveTrigger,
    phase: StreamPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamPhase {
    /// Nothing was sent yet.
    Opening,
    /// Events are passed on.
    Open,
    /// The last `retry` was sent.
    Finished,
}

impl<S: SseSource> SseStream<S> {
    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            StreamPhase::Opening => {
                self.phase = StreamPhase::Open;
                Some(retry_hint(RETRY_AFTER_DISCONNECT_MS))
            }
            StreamPhase::Finished => None,
            StreamPhase::Open => tokio::select! {
                // Events that are not sent any more reach the client from the successor.
                biased;
                () = self.streams_closed.as_mut() => {
                    self.phase = StreamPhase::Finished;
                    Some(retry_hint(RETRY_AFTER_DRAIN_MS))
                }
                piece = self.source.next() => piece,
                _ = self.keep_alive.tick() => Some(KEEP_ALIVE),
                () = self.trigger.0.notified() => Some(KEEP_ALIVE),
            },
        }
    }
}

fn retry_hint(within_ms: std::ops::RangeInclusive<u64>) -> Bytes {
    SseEvent::default().retry_ms(random::within(within_ms)).to_bytes()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;
    use crate::sse::event;

    struct Queue(mpsc::UnboundedReceiver<Bytes>);

    impl SseSource for Queue {
        async fn next(&mut self) -> Option<Bytes> {
            self.0.recv().await
        }
    }

    async fn piece(body: &mut Body) -> Option<String> {
        let frame = body.frame().await?.unwrap();
        Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    }

    fn open(heartbeat: Duration) -> (mpsc::UnboundedSender<Bytes>, DrainState, Body) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let phase = DrainState::default();
        let response = respond(Queue(receiver), heartbeat, &phase);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        (sender, phase, response.into_body())
    }

    fn milliseconds(piece: &str) -> u64 {
        piece.strip_prefix("retry: ").unwrap().strip_suffix("\n\n").unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn a_stream_begins_with_a_hint_and_shows_that_it_lives() {
        let heartbeat = Duration::from_millis(200);
        let (sender, _phase, mut body) = open(heartbeat);
        assert!(RETRY_AFTER_DISCONNECT_MS.contains(&milliseconds(&piece(&mut body).await.unwrap())));
        sender.send(event("", "one")).unwrap();
        assert_eq!(piece(&mut body).await.unwrap(), "data: one\n\n");
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(piece(&mut body).await.unwrap(), ":\n\n");
        }
        assert!(start.elapsed() > heartbeat, "{:?}", start.elapsed());
        drop(sender);
        assert_eq!(piece(&mut body).await, None);
    }

    #[tokio::test]
    async fn a_draining_worker_sends_a_retry_hint_and_closes_its_streams() {
        let (sender, phase, mut body) = open(Duration::from_secs(15));
        piece(&mut body).await.unwrap();
        sender.send(event("", "too late")).unwrap();
        phase.start_drain();
        assert!(RETRY_AFTER_DRAIN_MS.contains(&milliseconds(&piece(&mut body).await.unwrap())));
        assert_eq!(piece(&mut body).await, None);
    }

    #[tokio::test]
    async fn a_stream_opened_while_draining_is_closed_at_once() {
        let (_sender, phase, body) = open(Duration::from_secs(15));
        phase.start_drain();
        let all = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert_eq!(all.matches("retry: ").count(), 2, "{all}");
    }
}
