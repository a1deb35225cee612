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
use http::HeaderName;
use http::HeaderValue;
use http::header;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;

use crate::http::phase::Phase;
use crate::sys::random;

/// When a client comes again whose connection broke, milliseconds: its worker was killed, or something between.
const AFTER_A_BREAK_MS: std::ops::RangeInclusive<u64> = 500..=1500;

/// When a client comes again whose worker leaves: its successor serves already.
const AFTER_LEAVING_MS: std::ops::RangeInclusive<u64> = 50..=1000;

/// A line that means nothing, and a sign of life.
const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// nginx collects a response before it passes it on, unless it is told not to.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

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
pub trait Source: Send + 'static {
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
pub struct SignOfLife(Arc<Notify>);

impl SignOfLife {
    /// Has it do so.
    pub fn give(&self) {
        self.0.notify_one();
    }

    /// Whether the stream goes on.
    pub fn is_awaited(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// The response; `phase` says when its worker leaves.
pub(in crate::http) fn respond(source: impl Source, heartbeat: Duration, phase: &Phase) -> Response {
    let phase = phase.clone();
    let mut beat = tokio::time::interval_at(Instant::now() + heartbeat, heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let leaving = Box::pin(async move { phase.leaving().await });
    let sign = SignOfLife::default();
    let open = Open { source, leaving, beat, sign: sign.clone(), stage: Stage::Opening };
    let pieces = stream::unfold(open, |mut open| async move {
        let piece = open.next().await?;
        Some((Ok::<_, Infallible>(piece), open))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.extensions_mut().insert(sign);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(UNBUFFERED, HeaderValue::from_static("no"));
    response
}

struct Open<S> {
    source: S,
    leaving: Pin<Box<dyn Future<Output = ()> + Send>>,
    beat: Interval,
    sign: SignOfLife,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was said yet.
    Opening,
    /// Events are passed on.
    Open,
    /// The client was told to come again.
    Over,
}

impl<S: Source> Open<S> {
    async fn next(&mut self) -> Option<Bytes> {
        match self.stage {
            Stage::Opening => {
                self.stage = Stage::Open;
                Some(retry(AFTER_A_BREAK_MS))
            }
            Stage::Over => None,
            Stage::Open => tokio::select! {
                // What is not sent any more is found by the client at the successor.
                biased;
                () = self.leaving.as_mut() => {
                    self.stage = Stage::Over;
                    Some(retry(AFTER_LEAVING_MS))
                }
                piece = self.source.next() => piece,
                _ = self.beat.tick() => Some(HEARTBEAT),
                () = self.sign.0.notified() => Some(HEARTBEAT),
            },
        }
    }
}

fn retry(within_ms: std::ops::RangeInclusive<u64>) -> Bytes {
    Bytes::from(format!("retry: {}\n\n", random::within(within_ms)))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;

    struct Queue(mpsc::UnboundedReceiver<Bytes>);

    impl Source for Queue {
        async fn next(&mut self) -> Option<Bytes> {
            self.0.recv().await
        }
    }

    async fn piece(body: &mut Body) -> Option<String> {
        let frame = body.frame().await?.unwrap();
        Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    }

    fn open(heartbeat: Duration) -> (mpsc::UnboundedSender<Bytes>, Phase, Body) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let phase = Phase::default();
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
        assert!(AFTER_A_BREAK_MS.contains(&milliseconds(&piece(&mut body).await.unwrap())));
        sender.send(event("", "one")).unwrap();
        assert_eq!(piece(&mut body).await.unwrap(), "data: one\n\n");
        let begin = Instant::now();
        for _ in 0..3 {
            assert_eq!(piece(&mut body).await.unwrap(), ":\n\n");
        }
        assert!(begin.elapsed() > heartbeat, "{:?}", begin.elapsed());
        drop(sender);
        assert_eq!(piece(&mut body).await, None);
    }

    #[tokio::test]
    async fn a_worker_that_leaves_has_its_clients_come_again_and_says_no_more() {
        let (sender, phase, mut body) = open(Duration::from_secs(15));
        piece(&mut body).await.unwrap();
        sender.send(event("", "too late")).unwrap();
        phase.begin_drain();
        assert!(AFTER_LEAVING_MS.contains(&milliseconds(&piece(&mut body).await.unwrap())));
        assert_eq!(piece(&mut body).await, None);
    }

    #[tokio::test]
    async fn whoever_comes_to_a_leaving_worker_is_sent_on() {
        let (_sender, phase, body) = open(Duration::from_secs(15));
        phase.begin_drain();
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
