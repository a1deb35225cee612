//! Names of topics.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name, bytes.
const TOPIC_NAME_MAX: usize = 64;

/// A topic's name: 1 to 64 of `A–Z a–z 0–9 - _ . : /`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

/// The error of [`TopicName::parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a topic's name has 1 to 64 of A-Z a-z 0-9 - _ . : /")]
pub struct InvalidTopicName;

impl TopicName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidTopicName`] when it is empty, too long or has another character.
    pub fn parse(text: &str) -> Result<Self, InvalidTopicName> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
        if (1..=TOPIC_NAME_MAX).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(InvalidTopicName)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TopicName {
    type Err = InvalidTopicName;

    fn from_str(text: &str) -> Result<Self, InvalidTopicName> {
        Self::parse(text)
    }
}

impl Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let longest = "x".repeat(TOPIC_NAME_MAX);
        for good in ["a", "news", "room:7/chat_a-b.C", &longest] {
            assert_eq!(TopicName::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", " ", "a b", "a\n", "{b}", "ä", "a*", &format!("{longest}x")] {
            assert_eq!(TopicName::parse(bad), Err(InvalidTopicName), "{bad}");
        }
    }
}
