//! A message, and its forms on the wire, each made once however many clients get it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::Serialize;

use crate::broadcast::id::MessageId;
use crate::broadcast::sequencer::{MemorySize, SequencedMessage};
use crate::broadcast::topic::TopicName;
use crate::redis::broadcast_commands::StreamEntry;

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
        self.frame.get_or_init(|| frame(self.id, &self.text)).clone()
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

/// An event by the rules of HTML §9.2: CR, LF and both end a line, so each of a text's lines needs a field of its own.
fn frame(id: MessageId, text: &str) -> Bytes {
    let mut frame = format!("id: {id}\n").into_bytes();
    let mut rest = text;
    loop {
        let end = rest.find(['\r', '\n']).unwrap_or(rest.len());
        frame.extend_from_slice(b"data: ");
        frame.extend_from_slice(&rest.as_bytes()[..end]);
        frame.push(b'\n');
        rest = match &rest[end..] {
            "" => break,
            after => after.strip_prefix("\r\n").unwrap_or(&after[1..]),
        };
    }
    frame.push(b'\n');
    frame.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str) -> BroadcastMessage {
        BroadcastMessage::new(&TopicName::parse("chat").unwrap(), MessageId::from((7, 1)), text)
    }

    fn framed(text: &str) -> String {
        String::from_utf8(message(text).frame().to_vec()).unwrap()
    }

    /// Reads a stream as browsers do: (last id, data) of each event.
    fn events(stream: &str) -> Vec<(String, String)> {
        let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut id, mut data) = (Vec::new(), String::new(), String::new());
        for line in stream.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() && !data.is_empty() => {
                    data.pop();
                    events.push((id.clone(), std::mem::take(&mut data)));
                }
                "id" => id = value.to_owned(),
                "data" => {
                    data.push_str(value);
                    data.push('\n');
                }
                "" => {}
                other => panic!("a field {other}"),
            }
        }
        events
    }

    #[test]
    fn every_line_is_data() {
        assert_eq!(framed("hello"), "id: 7-1\ndata: hello\n\n");
        assert_eq!(framed(""), "id: 7-1\ndata: \n\n");
        assert_eq!(framed("a\nb\r\nc\rd"), "id: 7-1\ndata: a\ndata: b\ndata: c\ndata: d\n\n");
        assert_eq!(framed("\n\r\r\n"), "id: 7-1\ndata: \ndata: \ndata: \ndata: \n\n");
        assert_eq!(framed("x\n\nid: 9\nevent: gap\n\n").matches("\nid:").count(), 0);
    }

    #[test]
    fn json_has_the_text_as_it_was() {
        let json: serde_json::Value = serde_json::from_slice(&message("a\r\n\"é\0").json()).unwrap();
        assert_eq!(json, serde_json::json!({ "id": "7-1", "topic": "chat", "message": "a\r\n\"é\0" }));
    }

    proptest! {
        #[test]
        fn whatever_is_in_it_a_message_is_one_event(text in "[a: \r\n\u{feff}\u{2028}é]{0,30}|\\PC{0,30}|data: x|\rid: 1|:\n") {
            let text = format!("x{text}");
            let lines = text.replace("\r\n", "\n").replace('\r', "\n");
            prop_assert_eq!(events(&framed(&text)), [("7-1".to_owned(), lines)]);
        }
    }
}
