//! Messages as handlers see them, axum's, and as they go over the wire, tungstenite's.

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes};
use bytes::Bytes;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Largest payload of a control frame (RFC 6455 §5.5), bytes, without a close frame's code.
const REASON_MAX: usize = 123;

/// As it goes over the wire.
pub(super) fn to_wire(message: Message) -> tungstenite::Message {
    match message {
        Message::Text(text) => tungstenite::Message::Text(wire_text(text)),
        Message::Binary(bytes) => tungstenite::Message::Binary(bytes),
        Message::Ping(bytes) => tungstenite::Message::Ping(bytes),
        Message::Pong(bytes) => tungstenite::Message::Pong(bytes),
        Message::Close(close) => tungstenite::Message::Close(close.and_then(close_to_wire)),
    }
}

/// A close frame as it goes over the wire; none where its code must not be sent. A reason that is too long ends with the last
/// letter that fits.
pub(super) fn close_to_wire(close: CloseFrame) -> Option<frame::CloseFrame> {
    let CloseFrame { code, reason } = close;
    let code = CloseCode::from(code);
    if !code.is_allowed() {
        return None;
    }
    let end = reason.floor_char_boundary(REASON_MAX);
    let reason = if end < reason.len() { reason[..end].into() } else { wire_text(reason) };
    Some(frame::CloseFrame { code, reason })
}

/// As a handler sees it; none for what is no message.
pub(super) fn from_wire(message: tungstenite::Message) -> Option<Message> {
    Some(match message {
        tungstenite::Message::Text(text) => Message::Text(handler_text(text)),
        tungstenite::Message::Binary(bytes) => Message::Binary(bytes),
        tungstenite::Message::Ping(bytes) => Message::Ping(bytes),
        tungstenite::Message::Pong(bytes) => Message::Pong(bytes),
        tungstenite::Message::Close(close) => Message::Close(close.map(close_from_wire)),
        tungstenite::Message::Frame(_) => return None,
    })
}

fn close_from_wire(close: frame::CloseFrame) -> CloseFrame {
    CloseFrame { code: close.code.into(), reason: handler_text(close.reason) }
}

// Both are bytes that were found to be UTF-8; neither crate gives its wrapping to the other without another look at them.
fn wire_text(text: Utf8Bytes) -> tungstenite::Utf8Bytes {
    tungstenite::Utf8Bytes::try_from(Bytes::from(text)).unwrap_or_default()
}

fn handler_text(text: tungstenite::Utf8Bytes) -> Utf8Bytes {
    Utf8Bytes::try_from(Bytes::from(text)).unwrap_or_else(|_| Utf8Bytes::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_on_both_sides() {
        let close = CloseFrame { code: 4001, reason: "später".into() };
        let messages = [
            Message::text("κόσμε"),
            Message::binary(vec![0, 255]),
            Message::Ping(Bytes::from_static(b"a")),
            Message::Pong(Bytes::from_static(b"b")),
            Message::Close(Some(close)),
            Message::Close(None),
        ];
        for message in messages {
            assert_eq!(from_wire(to_wire(message.clone())), Some(message));
        }
    }

    #[test]
    fn a_reason_that_does_not_fit_ends_between_two_letters() {
        let reason: Utf8Bytes = "ü".repeat(100).into();
        let wire = close_to_wire(CloseFrame { code: 1000, reason }).unwrap();
        assert_eq!(&*wire.reason, "ü".repeat(61));
        assert!(wire.reason.len() + 2 <= 125);
    }

    #[test]
    fn codes_that_must_not_be_sent_are_left_out() {
        let wire =
            |code| close_to_wire(CloseFrame { code, reason: "".into() }).map(|frame| u16::from(frame.code));
        assert_eq!([1000, 1001, 1012, 3000, 4999].map(wire), [1000, 1001, 1012, 3000, 4999].map(Some));
        assert_eq!([0, 999, 1004, 1005, 1006, 1015, 2999, 5000].map(wire), [None; 8]);
    }
}
