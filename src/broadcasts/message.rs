//! A message with its id and its forms on the wire, each made once however many subscribers get it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use bytes::Bytes;
use serde::Serialize;

use crate::broadcasts::topic::TopicName;
use crate::redis::broadcast_commands::{self, StreamId};
use crate::sse::SseEvent;

/// A message's id, rising within its topic: `ms-seq`.
///
/// It is no time of day: a topic that starts anew starts a second ahead of Redis's clock.
///
/// ```
/// use regatta::broadcast::MessageId;
///
/// let id: MessageId = "1770000000000-0".parse()?;
/// assert!(id > MessageId::ZERO && id.to_string() == "1770000000000-0");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    ms: u64,
    seq: u64,
}

/// The error of parsing an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message's id is two numbers, such as 1770000000000-0")]
pub struct InvalidMessageId;

impl MessageId {
    /// Before every message: a client that resumes after it gets all that Redis retains.
    pub const ZERO: Self = Self { ms: 0, seq: 0 };

    /// The id right before this one.
    pub(super) fn before(self) -> Self {
        broadcast_commands::stream_id_before(self.stream_id()).into()
    }

    pub(super) fn stream_id(self) -> StreamId {
        (self.ms, self.seq)
    }
}

impl From<StreamId> for MessageId {
    fn from((ms, seq): StreamId) -> Self {
        Self { ms, seq }
    }
}

impl FromStr for MessageId {
    type Err = InvalidMessageId;

    fn from_str(text: &str) -> Result<Self, InvalidMessageId> {
        broadcast_commands::parse_stream_id(text).map(Self::from).ok_or(InvalidMessageId)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// About how many bytes a message takes beside its text.
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
    /// A message to which Redis gave this id.
    pub fn new(topic: &TopicName, id: MessageId, text: &str) -> Self {
        let (frame, json) = (OnceLock::new(), OnceLock::new());
        Self { topic: topic.clone(), id, text: text.into(), frame, json }
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

    /// Its event in a stream of server-sent events, in which every kind of line end becomes LF.
    pub fn frame(&self) -> Bytes {
        let write = || SseEvent::default().id(&self.id.to_string()).data(&self.text).to_bytes();
        self.frame.get_or_init(write).clone()
    }

    /// `{"id": …, "topic": …, "message": …}`.
    pub fn json(&self) -> Bytes {
        let write = || {
            let form =
                MessageJson { id: self.id.to_string(), topic: self.topic.as_str(), message: &self.text };
            // Texts alone cannot fail to serialize.
            serde_json::to_vec(&form).unwrap_or_default().into()
        };
        self.json.get_or_init(write).clone()
    }

    /// About how many bytes it takes in memory, with all its forms.
    pub(super) fn weight(&self) -> usize {
        weight(self.text.len())
    }
}

/// About how many bytes a message of this length takes in memory.
pub(super) fn weight(len: usize) -> usize {
    OVERHEAD + 3 * len
}

impl fmt::Debug for BroadcastMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the text: it must not get into logs.
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

    #[test]
    fn ids_are_ordered_and_read_back() {
        let id = |text: &str| text.parse::<MessageId>().unwrap();
        assert!(id("9-0") < id("10-0") && id("10-9") < id("10-10") && MessageId::ZERO < id("0-1"));
        for text in ["0-0", "1770000000000-12", "18446744073709551615-18446744073709551615"] {
            assert_eq!(id(text).to_string(), text);
        }
        for text in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "1-2-3",
            " 1-2",
            "1-2 ",
            "+1-2",
            "1-+2",
            "1--2",
            "99999999999999999999-0",
        ] {
            assert_eq!(text.parse::<MessageId>(), Err(InvalidMessageId), "{text}");
        }
    }

    #[test]
    fn the_id_before_is_the_greatest_that_is_less() {
        let before = |text: &str| text.parse::<MessageId>().unwrap().before().to_string();
        assert_eq!(before("7-3"), "7-2");
        assert_eq!(before("7-0"), format!("6-{}", u64::MAX));
        assert_eq!(before("0-0"), "0-0");
    }
}
