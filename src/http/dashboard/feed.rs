//! One computation a second, however many watch; none when nobody does.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use std::time::Instant;

use axum::body::Body;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header;
use tokio::sync::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::http::dashboard::engine::Engine;
use crate::http::dashboard::view::EventRow;
use crate::http::dashboard::view::View;
use crate::http::phase::Phase;
use crate::http::problem::Problem;
use crate::http::router::Audience;
use crate::http::state::Core;
use crate::sys::random;

/// Time between two computations.
const EVERY: Duration = Duration::from_secs(1);

/// How long a computation is passed on to whoever opens the page.
const FRESH: Duration = Duration::from_millis(900);

/// Streams at once of each audience. The operators' listener has 64 connections, of which probes and metrics need some.
const WATCHERS: usize = 32;

/// How long a browser waits before it comes again, milliseconds; spread at a leaving, so that all do not come at once.
const RETRY_MS: u64 = 1000;

/// A worker's view of the fleet; clones are the same one.
#[derive(Clone)]
pub(super) struct Feed(Arc<Inner>);

struct Inner {
    engine: Mutex<Engine>,
    latest: watch::Sender<Option<Arc<Frame>>>,
    /// Visitors, where the page is theirs, must not take the operators' places.
    places: [Arc<Semaphore>; 2],
    runs: AtomicBool,
}

/// One computation.
#[derive(Debug)]
pub(super) struct Frame {
    made: Instant,
    /// Frames before it.
    number: u64,
    pub(super) view: View,
    /// As it is sent to those who have the one before.
    event: Bytes,
}

impl Frame {
    /// As it is sent to somebody whose last frame was this one.
    fn after(&self, number: u64) -> Bytes {
        match self.number == number + 1 {
            true => self.event.clone(),
            // He was too slow for one in between, which may have told what happened.
            false => encode(&self.view),
        }
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("watchers", &self.0.latest.receiver_count()).finish_non_exhaustive()
    }
}

impl Feed {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            engine: Mutex::new(Engine::default()),
            latest: watch::Sender::new(None),
            places: std::array::from_fn(|_| Arc::new(Semaphore::new(WATCHERS))),
            runs: AtomicBool::new(false),
        }))
    }

    /// How things are now, or were less than a second ago.
    pub(super) async fn look(&self, core: &Core) -> Arc<Frame> {
        // Whoever comes while somebody computes waits for that.
        let mut engine = self.0.engine.lock().await;
        let last = self.0.latest.borrow().clone();
        if let Some(frame) = last.as_ref().filter(|frame| frame.made.elapsed() < FRESH) {
            return Arc::clone(frame);
        }
        let mut view = engine.compute(core).await;
        let events = view.events.take();
        // What is in the page already is not sent again, until something happens.
        let known = last.as_ref().and_then(|frame| frame.view.events.as_deref());
        if key(known) != key(events.as_deref()) {
            view.events.clone_from(&events);
        }
        let event = encode(&view);
        view.events = events;
        let number = last.map_or(0, |frame| frame.number + 1);
        let frame = Arc::new(Frame { made: Instant::now(), number, view, event });
        self.0.latest.send_replace(Some(Arc::clone(&frame)));
        frame
    }

    /// Begins to compute, unless that goes on already; it ends when nobody watches any more.
    fn run(&self, core: &Arc<Core>) {
        if self.0.runs.swap(true, SeqCst) {
            return;
        }
        let (feed, core) = (self.clone(), Arc::clone(core));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if feed.0.latest.receiver_count() == 0 {
                    feed.0.runs.store(false, SeqCst);
                    // Whoever has come in between found it running.
                    if feed.0.latest.receiver_count() == 0 || feed.0.runs.swap(true, SeqCst) {
                        return;
                    }
                }
                feed.look(&core).await;
            }
        });
    }

    /// The response that never ends: the whole page first, then what has changed, once a second.
    pub(super) async fn stream(&self, core: &Arc<Core>, audience: Audience) -> Response {
        let [operators, visitors] = &self.0.places;
        let places = if audience == Audience::Operators { operators } else { visitors };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            let problem = Problem::reduced_capacity("as many dashboards are open here as may be", 5);
            return problem.into_response();
        };
        let frames = self.0.latest.subscribe();
        let first = self.look(core).await;
        self.run(core);
        let hello = format!("retry: {RETRY_MS}\n\n");
        let hello = Bytes::from([hello.as_bytes(), &encode(&first.view)].concat());
        let (phase, number) = (core.phase.clone(), first.number);
        let watcher = Watcher { frames, phase, _place: place, number, hello: Some(hello) };
        let parts = stream::unfold(Some(watcher), |watcher| async { next(watcher?).await });
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            // A proxy that gathers what it passes on would show nothing for a long while.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        (StatusCode::OK, headers, Body::from_stream(parts)).into_response()
    }
}

/// Somebody who watches.
struct Watcher {
    frames: watch::Receiver<Option<Arc<Frame>>>,
    phase: Phase,
    _place: OwnedSemaphorePermit,
    /// The last frame he was sent.
    number: u64,
    hello: Option<Bytes>,
}

/// The next part of a stream; at the worker's leaving the last one, which asks to come again.
async fn next(mut watcher: Watcher) -> Option<(Result<Bytes, Infallible>, Option<Watcher>)> {
    if let Some(hello) = watcher.hello.take() {
        return Some((Ok(hello), Some(watcher)));
    }
    loop {
        tokio::select! {
            () = watcher.phase.leaving() => {
                let retry_ms = random::within(50..=RETRY_MS);
                return Some((Ok(Bytes::from(format!("retry: {retry_ms}\n\n"))), None));
            }
            changed = watcher.frames.changed() => {
                changed.ok()?;
                let frame = watcher.frames.borrow_and_update().clone();
                // The first may be the one that the page came with.
                if let Some(frame) = frame.filter(|frame| frame.number > watcher.number) {
                    let event = frame.after(watcher.number);
                    watcher.number = frame.number;
                    return Some((Ok(event), Some(watcher)));
                }
            }
        }
    }
}

/// What tells one list of events from another.
fn key(events: Option<&[EventRow]>) -> Option<&str> {
    events.and_then(|events| events.first()).map(|event| event.key.as_str())
}

/// A view as one event of a stream. JSON has no line ends in it.
fn encode(view: &View) -> Bytes {
    let mut text = b"data: ".to_vec();
    match serde_json::to_writer(&mut text, view) {
        Ok(()) => {
            text.extend_from_slice(b"\n\n");
            text.into()
        }
        // It cannot fail: no map with other keys than texts, nothing that refuses to be written.
        Err(_) => Bytes::from_static(b": nothing\n\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_a_text_holds() {
        let view = View { state_text: "one\ntwo\r\ndata: three".into(), ..View::default() };
        let event = encode(&view);
        assert!(event.starts_with(b"data: {") && event.ends_with(b"}\n\n"));
        assert_eq!(event.iter().filter(|byte| matches!(**byte, b'\n' | b'\r')).count(), 2);
    }
    #[test]
    fn whoever_missed_a_frame_is_told_everything() {
        let events = Some(vec![EventRow { key: "7".into(), ..EventRow::default() }]);
        let view = View { events, ..View::default() };
        let frame = Frame { made: Instant::now(), number: 5, view, event: Bytes::from_static(b"short") };
        assert_eq!(frame.after(4), "short");
        assert!(String::from_utf8_lossy(&frame.after(3)).contains("\"key\":\"7\""));
    }
}
