//! A topic over a WebSocket: its messages to the client, and the client's messages to the topic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::broadcasts::{BroadcastMessage, MessageId, Subscription, SubscriptionEvent, TopicName};
use crate::http::services::stream::StreamServices;
use crate::http::streams::last_event_id::ResumePosition;
use crate::http::streams::websocket::client::SocketClient;
use crate::http::streams::websocket::message_rate::{MessageDecision, MessageRateLimiter};
use crate::http::streams::websocket::socket::{ClientMessage, CloseReason, LEAVING, TextSocket};

/// Most messages of one write.
const MAX_BATCH: usize = 64;

/// What a client sends.
#[derive(Debug, Deserialize)]
struct ClientFrame {
    message: String,
}

/// One client of a topic.
pub(crate) struct BroadcastSocket {
    pub(crate) services: Arc<StreamServices>,
    pub(crate) topic: TopicName,
    pub(crate) subscription: Subscription,
    pub(crate) position: ResumePosition,
    pub(crate) sender: Option<Arc<SocketClient>>,
}

impl BroadcastSocket {
    /// Runs until the client disconnects or is closed, or it is `leaving` because the worker drains.
    pub(crate) async fn run(mut self, mut web_socket: TextSocket, leaving: impl Future<Output = ()>) {
        let end = tokio::select! {
            // Also while something is being sent: a client that reads nothing must not delay the drain.
            biased;
            () = leaving => CloseReason::ByServer(CloseCode::Restart, LEAVING),
            end = self.run_until_closed(&mut web_socket) => end,
        };
        web_socket.close(end).await;
    }

    async fn run_until_closed(&mut self, web_socket: &mut TextSocket) -> CloseReason {
        match self.run_loop(web_socket).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn run_loop(
        &mut self,
        web_socket: &mut TextSocket,
    ) -> Result<std::convert::Infallible, CloseReason> {
        let settings = &self.services;
        let mut limiter = MessageRateLimiter::new(settings.websocket.max_messages_per_second, Instant::now());
        let interval = settings.broadcast.keep_alive_interval;
        let mut keep_alive = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answered = true;
        let gap = (self.position == ResumePosition::Unknown).then(|| self.gap_frame());
        web_socket.send([self.start_frame()].into_iter().chain(gap)).await?;
        loop {
            tokio::select! {
                received = web_socket.recv() => {
                    let message = received?;
                    answered = true;
                    self.on_client_message(web_socket, message, &mut limiter).await?;
                }
                event = self.subscription.next() => self.forward(web_socket, event).await?,
                _ = keep_alive.tick() => {
                    if !std::mem::take(&mut answered) {
                        return Err(CloseReason::ByServer(CloseCode::Policy, "no answer to a ping"));
                    }
                    web_socket.send([Message::Ping(bytes::Bytes::new())]).await?;
                }
            }
        }
    }

    /// Where the stream begins: without it a client that is cut off before the first message could not resume.
    fn start_frame(&self) -> Message {
        let after = self.last_id();
        Message::text(serde_json::json!({ "topic": self.topic.as_str(), "after": after }).to_string())
    }

    /// Where the stream goes on after a gap, for the same reason.
    fn gap_frame(&self) -> Message {
        Message::text(serde_json::json!({ "gap": true, "after": self.last_id() }).to_string())
    }

    fn last_id(&self) -> String {
        self.subscription.last_id().unwrap_or(MessageId::ZERO).to_string()
    }

    /// Handles what a client sent; pings and unrequested pongs count against its rate, too.
    async fn on_client_message(
        &self,
        web_socket: &mut TextSocket,
        received: ClientMessage,
        limiter: &mut MessageRateLimiter,
    ) -> Result<(), CloseReason> {
        match limiter.decide(Instant::now()) {
            MessageDecision::Accept => {}
            MessageDecision::Drop => return Ok(()),
            MessageDecision::Close => {
                return Err(CloseReason::ByServer(CloseCode::Policy, "too many messages"));
            }
            MessageDecision::Warn => {
                let max_per_second = self.services.websocket.max_messages_per_second;
                return web_socket
                    .send([error_frame(&format!(
                        "too many messages: send at most {max_per_second} a second"
                    ))])
                    .await;
            }
        }
        let ClientMessage::Text(text) = received else { return Ok(()) };
        let Ok(ClientFrame { message }) = serde_json::from_str(&text) else {
            return web_socket.send([error_frame("send {\"message\": \"…\"}")]).await;
        };
        if let Some(sender) = &self.sender
            && let Err(wait) = sender.charge(&self.services, message.len()).await
        {
            return web_socket.send([rate_limited_frame(wait)]).await;
        }
        match self.services.broadcast_hub.publish(&self.topic, &message).await {
            Ok(_) => Ok(()),
            Err(error) => web_socket.send([error_frame(&error.to_string())]).await,
        }
    }

    /// Sends an event, and with it those that are available.
    async fn forward(
        &mut self,
        web_socket: &mut TextSocket,
        first: SubscriptionEvent,
    ) -> Result<(), CloseReason> {
        let mut messages = Vec::new();
        let mut next = Some(first);
        while let Some(event) = next {
            match event {
                SubscriptionEvent::Message(message) => messages.push(message_frame(&message)),
                SubscriptionEvent::Gap => messages.push(self.gap_frame()),
                SubscriptionEvent::Lagged => {
                    web_socket.send(messages).await?;
                    return Err(CloseReason::ByServer(
                        CloseCode::Again,
                        "too slow: connect again after the last message",
                    ));
                }
            }
            let full = messages.len() >= MAX_BATCH;
            next = if full { None } else { self.subscription.try_next() };
        }
        web_socket.send(messages).await
    }
}

/// A message; its JSON is encoded once for all clients.
fn message_frame(message: &BroadcastMessage) -> Message {
    Message::Text(Utf8Bytes::try_from(message.json().clone()).unwrap_or_default())
}

/// The reply to a denied message: when the next one is allowed.
fn rate_limited_frame(wait: Duration) -> Message {
    let milliseconds = u32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
    let retry_after_seconds = f64::from(milliseconds) / 1e3;
    Message::text(
        serde_json::json!({ "error": "limited", "retry_after_seconds": retry_after_seconds }).to_string(),
    )
}

fn error_frame(what: &str) -> Message {
    Message::text(serde_json::json!({ "error": what }).to_string())
}
