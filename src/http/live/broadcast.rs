//! Broadcasts as an application sends and passes them on.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use tokio::sync::OwnedSemaphorePermit;

use crate::broadcast::Event;
use crate::broadcast::Here;
use crate::broadcast::Hub;
use crate::broadcast::Id;
use crate::broadcast::Subscription;
use crate::broadcast::Topic;
use crate::http::error::Error;
use crate::http::exchange::Exchange;
use crate::http::live::handshake::Upgrade;
use crate::http::live::resume::Resume;
use crate::http::live::sender::Sender;
use crate::http::live::sse;
use crate::http::live::talk::Talk;
use crate::http::live::wire;
use crate::http::state::Core;
use crate::http::state::State;

/// A client hears that messages were lost to it.
const GAP: Bytes = Bytes::from_static(b"event: gap\ndata: {\"gap\":true}\n\n");

/// A client hears that it fell behind, and that its response ends for that.
const SLOW: Bytes = Bytes::from_static(b"event: slow\ndata: {\"slow\":true}\n\n");

/// Bytes of a client's JSON beside the message, and of ours.
const AROUND: usize = 256;

/// Bytes that one byte of a message has at most in JSON (`\u0000`).
const ESCAPED: usize = 6;

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
    core: Arc<Core>,
    /// Whose messages over a WebSocket are counted together; none outside a request.
    sender: Option<Arc<Sender>>,
}

impl Broadcast {
    fn hub(&self) -> &Hub {
        &self.core.broadcasts
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
    pub async fn publish(&self, topic: &str, text: &str) -> Result<Id, Error> {
        Ok(self.hub().publish(&Topic::parse(topic)?, text).await?)
    }

    /// Hears a topic's messages from now on, or from those after a given one.
    ///
    /// # Errors
    /// [`Error::Topic`]; [`Error::Unavailable`]: as many subscribe as this worker takes, or Redis, which has the
    /// messages that are asked for, is away.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn subscribe(&self, topic: &str, resume: Resume) -> Result<Subscription, Error> {
        Ok(self.hub().subscribe(&Topic::parse(topic)?, resume.id()).await?)
    }

    /// How many subscribe to a topic, on all workers of all machines; asked for once a second while the value lives.
    ///
    /// # Errors
    /// [`Error::Topic`].
    pub fn here(&self, topic: &str) -> Result<Here, Error> {
        Ok(self.hub().here(&Topic::parse(topic)?))
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
    pub async fn events(&self, topic: &str, resume: Resume) -> Result<Response, Error> {
        let subscription = self.subscribe(topic, resume).await?;
        let stage = if resume == Resume::Unknown { Stage::Gap } else { Stage::Begin };
        let heartbeat = self.core.config.broadcast.heartbeat;
        Ok(sse::respond(Messages { subscription, stage }, heartbeat, &self.core.phase))
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
    pub async fn socket(&self, upgrade: Upgrade, topic: &str, resume: Resume) -> Result<Response, Error> {
        let subscription = self.subscribe(topic, resume).await?;
        let settings = &self.core.config;
        let config = wire::config(
            settings.websocket.message_limit,
            settings.broadcast.message_limit.saturating_mul(ESCAPED) + AROUND,
        );
        let (core, topic) = (Arc::clone(&self.core), Topic::parse(topic)?);
        let talk = Talk { core, topic, subscription, resume, sender: self.sender.clone() };
        Ok(upgrade.answer(config, |wire| talk.run(wire)))
    }
}

impl State {
    /// This worker's broadcasts, for code outside a handler; handlers name [`Broadcast`].
    pub fn broadcast(&self) -> Broadcast {
        Broadcast { core: Arc::clone(&self.0), sender: None }
    }

    /// A response of server-sent events from a source of one's own, until the source, the client or the worker ends it.
    ///
    /// A worker has as many places for them as `broadcast.subscribers` says, beside those of broadcasts; whoever finds
    /// none gets 503 ([`Error::Crowded`]).
    pub fn events(&self, source: impl sse::Source) -> Response {
        let Ok(seat) = Arc::clone(&self.0.seats).try_acquire_owned() else {
            return Error::Crowded.into_response();
        };
        sse::respond(Seated { source, _seat: seat }, self.0.config.broadcast.heartbeat, &self.0.phase)
    }
}

impl<S: Sync> FromRequestParts<S> for Broadcast {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let exchange = Exchange::of(&parts.extensions).ok_or(Error::NoFleet)?;
        Ok(Self { core: Arc::clone(&exchange.core), sender: Some(Arc::new(Sender::of(exchange))) })
    }
}

/// A source that keeps a place as long as its response goes on.
struct Seated<S> {
    source: S,
    _seat: OwnedSemaphorePermit,
}

impl<S: sse::Source> sse::Source for Seated<S> {
    async fn next(&mut self) -> Option<Bytes> {
        self.source.next().await
    }
}

/// A subscription as events.
struct Messages {
    subscription: Subscription,
    stage: Stage,
}

enum Stage {
    /// The client has to hear of a gap first.
    Gap,
    /// It has to hear where it begins, or goes on after a gap: were it cut off before the first message, it would come again as a stranger.
    Begin,
    /// Messages are passed on.
    Open,
    /// It fell behind and has been told.
    Over,
}

impl sse::Source for Messages {
    async fn next(&mut self) -> Option<Bytes> {
        match self.stage {
            Stage::Over => None,
            Stage::Gap => {
                self.stage = Stage::Begin;
                Some(GAP)
            }
            Stage::Begin => {
                self.stage = Stage::Open;
                let id = self.subscription.last().unwrap_or(Id::ZERO);
                // The browser keeps the id, and only data makes it an event that a script sees (§9.2.6).
                Some(Bytes::from(format!("event: start\nid: {id}\ndata: {id}\n\n")))
            }
            Stage::Open => Some(match self.subscription.next().await {
                Event::Message(message) => message.frame().clone(),
                Event::Gap => {
                    // Else it would hear of the same gap whenever it comes again before the next message.
                    self.stage = Stage::Begin;
                    GAP
                }
                Event::Slow => {
                    self.stage = Stage::Over;
                    SLOW
                }
            }),
        }
    }
}
