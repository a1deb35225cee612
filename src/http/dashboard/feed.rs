//! One computation a second for any number of open pages; none while no page is open.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::MissedTickBehavior;

use crate::http::dashboard::collector::FleetCollector;
use crate::http::dashboard::sources::DashboardSources;
use crate::http::dashboard::view_model::{DashboardView, EventView};
use crate::http::problem::Problem;
use crate::http::streams::sse::{self, SseSource};
use crate::sse::event;

/// Time between two computations.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a page that is opened gets the last computation.
const FRAME_MAX_AGE: Duration = Duration::from_millis(900);

/// Streams at once of each listener. The admin listener has 64 connections, of which probes and metrics need some.
const SUBSCRIBERS_MAX: usize = 32;

/// A worker's view of the fleet; clones are the same one.
#[derive(Clone)]
pub(super) struct DashboardFeed(Arc<DashboardFeedState>);

struct DashboardFeedState {
    collector: Mutex<FleetCollector>,
    latest: watch::Sender<Option<Arc<DashboardFrame>>>,
    admin_permits: Arc<Semaphore>,
    /// Apart from the operators': where the page is public, visitors must not use up all streams.
    public_permits: Arc<Semaphore>,
    is_running: AtomicBool,
}

/// One computation.
#[derive(Debug)]
pub(super) struct DashboardFrame {
    created_at: Instant,
    /// Frames before it.
    number: u64,
    pub(super) view: DashboardView,
    /// The update for subscribers that have the frame before it.
    update: Bytes,
}

impl DashboardFrame {
    /// The update for a subscriber whose last frame has this number.
    fn update_after(&self, number: u64) -> Bytes {
        match self.number == number + 1 {
            true => self.update.clone(),
            // The subscriber missed a frame, which may have had events in it.
            false => encode_view(&self.view),
        }
    }
}

impl fmt::Debug for DashboardFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subscribers = self.0.latest.receiver_count();
        f.debug_struct("DashboardFeed").field("subscribers", &subscribers).finish_non_exhaustive()
    }
}

impl DashboardFeed {
    pub(super) fn new() -> Self {
        Self(Arc::new(DashboardFeedState {
            collector: Mutex::new(FleetCollector::default()),
            latest: watch::Sender::new(None),
            admin_permits: Arc::new(Semaphore::new(SUBSCRIBERS_MAX)),
            public_permits: Arc::new(Semaphore::new(SUBSCRIBERS_MAX)),
            is_running: AtomicBool::new(false),
        }))
    }

    /// The fleet now, or less than a second ago.
    pub(super) async fn current_frame(&self, sources: &DashboardSources) -> Arc<DashboardFrame> {
        // Callers that come during a computation wait for it and take its frame.
        let mut collector = self.0.collector.lock().await;
        let last = self.0.latest.borrow().clone();
        if let Some(frame) = last.as_ref().filter(|frame| frame.created_at.elapsed() < FRAME_MAX_AGE) {
            return Arc::clone(frame);
        }
        let mut view = collector.collect(sources).await;
        let events = view.events.take();
        // The list of events is left out of an update in which it has not changed.
        let previous_events = last.as_ref().and_then(|frame| frame.view.events.as_deref());
        if newest_key(previous_events) != newest_key(events.as_deref()) {
            view.events.clone_from(&events);
        }
        let update = encode_view(&view);
        view.events = events;
        let number = last.map_or(0, |frame| frame.number + 1);
        let frame = Arc::new(DashboardFrame { created_at: Instant::now(), number, view, update });
        self.0.latest.send_replace(Some(Arc::clone(&frame)));
        frame
    }

    /// Starts the computations, unless they run already; they end with the last subscriber.
    fn start(&self, sources: &Arc<DashboardSources>) {
        if self.0.is_running.swap(true, SeqCst) {
            return;
        }
        let (feed, sources) = (self.clone(), Arc::clone(sources));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if feed.0.latest.receiver_count() == 0 {
                    feed.0.is_running.store(false, SeqCst);
                    // A subscriber that came between the two lines above has found it running.
                    if feed.0.latest.receiver_count() == 0 || feed.0.is_running.swap(true, SeqCst) {
                        return;
                    }
                }
                feed.current_frame(&sources).await;
            }
        });
    }

    /// The stream of updates: the whole view first, then what has changed, once a second.
    pub(super) async fn stream(
        &self,
        sources: &Arc<DashboardSources>,
        from_admin_listener: bool,
    ) -> Response {
        let permits = if from_admin_listener { &self.0.admin_permits } else { &self.0.public_permits };
        let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
            return Problem::reduced_capacity("too many dashboards are open at this worker", 5)
                .into_response();
        };
        let frames = self.0.latest.subscribe();
        let first = self.current_frame(sources).await;
        self.start(sources);
        let first_update = Some(encode_view(&first.view));
        let subscriber = FeedSubscriber { frames, _permit: permit, number: first.number, first_update };
        sse::respond(subscriber, &sources.streams)
    }
}

/// An open page.
struct FeedSubscriber {
    frames: watch::Receiver<Option<Arc<DashboardFrame>>>,
    _permit: OwnedSemaphorePermit,
    /// Number of the last frame that was sent.
    number: u64,
    first_update: Option<Bytes>,
}

impl SseSource for FeedSubscriber {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first_update) = self.first_update.take() {
            return Some(first_update);
        }
        loop {
            self.frames.changed().await.ok()?;
            let frame = self.frames.borrow_and_update().clone();
            // The first one may be the frame that is in the page already.
            if let Some(frame) = frame.filter(|frame| frame.number > self.number) {
                let update = frame.update_after(self.number);
                self.number = frame.number;
                return Some(update);
            }
        }
    }
}

/// The newest event's key: it changes whenever the list does.
fn newest_key(events: Option<&[EventView]>) -> Option<&str> {
    events.and_then(|events| events.first()).map(|event| event.key.as_str())
}

fn encode_view(view: &DashboardView) -> Bytes {
    // It cannot fail: all keys are texts, and no field refuses to be written.
    event("", &serde_json::to_string(view).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_one_line_of_data() {
        let view = DashboardView { state_text: "one\ntwo\r\ndata: three".into(), ..DashboardView::default() };
        let event = encode_view(&view);
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
            update: Bytes::from_static(b"short"),
        };
        assert_eq!(frame.update_after(4), "short");
        assert!(String::from_utf8_lossy(&frame.update_after(3)).contains("\"key\":\"7\""));
    }
}
