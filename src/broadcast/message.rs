//! A message, and its forms on the wire, each made once however many clients get it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::Serialize;

use crate::broadcast::id::MessageId;
use crate::broadcast::sequencer::{MemorySize, SequencedMessage};
use crate::broadcast::topic::TopicName;
use crate::redis::broadcast_commands::StreamEntry;
use crate::sse::SseEvent;

/// What a message takes beside its text, about, bytes.
const OVERHEAD: usize = 256;

/// A message of a topic.
pub struct BroadcastMessage {
    topic: TopicName,
    id: MessageId,
    text: Box<str>,
    frame: OnceLock<Bytes>,
    json: OnceLock<Bytes>,
}

/// A message in JSON.
#[derive(Serialize)]
struct MessageJson<'a> {
    id: String,
    topic: &'a str,
    message: &'a str,
}

impl BroadcastMessage {
    /// A message that Redis gave this id.
    pub fn new(topic: &TopicName, id: MessageId, text: &str) -> Self {
        let (frame, json) = (OnceLock::new(), OnceLock::new());
        Self { topic: topic.clone(), id, text: text.into(), frame, json }
    }

    /// What lies in a stream; without a body if it is no message.
    pub(super) fn sequenced(topic: &TopicName, stored: &StreamEntry) -> SequencedMessage<Option<Arc<Self>>> {
        let id = stored.id.into();
        let body = stored.text.as_deref().map(|text| Arc::new(Self::new(topic, id, text)));
        SequencedMessage { before: stored.previous.into(), id, body }
    }

    /// Its topic.
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Its id.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Its text, as it was published.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its event in a stream of server-sent events. An end of a line of whatever kind arrives there as LF.
    pub fn frame(&self) -> Bytes {
        let write = || SseEvent::default().id(&self.id.to_string()).data(&self.text).to_bytes();
        self.frame.get_or_init(write).clone()
    }

    /// `{"id": …, "topic": …, "message": …}`.
    pub fn json(&self) -> Bytes {
        let write = || {
            let form =
                MessageJson { id: self.id.to_string(), topic: self.topic.as_str(), message: &self.text };
            // Texts and nothing else: there is nothing that could not be written.
            serde_json::to_vec(&form).unwrap_or_default().into()
        };
        self.json.get_or_init(write).clone()
    }

    /// Bytes that it takes in memory, about, all its forms included.
    pub(super) fn weight(&self) -> usize {
        weight(self.text.len())
    }
}

impl MemorySize for Option<Arc<BroadcastMessage>> {
    fn memory_size(&self) -> usize {
        self.as_ref().map_or(0, |message| message.weight())
    }
}

/// Bytes that a message of this length takes in memory, about.
pub(super) fn weight(len: usize) -> usize {
    OVERHEAD + 3 * len
}

impl fmt::Debug for BroadcastMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What people write to each other does not belong into logs.
        f.debug_struct("Message").field("topic", &self.topic).field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> BroadcastMessage {
        BroadcastMessage::new(&TopicName::parse("chat").unwrap(), MessageId::from((7, 1)), text)
    }

    #[test]
    fn a_message_is_an_event_with_its_id() {
        assert_eq!(message("a\r\nb").frame(), "id: 7-1\ndata: a\ndata: b\n\n");
    }

    #[test]
    fn json_has_the_text_as_it_was() {
        let json: serde_json::Value = serde_json::from_slice(&message("a\r\n\"é\0").json()).unwrap();
        assert_eq!(json, serde_json::json!({ "id": "7-1", "topic": "chat", "message": "a\r\n\"é\0" }));
    }
}
