//! The fleet as it goes on, for the one who looks at the page: a stream of one JSON event a second at most, and while
//! nothing changes the last one again now and then.
//!
//! A worker looks at the fleet once a second, however many clients watch, and not at all while no one does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::response::Response;
use axum::routing::get;
use regatta::{EventSource, FleetHandle, Presence, RateLimit, SlotSnapshot};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout_at};

use crate::app::broadcast::DEFAULT_TOPIC;
use crate::app::home;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// After so long without news the last is told again: scripts do not see comments, and a page that hears nothing for a
/// while longer knows that its connection is broken, whatever its browser believes.
const REPEAT_AFTER: Duration = Duration::from_secs(15);

/// The route, with a scene of its own.
pub(super) fn routes(state: &FleetHandle) -> Router<FleetHandle> {
    let scene = Arc::new(LiveFeed {
        state: state.clone(),
        latest: watch::Sender::default(),
        task: Mutex::new(FeedTask::Idle),
    });
    Router::new().route("/live", get(live)).with_state(scene)
}

async fn live(_limit: RateLimit, Shared(scene): Shared<Arc<LiveFeed>>) -> Response {
    scene.state.events(LiveSubscriber { latest: scene.subscribe(), repeat_at: Instant::now() + REPEAT_AFTER })
}

/// What all watchers of this worker see.
struct LiveFeed {
    state: FleetHandle,
    /// The last event, as it goes over the wire; empty before the first.
    latest: watch::Sender<Bytes>,
    task: Mutex<FeedTask>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FeedTask {
    Running,
    Idle,
}

impl LiveFeed {
    fn subscribe(self: &Arc<Self>) -> watch::Receiver<Bytes> {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        let mut watcher = self.latest.subscribe();
        if *task == FeedTask::Idle {
            *task = FeedTask::Running;
            tokio::spawn(Arc::clone(self).publish());
        }
        // The one who comes sees at once what the others see.
        watcher.mark_changed();
        watcher
    }

    async fn publish(self: Arc<Self>) {
        let mut pause = tokio::time::interval(INTERVAL);
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // While it lives its worker asks once a second who listens.
        let here = self.state.broadcast().presence(DEFAULT_TOPIC).ok();
        let mut latest = LiveState::default();
        loop {
            pause.tick().await;
            if self.stop_if_unused() {
                return;
            }
            let now = LiveState::sample(&self.state, here.as_ref()).await;
            if now != latest {
                latest = now;
                let text = serde_json::to_string(&latest).unwrap_or_default();
                self.latest.send_replace(regatta::event("", &text));
            }
        }
    }

    /// Whether no one watches any more; the painter then rests, and what it showed is forgotten.
    fn stop_if_unused(&self) -> bool {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if self.latest.receiver_count() > 0 {
            return false;
        }
        *task = FeedTask::Idle;
        self.latest.send_replace(Bytes::new());
        true
    }
}

/// One client.
struct LiveSubscriber {
    latest: watch::Receiver<Bytes>,
    repeat_at: Instant,
}

impl EventSource for LiveSubscriber {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Ok(changed) = timeout_at(self.repeat_at, self.latest.changed()).await {
                changed.ok()?;
            }
            self.repeat_at = Instant::now() + REPEAT_AFTER;
            let event = self.latest.borrow_and_update().clone();
            if !event.is_empty() {
                return Some(event);
            }
        }
    }
}

/// The fleet at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct LiveState {
    /// Views of all visitors; none while Redis does not say.
    total: Option<i64>,
    /// Who listens to the news, on all machines; likewise. Every open page does.
    here: Option<u64>,
    /// This machine's slots in use.
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
    async fn sample(state: &FleetHandle, here: Option<&Presence>) -> Self {
        let slots = state.snapshot().slots;
        let total = state.page_views().await.ok();
        Self {
            total,
            // Of the time before, while Redis is away.
            here: total.and(here.and_then(Presence::count)),
            slots: slots.iter().filter(|slot| home::is_in_use(slot)).map(LiveSlot::from).collect(),
        }
    }
}

impl From<&SlotSnapshot> for LiveSlot {
    fn from(slot: &SlotSnapshot) -> Self {
        Self { slot: slot.slot, pid: slot.pid(), state: slot.state.name(), requests: slot.requests() }
    }
}
