//! Ids of messages.

use std::fmt;
use std::str::FromStr;

use crate::redis::live;
use crate::redis::live::Stamp;

/// A message's id, rising within its topic: `ms-seq`.
///
/// It is no time of day: a topic that begins anew begins a second ahead of Redis's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    ms: u64,
    seq: u64,
}

/// Something that is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message's id is two numbers, such as 1770000000000-0")]
pub struct InvalidId;

impl Id {
    /// Before every message: the one who resumes after it gets all that is kept.
    pub const ZERO: Self = Self { ms: 0, seq: 0 };

    /// The id right before this one.
    pub(super) fn before(self) -> Self {
        live::below(self.stamp()).into()
    }

    pub(super) fn stamp(self) -> Stamp {
        (self.ms, self.seq)
    }
}

impl From<Stamp> for Id {
    fn from((ms, seq): Stamp) -> Self {
        Self { ms, seq }
    }
}

impl FromStr for Id {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        live::read(text).map(Self::from).ok_or(InvalidId)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ordered_and_read_back() {
        let id = |text: &str| text.parse::<Id>().unwrap();
        assert!(id("9-0") < id("10-0") && id("10-9") < id("10-10") && Id::ZERO < id("0-1"));
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
            assert_eq!(text.parse::<Id>(), Err(InvalidId), "{text}");
        }
    }

    #[test]
    fn the_id_before_is_the_greatest_that_is_less() {
        let before = |text: &str| text.parse::<Id>().unwrap().before().to_string();
        assert_eq!(before("7-3"), "7-2");
        assert_eq!(before("7-0"), format!("6-{}", u64::MAX));
        assert_eq!(before("0-0"), "0-0");
    }
}
