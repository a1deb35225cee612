//! Broadcasts in an application: published, and sent to clients as server-sent events or over a WebSocket.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use tokio::sync::OwnedSemaphorePermit;

use crate::broadcasts::{BroadcastHub, MessageId, Presence, Subscription, SubscriptionEvent, TopicName};
use crate::http::error::RequestError;
use crate::http::fleet_handle::FleetHandle;
use crate::http::request_scope::RequestScope;
use crate::http::services::stream::StreamServices;
use crate::http::streams::last_event_id::LastEventId;
use crate::http::streams::sse::{self, SseSource};
use crate::http::streams::websocket::broadcast_socket::BroadcastSocket;
use crate::http::streams::websocket::client::SocketClient;
use crate::http::streams::websocket::handshake::WebSocketUpgrade;
use crate::http::streams::websocket::socket;
use crate::sse::SseEvent;

/// Messages may be missing.
const GAP_EVENT: &str = "gap";

/// The client fell too far behind, and its response ends.
const LAGGED_EVENT: &str = "lagged";

/// Bytes of JSON around a message, in either direction.
const JSON_OVERHEAD: usize = 256;

/// Bytes that one byte of a message has at most in JSON (`\u0000`).
const ESCAPED_BYTE_MAX: usize = 6;

/// Messages to all subscribers of a topic, on all workers of all instances; also an extractor.
///
/// ```no_run
/// use axum::extract::Query;
/// use axum::response::Response;
/// use axum::routing::{get, post};
/// use regatta::{Broadcast, LastEventId, RequestError, WebSocketUpgrade};
///
/// async fn publish(broadcast: Broadcast, text: String) -> Result<String, RequestError> {
///     Ok(broadcast.publish("news", &text).await?.to_string())
/// }
///
/// async fn events(broadcast: Broadcast, last_event_id: LastEventId) -> Result<Response, RequestError> {
///     broadcast.sse("news", last_event_id).await
/// }
///
/// async fn socket(
///     upgrade: WebSocketUpgrade,
///     broadcast: Broadcast,
///     last_event_id: LastEventId,
/// ) -> Result<Response, RequestError> {
///     broadcast.socket(upgrade, "news", last_event_id).await
/// }
///
/// async fn app(_: regatta::Context) -> axum::Router {
///     let routes = axum::Router::new().route("/publish", post(publish));
///     routes.route("/events", get(events)).route("/ws", get(socket))
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Broadcast {
    services: Arc<StreamServices>,
    /// The client whose messages over WebSockets share a limit; `None` outside a request.
    sender: Option<Arc<SocketClient>>,
}

impl Broadcast {
    fn hub(&self) -> &BroadcastHub {
        &self.services.broadcast_hub
    }

    /// Sends a message to all subscribers of the topic; clients that connect again find what they missed.
    ///
    /// Costs a round trip. The id is the message's position in its topic.
    ///
    /// # Errors
    /// [`RequestError`]: an invalid topic, a message that is too large, or Redis is unavailable; then it is unknown
    /// whether the message was sent.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was sent.
    pub async fn publish(&self, topic: &str, text: &str) -> Result<MessageId, RequestError> {
        Ok(self.hub().publish(&TopicName::parse(topic)?, text).await?)
    }

    /// Subscribes to a topic's messages from now on, or from the one after a given id.
    ///
    /// # Errors
    /// [`RequestError`]: an invalid topic, too many subscribers in this worker, or older messages are requested while
    /// Redis is unavailable.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn subscribe(
        &self,
        topic: &str,
        last_event_id: LastEventId,
    ) -> Result<Subscription, RequestError> {
        Ok(self.hub().subscribe(&TopicName::parse(topic)?, last_event_id.id()).await?)
    }

    /// How many subscribe to a topic, on all workers of all instances; updated once a second while the value lives.
    ///
    /// # Errors
    /// [`RequestError`]: an invalid topic.
    pub fn presence(&self, topic: &str) -> Result<Presence, RequestError> {
        Ok(self.hub().presence(&TopicName::parse(topic)?))
    }

    /// A topic's messages as a response of server-sent events, until the client disconnects or the worker drains.
    ///
    /// Each message has its id, with which browsers resume by themselves. The first event is `start`: its data is the id
    /// after which the stream begins, for scripts that open a stream anew. `gap`, followed by a `start`, means that
    /// messages may be missing; `lagged` that the client fell too far behind, and the response ends with it.
    ///
    /// # Errors
    /// As for [`Self::subscribe`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn sse(&self, topic: &str, last_event_id: LastEventId) -> Result<Response, RequestError> {
        let subscription = self.subscribe(topic, last_event_id).await?;
        let phase = if last_event_id == LastEventId::Unknown { EventPhase::Gap } else { EventPhase::Start };
        let heartbeat = self.services.broadcast.keep_alive_interval;
        Ok(sse::respond(BroadcastEvents { subscription, phase }, heartbeat, &self.services.drain))
    }

    /// A topic over a WebSocket, until the client disconnects or the worker drains (1012).
    ///
    /// The client gets `{"topic": …, "after": …}` first, so that it can resume even if no message came; then
    /// `{"id": …, "topic": …, "message": …}`, `{"gap": true, "after": …}` where messages may be missing, and
    /// `{"error": …}` if one of its own was rejected; it sends `{"message": …}`. A client that falls too far behind is
    /// closed with 1013. Its messages are charged to `websocket.policy`; the reply to a denied one is
    /// `{"error": "limited", "retry_ms": …}`. An accepted message gets no other reply than the broadcast itself: what
    /// has not come back when the socket ends, the client sends again.
    ///
    /// # Errors
    /// As for [`Self::subscribe`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn socket(
        &self,
        upgrade: WebSocketUpgrade,
        topic: &str,
        last_event_id: LastEventId,
    ) -> Result<Response, RequestError> {
        let subscription = self.subscribe(topic, last_event_id).await?;
        let config = &self.services;
        let socket_config = socket::websocket_config(
            config.websocket.max_message_size,
            config.broadcast.max_message_size.saturating_mul(ESCAPED_BYTE_MAX) + JSON_OVERHEAD,
        );
        let (services, topic) = (Arc::clone(&self.services), TopicName::parse(topic)?);
        let socket =
            BroadcastSocket { services, topic, subscription, last_event_id, sender: self.sender.clone() };
        Ok(upgrade.on_upgrade(socket_config, |web_socket| socket.run(web_socket)))
    }
}

impl FleetHandle {
    /// This worker's broadcasts, for code outside a handler; handlers extract [`Broadcast`].
    pub fn broadcast(&self) -> Broadcast {
        Broadcast { services: Arc::clone(&self.0.streams), sender: None }
    }

    /// A response of server-sent events from any source, until the source, the client or the worker ends it.
    ///
    /// A worker serves at most `broadcast.max_subscribers` of them, beside those of broadcasts; the response beyond that is
    /// 503.
    pub fn events(&self, source: impl SseSource) -> Response {
        let Ok(permit) = Arc::clone(&self.0.streams.stream_permits).try_acquire_owned() else {
            return RequestError::TooManySubscribers.into_response();
        };
        sse::respond(
            PermittedSource { source, _permit: permit },
            self.0.streams.broadcast.keep_alive_interval,
            &self.0.streams.drain,
        )
    }
}

impl<S: Sync> FromRequestParts<S> for Broadcast {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        let scope = RequestScope::from_parts(parts)?;
        Ok(Self {
            services: Arc::clone(&scope.services.streams),
            sender: Some(Arc::new(SocketClient::from_request_state(scope.state()))),
        })
    }
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

/// A subscription as events.
struct BroadcastEvents {
    subscription: Subscription,
    phase: EventPhase,
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
