//! One computation a second, however many watch; none when nobody does.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, StatusCode, header};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::MissedTickBehavior;

use crate::http::dashboard::collector::FleetCollector;
use crate::http::dashboard::view_model::{DashboardView, EventView};
use crate::http::drain_state::DrainState;
use crate::http::problem::Problem;
use crate::http::service::ListenerRole;
use crate::http::service::context::WorkerContext;
use crate::sys::random;

/// Time between two computations.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a computation is passed on to whoever opens the page.
const FRAME_MAX_AGE: Duration = Duration::from_millis(900);

/// Streams at once of each audience. The operators' listener has 64 connections, of which probes and metrics need some.
const SUBSCRIBERS_MAX: usize = 32;

/// How long a browser waits before it comes again, milliseconds; spread at a leaving, so that all do not come at once.
const RETRY_MS: u64 = 1000;

/// A worker's view of the fleet; clones are the same one.
#[derive(Clone)]
pub(super) struct DashboardFeed(Arc<DashboardFeedState>);

struct DashboardFeedState {
    collector: Mutex<FleetCollector>,
    latest: watch::Sender<Option<Arc<DashboardFrame>>>,
    /// Visitors, where the page is theirs, must not take the operators' places.
    permits: [Arc<Semaphore>; 2],
    is_running: AtomicBool,
}

/// One computation.
#[derive(Debug)]
pub(super) struct DashboardFrame {
    created_at: Instant,
    /// Frames before it.
    number: u64,
    pub(super) view: DashboardView,
    /// As it is sent to those who have the one before.
    event: Bytes,
}

impl DashboardFrame {
    /// As it is sent to somebody whose last frame was this one.
    fn event_after(&self, number: u64) -> Bytes {
        match self.number == number + 1 {
            true => self.event.clone(),
            // He was too slow for one in between, which may have told what happened.
            false => encode_event(&self.view),
        }
    }
}

impl fmt::Debug for DashboardFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("watchers", &self.0.latest.receiver_count()).finish_non_exhaustive()
    }
}

impl DashboardFeed {
    pub(super) fn new() -> Self {
        Self(Arc::new(DashboardFeedState {
            collector: Mutex::new(FleetCollector::default()),
            latest: watch::Sender::new(None),
            permits: std::array::from_fn(|_| Arc::new(Semaphore::new(SUBSCRIBERS_MAX))),
            is_running: AtomicBool::new(false),
        }))
    }

    /// How things are now, or were less than a second ago.
    pub(super) async fn current_frame(&self, core: &WorkerContext) -> Arc<DashboardFrame> {
        // Whoever comes while somebody computes waits for that.
        let mut collector = self.0.collector.lock().await;
        let last = self.0.latest.borrow().clone();
        if let Some(frame) = last.as_ref().filter(|frame| frame.created_at.elapsed() < FRAME_MAX_AGE) {
            return Arc::clone(frame);
        }
        let mut view = collector.collect(core).await;
        let events = view.events.take();
        // What is in the page already is not sent again, until something happens.
        let previous_events = last.as_ref().and_then(|frame| frame.view.events.as_deref());
        if events_key(previous_events) != events_key(events.as_deref()) {
            view.events.clone_from(&events);
        }
        let event = encode_event(&view);
        view.events = events;
        let number = last.map_or(0, |frame| frame.number + 1);
        let frame = Arc::new(DashboardFrame { created_at: Instant::now(), number, view, event });
        self.0.latest.send_replace(Some(Arc::clone(&frame)));
        frame
    }

    /// Begins to compute, unless that goes on already; it ends when nobody watches any more.
    fn start(&self, core: &Arc<WorkerContext>) {
        if self.0.is_running.swap(true, SeqCst) {
            return;
        }
        let (feed, core) = (self.clone(), Arc::clone(core));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if feed.0.latest.receiver_count() == 0 {
                    feed.0.is_running.store(false, SeqCst);
                    // Whoever has come in between found it running.
                    if feed.0.latest.receiver_count() == 0 || feed.0.is_running.swap(true, SeqCst) {
                        return;
                    }
                }
                feed.current_frame(&core).await;
            }
        });
    }

    /// The response that never ends: the whole page first, then what has changed, once a second.
    pub(super) async fn stream(&self, core: &Arc<WorkerContext>, role: ListenerRole) -> Response {
        let [operators, visitors] = &self.0.permits;
        let permits = if role == ListenerRole::Admin { operators } else { visitors };
        let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
            let problem = Problem::reduced_capacity("as many dashboards are open here as may be", 5);
            return problem.into_response();
        };
        let frames = self.0.latest.subscribe();
        let first = self.current_frame(core).await;
        self.start(core);
        let first_part = format!("retry: {RETRY_MS}\n\n");
        let first_part = Bytes::from([first_part.as_bytes(), &encode_event(&first.view)].concat());
        let (phase, number) = (core.drain.clone(), first.number);
        let subscriber =
            FeedSubscriber { frames, phase, _permit: permit, number, first_part: Some(first_part) };
        let parts = stream::unfold(Some(subscriber), |subscriber| async { next_part(subscriber?).await });
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
struct FeedSubscriber {
    frames: watch::Receiver<Option<Arc<DashboardFrame>>>,
    phase: DrainState,
    _permit: OwnedSemaphorePermit,
    /// The last frame he was sent.
    number: u64,
    first_part: Option<Bytes>,
}

/// The next part of a stream; at the worker's leaving the last one, which asks to come again.
async fn next_part(
    mut subscriber: FeedSubscriber,
) -> Option<(Result<Bytes, Infallible>, Option<FeedSubscriber>)> {
    if let Some(first_part) = subscriber.first_part.take() {
        return Some((Ok(first_part), Some(subscriber)));
    }
    loop {
        tokio::select! {
            () = subscriber.phase.streams_closed() => {
                let retry_ms = random::within(50..=RETRY_MS);
                return Some((Ok(Bytes::from(format!("retry: {retry_ms}\n\n"))), None));
            }
            changed = subscriber.frames.changed() => {
                changed.ok()?;
                let frame = subscriber.frames.borrow_and_update().clone();
                // The first may be the one that the page came with.
                if let Some(frame) = frame.filter(|frame| frame.number > subscriber.number) {
                    let event = frame.event_after(subscriber.number);
                    subscriber.number = frame.number;
                    return Some((Ok(event), Some(subscriber)));
                }
            }
        }
    }
}

/// What tells one list of events from another.
fn events_key(events: Option<&[EventView]>) -> Option<&str> {
    events.and_then(|events| events.first()).map(|event| event.key.as_str())
}

/// A view as one event of a stream. JSON has no line ends in it.
fn encode_event(view: &DashboardView) -> Bytes {
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
        let view = DashboardView { state_text: "one\ntwo\r\ndata: three".into(), ..DashboardView::default() };
        let event = encode_event(&view);
        assert!(event.starts_with(b"data: {") && event.ends_with(b"}\n\n"));
        assert_eq!(event.iter().filter(|byte| matches!(**byte, b'\n' | b'\r')).count(), 2);
    }
    #[test]
    fn a_subscriber_that_missed_a_frame_gets_the_whole_view() {
        let events = Some(vec![EventView { key: "7".into(), ..EventView::default() }]);
        let view = DashboardView { events, ..DashboardView::default() };
        let frame = DashboardFrame {
            created_at: Instant::now(),
            number: 5,
            view,
            event: Bytes::from_static(b"short"),
        };
        assert_eq!(frame.event_after(4), "short");
        assert!(String::from_utf8_lossy(&frame.event_after(3)).contains("\"key\":\"7\""));
    }
}
