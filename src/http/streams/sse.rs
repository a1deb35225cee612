//! Server-sent events (WHATWG HTML §9.2): a response that goes on until its source ends, its client leaves, or its
//! worker does.
//!
//! A client is told first when to come again should the connection break, and hears at least a comment every
//! heartbeat, so that it, every proxy between and the worker itself notice a broken one. A worker that leaves tells each
//! client another time to come again, so that they do not come to its successor all at once, and ends the response.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, header};
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::http::drain_state::DrainState;
use crate::sys::random;

/// When a client comes again whose connection broke, milliseconds: its worker was killed, or something between.
const RETRY_AFTER_DISCONNECT_MS: std::ops::RangeInclusive<u64> = 500..=1500;

/// When a client comes again whose worker leaves: its successor serves already.
const RETRY_AFTER_DRAIN_MS: std::ops::RangeInclusive<u64> = 50..=1000;

/// A line that means nothing, and a sign of life.
const KEEP_ALIVE: Bytes = Bytes::from_static(b":\n\n");

/// nginx collects a response before it passes it on, unless it is told not to.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What a stream of events is made of.
///
/// ```
/// use bytes::Bytes;
/// use regatta::EventSource;
///
/// /// Tells a number whenever it changes.
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
    /// The next event or events as they go over the wire, see [`event`]; `None` ends the response.
    ///
    /// # Cancel safety
    /// It must be: the future is dropped whenever a heartbeat is due, and nothing may be lost with it.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// One event as it goes over the wire; without a name it is a `message`.
///
/// Whatever is in `data` stays data, line breaks of every kind included; a name ends before the first.
pub fn event(name: &str, data: &str) -> Bytes {
    let mut text = String::with_capacity(name.len() + data.len() + 24);
    let name = name.split(['\r', '\n']).next().unwrap_or_default();
    if !name.is_empty() {
        text.push_str("event: ");
        text.push_str(name);
        text.push('\n');
    }
    // Each of the three kinds of line break ends a line for the client (§9.2.6).
    for line in data.replace("\r\n", "\n").split(['\r', '\n']) {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
    Bytes::from(text)
}

/// Has a stream say at once that it lives: a client that is gone is found out by what is sent to it.
///
/// Among the extensions of a stream's response, for the worker's side of its connection.
#[derive(Debug, Clone, Default)]
pub struct KeepAliveTrigger(Arc<Notify>);

impl KeepAliveTrigger {
    /// Has it do so.
    pub fn send_now(&self) {
        self.0.notify_one();
    }

    /// Whether the stream goes on.
    pub fn is_stream_open(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// The response; `phase` says when its worker leaves.
pub(in crate::http) fn respond(source: impl SseSource, heartbeat: Duration, phase: &DrainState) -> Response {
    let phase = phase.clone();
    let mut keep_alive = tokio::time::interval_at(Instant::now() + heartbeat, heartbeat);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let streams_closed = Box::pin(async move { phase.streams_closed().await });
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

struct SseStream<S> {
    source: S,
    streams_closed: Pin<Box<dyn Future<Output = ()> + Send>>,
    keep_alive: Interval,
    trigger: KeepAliveTrigger,
    phase: StreamPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamPhase {
    /// Nothing was said yet.
    Opening,
    /// Events are passed on.
    Open,
    /// The client was told to come again.
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
                // What is not sent any more is found by the client at the successor.
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
    Bytes::from(format!("retry: {}\n\n", random::within(within_ms)))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;

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

    #[test]
    fn nothing_breaks_out_of_an_event() {
        assert_eq!(event("", ""), "data: \n\n");
        assert_eq!(
            event("gap", "a\nb\rc\r\nd\n"),
            "event: gap\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"
        );
        assert_eq!(event("x\nid: 7", "y"), "event: x\ndata: y\n\n");
    }
}
