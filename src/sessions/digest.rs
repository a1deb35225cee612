//! The hashed id of a session.

use std::fmt;
use std::ops::Deref;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use tower_sessions::session::Id;

/// Characters of a digest: 16 bytes as base64.
const DIGEST_LEN: usize = 22;

/// Hashed id of a session: all that Redis, its dumps and its logs ever see of it. It is in its place and not on the
/// heap, because every request of a visitor has one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionDigest([u8; DIGEST_LEN]);

impl SessionDigest {
    /// The digest of this id.
    pub fn from_id(id: Id) -> Self {
        let digest = digest::digest(&digest::SHA256, &id.0.to_le_bytes());
        let mut text = [b'-'; DIGEST_LEN];
        // Sixteen bytes are 22 characters, always.
        let written = URL_SAFE_NO_PAD.encode_slice(&digest.as_ref()[..16], &mut text);
        debug_assert_eq!(written, Ok(DIGEST_LEN));
        Self(text)
    }

    /// Its characters.
    pub fn as_str(&self) -> &str {
        // Written by an encoder of letters, digits, `-` and `_`.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Deref for SessionDigest {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for SessionDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}
