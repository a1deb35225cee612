//! The fleet as it goes on, for the one who looks at the page: a stream of one JSON event a second at most, and while
//! nothing changes the last one again now and then.
//!
//! A worker looks at the fleet once a second, however many clients watch, and not at all while no one does.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::response::Response;
use axum::routing::get;
use regatta::EventSource;
use regatta::Here;
use regatta::Limit;
use regatta::SlotSnapshot;
use regatta::State;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::timeout_at;

use crate::app::broadcast::NEWS;
use crate::app::home;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// After so long without news the last is told again: scripts do not see comments, and a page that hears nothing for a
/// while longer knows that its connection is broken, whatever its browser believes.
const AGAIN: Duration = Duration::from_secs(15);

/// The route, with a scene of its own.
pub(super) fn routes(state: &State) -> Router<State> {
    let scene = Arc::new(Scene {
        state: state.clone(),
        shown: watch::Sender::default(),
        painter: Mutex::new(Painter::Rests),
    });
    Router::new().route("/live", get(live)).with_state(scene)
}

async fn live(_limit: Limit, Shared(scene): Shared<Arc<Scene>>) -> Response {
    scene.state.events(Watcher { shown: scene.watch(), again: Instant::now() + AGAIN })
}

/// What all watchers of this worker see.
struct Scene {
    state: State,
    /// The last event, as it goes over the wire; empty before the first.
    shown: watch::Sender<Bytes>,
    painter: Mutex<Painter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Painter {
    Works,
    Rests,
}

impl Scene {
    fn watch(self: &Arc<Self>) -> watch::Receiver<Bytes> {
        let mut painter = self.painter.lock().unwrap_or_else(PoisonError::into_inner);
        let mut watcher = self.shown.subscribe();
        if *painter == Painter::Rests {
            *painter = Painter::Works;
            tokio::spawn(Arc::clone(self).paint());
        }
        // The one who comes sees at once what the others see.
        watcher.mark_changed();
        watcher
    }

    async fn paint(self: Arc<Self>) {
        let mut pause = tokio::time::interval(PAUSE);
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // While it lives its worker asks once a second who listens.
        let here = self.state.broadcast().here(NEWS).ok();
        let mut seen = Seen::default();
        loop {
            pause.tick().await;
            if self.is_left() {
                return;
            }
            let now = Seen::now(&self.state, here.as_ref()).await;
            if now != seen {
                seen = now;
                let text = serde_json::to_string(&seen).unwrap_or_default();
                self.shown.send_replace(regatta::event("", &text));
            }
        }
    }

    /// Whether no one watches any more; the painter then rests, and what it showed is forgotten.
    fn is_left(&self) -> bool {
        let mut painter = self.painter.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shown.receiver_count() > 0 {
            return false;
        }
        *painter = Painter::Rests;
        self.shown.send_replace(Bytes::new());
        true
    }
}

/// One client.
struct Watcher {
    shown: watch::Receiver<Bytes>,
    again: Instant,
}

impl EventSource for Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Ok(changed) = timeout_at(self.again, self.shown.changed()).await {
                changed.ok()?;
            }
            self.again = Instant::now() + AGAIN;
            let event = self.shown.borrow_and_update().clone();
            if !event.is_empty() {
                return Some(event);
            }
        }
    }
}

/// The fleet at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Seen {
    /// Views of all visitors; none while Redis does not say.
    total: Option<i64>,
    /// Who listens to the news, on all machines; likewise. Every open page does.
    here: Option<u64>,
    /// This machine's slots in use.
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Slot {
    slot: usize,
    pid: u32,
    state: &'static str,
    requests: u64,
}

impl Seen {
    async fn now(state: &State, here: Option<&Here>) -> Self {
        let slots = state.fleet().slots;
        let total = state.views().await.ok();
        Self {
            total,
            // Of the time before, while Redis is away.
            here: total.and(here.and_then(Here::count)),
            slots: slots.iter().filter(|slot| home::is_in_use(slot)).map(Slot::from).collect(),
        }
    }
}

impl From<&SlotSnapshot> for Slot {
    fn from(slot: &SlotSnapshot) -> Self {
        Self { slot: slot.slot, pid: slot.pid(), state: slot.state.name(), requests: slot.requests() }
    }
}
