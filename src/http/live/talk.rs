//! What is said over a WebSocket of the broadcasts: a topic's messages to the client, and the client's to the topic.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::broadcast;
use crate::broadcast::Event;
use crate::broadcast::Id;
use crate::broadcast::Subscription;
use crate::broadcast::Topic;
use crate::http::live::allowance::Allowance;
use crate::http::live::allowance::Verdict;
use crate::http::live::resume::Resume;
use crate::http::live::sender::Sender;
use crate::http::live::wire::End;
use crate::http::live::wire::Heard;
use crate::http::live::wire::Wire;
use crate::http::state::Core;

/// Most messages that are sent in one go.
const AT_ONCE: usize = 64;

/// What a client sends.
#[derive(Debug, Deserialize)]
struct Said {
    message: String,
}

/// One client's part.
pub(super) struct Talk {
    pub(super) core: Arc<Core>,
    pub(super) topic: Topic,
    pub(super) subscription: Subscription,
    pub(super) resume: Resume,
    pub(super) sender: Option<Arc<Sender>>,
}

impl Talk {
    /// Goes on until the client leaves, has to leave, or the worker does.
    pub(super) async fn run(mut self, mut wire: Wire) {
        let phase = self.core.phase.clone();
        let end = tokio::select! {
            // Also while something is being sent: a client that takes nothing must not hold up a worker that leaves.
            biased;
            () = phase.leaving() => End::Ours(CloseCode::Restart, "this worker leaves: connect again"),
            end = self.converse(&mut wire) => end,
        };
        wire.end(end).await;
    }

    async fn converse(&mut self, wire: &mut Wire) -> End {
        match self.take_turns(wire).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn take_turns(&mut self, wire: &mut Wire) -> Result<std::convert::Infallible, End> {
        let settings = &self.core.config;
        let mut allowance = Allowance::new(settings.websocket.messages_per_second, Instant::now());
        let heartbeat = settings.broadcast.heartbeat;
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + heartbeat, heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answered = true;
        let gap = (self.resume == Resume::Unknown).then(|| self.gap());
        wire.say([self.greeting()].into_iter().chain(gap)).await?;
        loop {
            tokio::select! {
                heard = wire.hear() => {
                    let heard = heard?;
                    answered = true;
                    self.take(wire, heard, &mut allowance).await?;
                }
                event = self.subscription.next() => self.pass_on(wire, event).await?,
                _ = beat.tick() => {
                    if !std::mem::take(&mut answered) {
                        return Err(End::Ours(CloseCode::Policy, "no answer to a ping"));
                    }
                    wire.say([Message::Ping(bytes::Bytes::new())]).await?;
                }
            }
        }
    }

    /// Where the client begins: were it cut off before the first message, it would come again as a stranger.
    fn greeting(&self) -> Message {
        let after = self.after();
        Message::text(serde_json::json!({ "topic": self.topic.as_str(), "after": after }).to_string())
    }

    /// Where it goes on after a gap, for the same reason.
    fn gap(&self) -> Message {
        Message::text(serde_json::json!({ "gap": true, "after": self.after() }).to_string())
    }

    fn after(&self) -> String {
        self.subscription.last().unwrap_or(Id::ZERO).to_string()
    }

    /// Deals with what a client sent; pings and answers that nobody asked for count, too.
    async fn take(&self, wire: &mut Wire, heard: Heard, allowance: &mut Allowance) -> Result<(), End> {
        match allowance.take(Instant::now()) {
            Verdict::Taken => {}
            Verdict::Ignored => return Ok(()),
            Verdict::Close => return Err(End::Ours(CloseCode::Policy, "too many messages")),
            Verdict::Tell => {
                let most = self.core.config.websocket.messages_per_second;
                return wire.say([fault(&format!("too many messages: send at most {most} a second"))]).await;
            }
        }
        let Heard::Text(text) = heard else { return Ok(()) };
        let Ok(Said { message }) = serde_json::from_str(&text) else {
            return wire.say([fault("send {\"message\": \"…\"}")]).await;
        };
        if let Some(sender) = &self.sender
            && let Err(wait) = sender.charge(&self.core, message.len()).await
        {
            return wire.say([limited(wait)]).await;
        }
        match self.core.broadcasts.publish(&self.topic, &message).await {
            Ok(_) => Ok(()),
            Err(error) => wire.say([fault(&error.to_string())]).await,
        }
    }

    /// Sends an event, and with it those that are at hand.
    async fn pass_on(&mut self, wire: &mut Wire, first: Event) -> Result<(), End> {
        let mut messages = Vec::new();
        let mut next = Some(first);
        while let Some(event) = next {
            match event {
                Event::Message(message) => messages.push(told(&message)),
                Event::Gap => messages.push(self.gap()),
                Event::Slow => {
                    wire.say(messages).await?;
                    return Err(End::Ours(
                        CloseCode::Again,
                        "too slow: connect again after the last message",
                    ));
                }
            }
            let full = messages.len() >= AT_ONCE;
            next = if full { None } else { self.subscription.try_next() };
        }
        wire.say(messages).await
    }
}

/// What all clients get of it is made once.
fn told(message: &broadcast::Message) -> Message {
    Message::Text(Utf8Bytes::try_from(message.json().clone()).unwrap_or_default())
}

/// A message that was not taken, and when the next one may be.
fn limited(wait: Duration) -> Message {
    let retry_ms = wait.as_micros().div_ceil(1000);
    Message::text(serde_json::json!({ "error": "limited", "retry_ms": retry_ms }).to_string())
}

fn fault(what: &str) -> Message {
    Message::text(serde_json::json!({ "error": what }).to_string())
}
