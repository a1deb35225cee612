//! Topics: published to, subscribed to, and sent to clients as server-sent events or over a WebSocket.

use std::fmt;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::request::Parts;
use serde::Serialize;

use crate::broadcasts::{self, BroadcastHub, MessageId, TopicName};
use crate::facade::broadcast::error::{Error, InvalidTopic};
use crate::facade::broadcast::presence::Presence;
use crate::facade::broadcast::subscription::Subscription;
use crate::facade::error::Error as AnyError;
use crate::http::request_scope::RequestScope;
use crate::http::services::stream::StreamServices;
use crate::http::standalone::redis::Redis;
use crate::http::streams::broadcast;
use crate::http::streams::last_event_id::{LastEventId, ResumePosition};
use crate::http::streams::websocket::broadcast_socket::BroadcastSocket;
use crate::http::streams::websocket::client::SocketClient;
use crate::http::streams::websocket::handshake::WebSocketUpgrade;

/// Bytes of JSON around a message, in either direction.
const JSON_OVERHEAD: usize = 256;

/// Bytes that one byte of a message has at most in JSON (`\u0000`).
const ESCAPED_BYTE_MAX: usize = 6;

/// Messages to all subscribers, on all workers of all instances; also an extractor.
///
/// ```no_run
/// use axum::response::Response;
/// use axum::routing::{get, post};
/// use regatta::broadcast::Broadcast;
/// use regatta::ws::WebSocketUpgrade;
/// use regatta::{Error, LastEventId};
///
/// async fn publish(broadcast: Broadcast, text: String) -> Result<String, Error> {
///     Ok(broadcast.topic("news")?.publish(&text).await?.to_string())
/// }
///
/// async fn events(broadcast: Broadcast, last: LastEventId) -> Result<Response, Error> {
///     Ok(broadcast.topic("news")?.sse(last).await?)
/// }
///
/// async fn socket(upgrade: WebSocketUpgrade, broadcast: Broadcast, last: LastEventId) -> Result<Response, Error> {
///     Ok(broadcast.topic("news")?.socket(upgrade, last).await?)
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
    /// Broadcasts over this connection, for what is no request.
    pub fn new(redis: &Redis) -> Self {
        Self::new_in(&redis.services().streams)
    }

    pub(crate) fn new_in(services: &Arc<StreamServices>) -> Self {
        Self { services: Arc::clone(services), sender: None }
    }

    /// The topic of this name: 1 to 64 of `A–Z a–z 0–9 - _ . : /`.
    ///
    /// # Errors
    /// [`InvalidTopic`]: the name has another character, or none.
    pub fn topic(&self, name: &str) -> Result<Topic, InvalidTopic> {
        let name = TopicName::parse(name)?;
        Ok(Topic { services: Arc::clone(&self.services), sender: self.sender.clone(), name })
    }
}

/// One stream of messages, each once and in order.
///
/// ```no_run
/// use axum::Router;
/// use axum::extract::State;
/// use axum::response::Response;
/// use axum::routing::get;
/// use regatta::broadcast::{Error, InvalidTopic, Topic};
/// use regatta::{FleetHandle, LastEventId};
///
/// fn routes(fleet: &FleetHandle) -> Result<Router, InvalidTopic> {
///     let room = fleet.broadcast().topic("room")?;
///     Ok(Router::new().route("/room", get(hear).post(say)).with_state(room))
/// }
///
/// async fn hear(State(room): State<Topic>, last: LastEventId) -> Result<Response, Error> {
///     room.sse(last).await
/// }
///
/// async fn say(State(room): State<Topic>, text: String) -> Result<String, Error> {
///     Ok(room.publish(&text).await?.to_string())
/// }
/// # let _ = routes;
/// ```
#[derive(Clone)]
pub struct Topic {
    services: Arc<StreamServices>,
    sender: Option<Arc<SocketClient>>,
    name: TopicName,
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Topic {
    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    fn hub(&self) -> &BroadcastHub {
        if let Some(connection) = &self.services.standalone {
            connection.ensure_hub_started(&self.services.broadcast_hub);
        }
        &self.services.broadcast_hub
    }

    /// Subscribes, and says from which position on.
    async fn open(&self, after: &LastEventId) -> Result<(broadcasts::Subscription, ResumePosition), Error> {
        let position = after.position();
        let subscription = self.hub().subscribe(&self.name, position.id()).await?;
        Ok((subscription, position))
    }

    /// Sends a message to all subscribers; clients that connect again find what they missed.
    ///
    /// Costs a round trip. The id is the message's position in its topic.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Redis`], after which it may have been sent.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was sent.
    pub async fn publish(&self, text: &str) -> Result<MessageId, Error> {
        Ok(self.hub().publish(&self.name, text).await?)
    }

    /// Sends a value as JSON, see [`Topic::publish`].
    ///
    /// # Errors
    /// [`Error::Json`]: it has no form as JSON; else as [`Topic::publish`].
    ///
    /// # Cancel safety
    /// As [`Topic::publish`].
    pub async fn publish_json<T: Serialize + ?Sized>(&self, value: &T) -> Result<MessageId, Error> {
        // Written before the first await, so that the value need not be `Sync`.
        let text = serde_json::to_string(value).map_err(|error| Error::Json(error.into()));
        self.publish(&text?).await
    }

    /// Subscribes to the messages from now on, or to those after a given id.
    ///
    /// # Errors
    /// [`Error::TooManySubscribers`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn subscribe(&self, after: LastEventId) -> Result<Subscription, Error> {
        let (subscription, _) = self.open(&after).await?;
        Ok(Subscription::new(subscription, self.services.standalone.clone()))
    }

    /// The messages as a response of server-sent events, until the client disconnects or the worker drains.
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
    pub async fn sse(&self, after: LastEventId) -> Result<Response, Error> {
        let (subscription, position) = self.open(&after).await?;
        Ok(broadcast::respond(&self.services, subscription, position))
    }

    /// The topic over a WebSocket, until the client disconnects or the worker drains (1012).
    ///
    /// The client gets `{"topic": …, "after": …}` first, so that it can resume even if no message came; then
    /// `{"id": …, "topic": …, "message": …}`, `{"gap": true, "after": …}` where messages may be missing, and
    /// `{"error": …}` if one of its own was rejected; it sends `{"message": …}`. A client that falls too far behind is
    /// closed with 1013. Its messages are charged to `websocket.policy`; the reply to a denied one is
    /// `{"error": "limited", "retry_after_seconds": …}`. An accepted message gets no other reply than the broadcast itself: what
    /// has not come back when the socket ends, the client sends again.
    ///
    /// # Errors
    /// As for [`Self::subscribe`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn socket(&self, upgrade: WebSocketUpgrade, after: LastEventId) -> Result<Response, Error> {
        let services = Arc::clone(&self.services);
        if let Some(refusal) = upgrade.refuse_foreign_page() {
            return Ok(refusal);
        }
        let (subscription, position) = self.open(&after).await?;
        let max_sent = services.broadcast.max_message_size.saturating_mul(ESCAPED_BYTE_MAX) + JSON_OVERHEAD;
        let (topic, sender) = (self.name.clone(), self.sender.clone());
        let socket = BroadcastSocket { services, topic, subscription, position, sender };
        Ok(upgrade.on_topic_upgrade(max_sent, |web_socket, leaving| socket.run(web_socket, leaving)))
    }

    /// How many subscribe, on all workers of all instances; updated once a second while the value lives.
    pub fn presence(&self) -> Presence {
        Presence::new(self.hub().presence(&self.name), self.services.standalone.clone())
    }
}

impl<S: Sync> FromRequestParts<S> for Broadcast {
    type Rejection = AnyError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, AnyError> {
        let scope = RequestScope::from_parts(parts)?;
        Ok(Self {
            services: Arc::clone(&scope.services.streams),
            sender: Some(Arc::new(SocketClient::from_request_state(scope.state()))),
        })
    }
}
