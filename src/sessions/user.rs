//! The user of a session, and the details of the login.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::{Deserialize, Serialize};

/// Longest name of a user, bytes.
pub const USER_NAME_MAX: usize = 256;
/// Longest `User-Agent` that is stored, bytes.
const AGENT_MAX: usize = 256;

/// Stands for a user in cookies and keys: a keyed hash of the name, which cannot be computed without the key.
///
/// 64 bits: two of a thousand million users have the same one with a probability of 3 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserTag([u8; 8]);

impl UserTag {
    /// The tag of this user; `key` is the fleet's own, see [`crate::redis::RedisClient::generated_signing_keys`].
    pub fn from_name(key: &[u8], name: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let mut context = hmac::Context::with_key(&key);
        context.update(b"user ");
        context.update(name.as_bytes());
        let mut tag = [0; 8];
        tag.copy_from_slice(&context.sign().as_ref()[..8]);
        Self(tag)
    }
}

/// Eleven characters of `A–Z a–z 0–9 - _`.
impl fmt::Display for UserTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 11];
        let written = URL_SAFE_NO_PAD.encode_slice(self.0, &mut text).unwrap_or(0);
        f.write_str(std::str::from_utf8(&text[..written]).unwrap_or_default())
    }
}

/// A text that is no tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("that is no user's tag")]
pub struct InvalidUserTag;

impl FromStr for UserTag {
    type Err = InvalidUserTag;

    fn from_str(text: &str) -> Result<Self, InvalidUserTag> {
        let mut tag = [0; 8];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut tag) {
            Ok(8) if text.len() == 11 => Ok(Self(tag)),
            _ => Err(InvalidUserTag),
        }
    }
}

/// What a session keeps of its login; encrypted at rest if fields are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginDetails {
    /// The user's name, as the application gave it.
    pub user: String,
    /// Address the login came from.
    #[serde(default)]
    pub address: String,
    /// The browser's `User-Agent`, at most 256 bytes.
    #[serde(default)]
    pub agent: String,
}

impl LoginDetails {
    /// The details of a login; a longer `agent` is cut.
    pub fn new(user: &str, address: &str, agent: &str) -> Self {
        let mut end = agent.len().min(AGENT_MAX);
        while !agent.is_char_boundary(end) {
            end -= 1;
        }
        Self { user: user.to_owned(), address: address.to_owned(), agent: agent[..end].to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_back_and_depends_on_key_and_name() {
        let tag = UserTag::from_name(b"key", "ann");
        assert_eq!((tag.to_string().len(), tag.to_string().parse()), (11, Ok(tag)));
        assert_ne!(tag, UserTag::from_name(b"key", "bob"));
        assert_ne!(tag, UserTag::from_name(b"another", "ann"));
        for bad in ["", "short", "AAAAAAAAAA=", "AAAAAAAAAAAA", "AAAAAAAAAA.", "AAAAAAAAAAB"] {
            assert_eq!(bad.parse::<UserTag>(), Err(InvalidUserTag), "{bad}");
        }
    }

    #[test]
    fn a_long_agent_is_cut_between_letters() {
        let details = LoginDetails::new("ann", "10.0.0.1", &"ä".repeat(200));
        assert_eq!(details.agent.len(), AGENT_MAX);
        assert!(LoginDetails::new("ann", "", &format!("x{}", "ä".repeat(200))).agent.len() < AGENT_MAX);
    }
}
