//! Ids of messages.

use std::fmt;
use std::str::FromStr;

use crate::redis::broadcast_commands;
use crate::redis::broadcast_commands::StreamId;

/// A message's id, rising within its topic: `ms-seq`.
///
/// It is no time of day: a topic that begins anew begins a second ahead of Redis's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    ms: u64,
    seq: u64,
}

/// Something that is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message's id is two numbers, such as 1770000000000-0")]
pub struct InvalidMessageId;

impl MessageId {
    /// Before every message: the one who resumes after it gets all that is kept.
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

#[cfg(test)]
mod tests {
    use super::*;

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
