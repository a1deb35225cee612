//! Updates of the page: a stream of at most one JSON event a second; while nothing changes, the last one is repeated.
//!
//! A worker samples the fleet once a second for any number of streams, and not at all without one.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::sse::{Event, Sse};
use axum::routing::get;
use futures_util::stream;
use regatta::broadcast::Presence;
use regatta::rate_limit::RateLimit;
use regatta::{FleetHandle, SlotSnapshot};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout_at};

use crate::app::broadcast::DEFAULT_TOPIC;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// Time after which an unchanged state is sent again: scripts do not see keep-alive comments, and a page without events
/// for longer than this opens a new connection.
const REPEAT_AFTER: Duration = Duration::from_secs(15);

/// The route and its feed.
pub(super) fn routes(state: &FleetHandle) -> Router<FleetHandle> {
    let feed = Arc::new(LiveFeed {
        state: state.clone(),
        latest: watch::Sender::default(),
        task: Mutex::new(FeedTask::Idle),
    });
    Router::new().route("/live", get(live)).with_state(feed)
}

async fn live(_limit: RateLimit, Shared(feed): Shared<Arc<LiveFeed>>) -> impl IntoResponse {
    let subscriber = LiveSubscriber { latest: feed.subscribe(), repeat_at: Instant::now() + REPEAT_AFTER };
    let events = stream::unfold(subscriber, |mut subscriber| async move {
        let event = subscriber.next().await?;
        Some((Ok::<_, Infallible>(event), subscriber))
    });
    // The numbers of one moment: axum's own no-cache lets a cache keep them.
    ([(header::CACHE_CONTROL, "no-store")], Sse::new(events))
}

/// The state that all streams of this worker share.
struct LiveFeed {
    state: FleetHandle,
    /// The last event; none before the first.
    latest: watch::Sender<Option<Event>>,
    task: Mutex<FeedTask>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FeedTask {
    Running,
    Idle,
}

impl LiveFeed {
    fn subscribe(self: &Arc<Self>) -> watch::Receiver<Option<Event>> {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        let mut subscriber = self.latest.subscribe();
        if *task == FeedTask::Idle {
            *task = FeedTask::Running;
            tokio::spawn(Arc::clone(self).publish());
        }
        // A new stream starts with the last event.
        subscriber.mark_changed();
        subscriber
    }

    async fn publish(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The worker updates it once a second as long as it exists.
        let presence = self.state.broadcast().topic(DEFAULT_TOPIC).ok().map(|topic| topic.presence());
        let mut latest = LiveState::default();
        loop {
            ticks.tick().await;
            if self.stop_if_unused() {
                return;
            }
            let now = LiveState::sample(&self.state, presence.as_ref()).await;
            if now != latest {
                latest = now;
                let text = serde_json::to_string(&latest).unwrap_or_default();
                self.latest.send_replace(Some(Event::default().data(text)));
            }
        }
    }

    /// Whether the last stream has ended; the last event is then discarded, because the next stream would start with it.
    fn stop_if_unused(&self) -> bool {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if self.latest.receiver_count() > 0 {
            return false;
        }
        *task = FeedTask::Idle;
        self.latest.send_replace(None);
        true
    }
}

/// One client.
struct LiveSubscriber {
    latest: watch::Receiver<Option<Event>>,
    repeat_at: Instant,
}

impl LiveSubscriber {
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Ok(changed) = timeout_at(self.repeat_at, self.latest.changed()).await {
                changed.ok()?;
            }
            self.repeat_at = Instant::now() + REPEAT_AFTER;
            let event = self.latest.borrow_and_update().clone();
            if event.is_some() {
                return event;
            }
        }
    }
}

/// The fleet at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct LiveState {
    /// Views of all visitors; `None` while Redis is unavailable.
    total: Option<i64>,
    /// Subscribers of the default topic on all instances, which every open page is; `None` likewise.
    here: Option<u64>,
    /// This instance's slots in use.
    slots: Vec<LiveSlot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct LiveSlot {
    slot: usize,
    pid: u32,
    state: &'static str,
    requests: u64,
}

impl LiveState {
    async fn sample(state: &FleetHandle, presence: Option<&Presence>) -> Self {
        let snapshot = state.snapshot();
        let total = state.page_views().await.ok();
        Self {
            total,
            // While Redis is unavailable the count is an old one.
            here: total.and(presence.and_then(Presence::count)),
            slots: snapshot.workers().map(LiveSlot::from).collect(),
        }
    }
}

impl From<&SlotSnapshot> for LiveSlot {
    fn from(slot: &SlotSnapshot) -> Self {
        Self {
            slot: slot.slot(),
            pid: slot.pid().unwrap_or(0),
            state: slot.state().name(),
            requests: slot.requests(),
        }
    }
}
