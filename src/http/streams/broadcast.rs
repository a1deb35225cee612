//! Broadcasts as an application sends and passes them on.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use tokio::sync::OwnedSemaphorePermit;

use crate::broadcast::{BroadcastHub, MessageId, Presence, Subscription, SubscriptionEvent, TopicName};
use crate::http::error::RequestError;
use crate::http::request_state::RequestState;
use crate::http::service::context::{FleetHandle, WorkerContext};
use crate::http::streams::last_event_id::LastEventId;
use crate::http::streams::sse;
use crate::http::streams::websocket::broadcast_socket::BroadcastSocket;
use crate::http::streams::websocket::client::SocketClient;
use crate::http::streams::websocket::handshake::WebSocketUpgrade;
use crate::http::streams::websocket::socket;

/// A client hears that messages were lost to it.
const GAP_EVENT: Bytes = Bytes::from_static(b"event: gap\ndata: {\"gap\":true}\n\n");

/// A client hears that it fell behind, and that its response ends for that.
const LAGGED_EVENT: Bytes = Bytes::from_static(b"event: slow\ndata: {\"slow\":true}\n\n");

/// Bytes of a client's JSON beside the message, and of ours.
const JSON_OVERHEAD: usize = 256;

/// Bytes that one byte of a message has at most in JSON (`\u0000`).
const ESCAPED_BYTE_MAX: usize = 6;

/// Messages to everybody who subscribes to a topic, on whichever worker of whichever machine; also an extractor.
///
/// ```no_run
/// use axum::extract::Query;
/// use axum::response::Response;
/// use axum::routing::{get, post};
/// use regatta::{Broadcast, Error, Resume, Upgrade};
///
/// async fn publish(broadcast: Broadcast, text: String) -> Result<String, Error> {
///     Ok(broadcast.publish("news", &text).await?.to_string())
/// }
///
/// async fn events(broadcast: Broadcast, resume: Resume) -> Result<Response, Error> {
///     broadcast.events("news", resume).await
/// }
///
/// async fn socket(upgrade: Upgrade, broadcast: Broadcast, resume: Resume) -> Result<Response, Error> {
///     broadcast.socket(upgrade, "news", resume).await
/// }
///
/// regatta::Fleet::new(|fleet: regatta::State| {
///     let routes = axum::Router::new().route("/publish", post(publish));
///     routes.route("/events", get(events)).route("/ws", get(socket)).with_state(fleet)
/// });
/// ```
#[derive(Debug, Clone)]
pub struct Broadcast {
    core: Arc<WorkerContext>,
    /// Whose messages over a WebSocket are counted together; none outside a request.
    sender: Option<Arc<SocketClient>>,
}

impl Broadcast {
    fn hub(&self) -> &BroadcastHub {
        &self.core.broadcast_hub
    }

    /// Sends a message to all who subscribe to the topic; those who are away for a moment find it when they come again.
    ///
    /// Costs a round trip. The id says where the message stands among all of its topic.
    ///
    /// # Errors
    /// [`Error::Topic`], [`Error::MessageTooLarge`]; [`Error::Unavailable`]: it is not known whether it was sent.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was sent.
    pub async fn publish(&self, topic: &str, text: &str) -> Result<MessageId, RequestError> {
        Ok(self.hub().publish(&TopicName::parse(topic)?, text).await?)
    }

    /// Hears a topic's messages from now on, or from those after a given one.
    ///
    /// # Errors
    /// [`Error::Topic`]; [`Error::Unavailable`]: as many subscribe as this worker takes, or Redis, which has the
    /// messages that are asked for, is away.
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

    /// How many subscribe to a topic, on all workers of all machines; asked for once a second while the value lives.
    ///
    /// # Errors
    /// [`Error::Topic`].
    pub fn presence(&self, topic: &str) -> Result<Presence, RequestError> {
        Ok(self.hub().presence(&TopicName::parse(topic)?))
    }

    /// A topic's messages as a response of server-sent events, until the client or the worker leaves.
    ///
    /// Each has its id, with which a browser comes again by itself. An event `start` comes first and says as its data
    /// after which message it begins, for scripts that open a stream anew; an event `gap`, with a `start` behind it, says that messages in between
    /// are lost, `slow` that the client fell too far behind; with it the response ends.
    ///
    /// # Errors
    /// As for [`Self::subscribe`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn sse(&self, topic: &str, last_event_id: LastEventId) -> Result<Response, RequestError> {
        let subscription = self.subscribe(topic, last_event_id).await?;
        let phase = if last_event_id == LastEventId::Unknown { EventPhase::Gap } else { EventPhase::Start };
        let heartbeat = self.core.config.broadcast.keep_alive_interval;
        Ok(sse::respond(BroadcastEvents { subscription, phase }, heartbeat, &self.core.drain))
    }

    /// A topic over a WebSocket, until the client or the worker leaves (1012).
    ///
    /// The client gets `{"topic": …, "after": …}` first, so that it can come again even if no message came; then
    /// `{"id": …, "topic": …, "message": …}`, `{"gap": true, "after": …}` where messages are lost, and `{"error": …}`
    /// if one of its own was not taken; it sends `{"message": …}`. One that falls too far behind is told to come again
    /// (1013). Its messages are charged to `websocket.policy`; one that is denied is answered
    /// `{"error": "limited", "retry_ms": …}`. There is no other answer to what it sends: what it has not seen come back when the socket ends, it sends
    /// again.
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
        let config = &self.core.config;
        let socket_config = socket::websocket_config(
            config.websocket.max_message_size,
            config.broadcast.max_message_size.saturating_mul(ESCAPED_BYTE_MAX) + JSON_OVERHEAD,
        );
        let (core, topic) = (Arc::clone(&self.core), TopicName::parse(topic)?);
        let socket =
            BroadcastSocket { core, topic, subscription, last_event_id, sender: self.sender.clone() };
        Ok(upgrade.on_upgrade(socket_config, |web_socket| socket.run(web_socket)))
    }
}

impl FleetHandle {
    /// This worker's broadcasts, for code outside a handler; handlers name [`Broadcast`].
    pub fn broadcast(&self) -> Broadcast {
        Broadcast { core: Arc::clone(&self.0), sender: None }
    }

    /// A response of server-sent events from a source of one's own, until the source, the client or the worker ends it.
    ///
    /// A worker has as many places for them as `broadcast.max_subscribers` says, beside those of broadcasts; whoever finds
    /// none gets 503 ([`Error::Crowded`]).
    pub fn events(&self, source: impl sse::SseSource) -> Response {
        let Ok(permit) = Arc::clone(&self.0.stream_permits).try_acquire_owned() else {
            return RequestError::TooManySubscribers.into_response();
        };
        sse::respond(
            PermittedSource { source, _permit: permit },
            self.0.config.broadcast.keep_alive_interval,
            &self.0.drain,
        )
    }
}

impl<S: Sync> FromRequestParts<S> for Broadcast {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        let state = RequestState::from_extensions(&parts.extensions).ok_or(RequestError::OutsideFleet)?;
        Ok(Self {
            core: Arc::clone(&state.core),
            sender: Some(Arc::new(SocketClient::from_request_state(state))),
        })
    }
}

/// A source that keeps a place as long as its response goes on.
struct PermittedSource<S> {
    source: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: sse::SseSource> sse::SseSource for PermittedSource<S> {
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
    /// The client has to hear of a gap first.
    Gap,
    /// It has to hear where it begins, or goes on after a gap: were it cut off before the first message, it would come again as a stranger.
    Start,
    /// Messages are passed on.
    Streaming,
    /// It fell behind and has been told.
    Finished,
}

impl sse::SseSource for BroadcastEvents {
    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            EventPhase::Finished => None,
            EventPhase::Gap => {
                self.phase = EventPhase::Start;
                Some(GAP_EVENT)
            }
            EventPhase::Start => {
                self.phase = EventPhase::Streaming;
                let id = self.subscription.last_id().unwrap_or(MessageId::ZERO);
                // The browser keeps the id, and only data makes it an event that a script sees (§9.2.6).
                Some(Bytes::from(format!("event: start\nid: {id}\ndata: {id}\n\n")))
            }
            EventPhase::Streaming => Some(match self.subscription.next().await {
                SubscriptionEvent::Message(message) => message.frame().clone(),
                SubscriptionEvent::Gap => {
                    // Else it would hear of the same gap whenever it comes again before the next message.
                    self.phase = EventPhase::Start;
                    GAP_EVENT
                }
                SubscriptionEvent::Lagged => {
                    self.phase = EventPhase::Finished;
                    LAGGED_EVENT
                }
            }),
        }
    }
}
