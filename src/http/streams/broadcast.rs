//! A topic's messages as a response of server-sent events.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;

use crate::broadcasts::{MessageId, Subscription, SubscriptionEvent};
use crate::http::services::stream::StreamServices;
use crate::http::standalone::connection::StandaloneConnection;
use crate::http::streams::last_event_id::ResumePosition;
use crate::http::streams::sse::{self, SseSource};
use crate::sse::SseEvent;

/// Messages may be missing.
const GAP_EVENT: &str = "gap";

/// The client fell too far behind, and its response ends.
const LAGGED_EVENT: &str = "lagged";

/// A subscription as a response, until the client disconnects or the worker drains.
pub(crate) fn respond(
    services: &StreamServices,
    subscription: Subscription,
    position: ResumePosition,
) -> Response {
    let phase = if position == ResumePosition::Unknown { EventPhase::Gap } else { EventPhase::Start };
    let events = BroadcastEvents { subscription, phase, _connection: services.standalone.clone() };
    sse::respond(events, &services.streams)
}

/// A subscription as events.
struct BroadcastEvents {
    subscription: Subscription,
    phase: EventPhase,
    /// Nothing comes without it.
    _connection: Option<Arc<StandaloneConnection>>,
}

enum EventPhase {
    /// The next event is `gap`.
    Gap,
    /// The next event is `start`: without it a client that is cut off before the first message could not resume.
    Start,
    /// Messages are sent.
    Streaming,
    /// `lagged` was sent.
    Finished,
}

impl SseSource for BroadcastEvents {
    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            EventPhase::Finished => None,
            EventPhase::Gap => {
                self.phase = EventPhase::Start;
                Some(flag_event(GAP_EVENT))
            }
            EventPhase::Start => {
                self.phase = EventPhase::Streaming;
                let id = self.subscription.last_id().unwrap_or(MessageId::ZERO);
                let id = id.to_string();
                // The browser keeps the id, and only data makes it an event that a script sees (§9.2.6).
                Some(SseEvent::default().name("start").id(&id).data(&id).to_bytes())
            }
            EventPhase::Streaming => Some(match self.subscription.next().await {
                SubscriptionEvent::Message(message) => message.frame().clone(),
                SubscriptionEvent::Gap => {
                    // Without it the client would get the same gap again if it connects again before the next message.
                    self.phase = EventPhase::Start;
                    flag_event(GAP_EVENT)
                }
                SubscriptionEvent::Lagged => {
                    self.phase = EventPhase::Finished;
                    flag_event(LAGGED_EVENT)
                }
            }),
        }
    }
}

/// An event that says nothing but its name.
fn flag_event(name: &str) -> Bytes {
    SseEvent::default().name(name).data(&format!("{{\"{name}\":true}}")).to_bytes()
}
