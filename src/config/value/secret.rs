//! Keys and tokens, which are never shown.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::config::value::basic::InvalidValue;

/// Fewest bytes of a signing key: the digest's size, as RFC 2104 §3 asks.
const SECRET_MIN: usize = 32;

/// Fewest bytes of a token, so that it cannot be guessed in time.
const TOKEN_MIN: usize = 16;

/// Most bytes of a token, so that a form with one stays small.
const TOKEN_MAX: usize = 1024;

/// A signing key of at least 32 bytes; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A key of these bytes.
    ///
    /// # Errors
    /// When there are fewer than 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidValue> {
        match bytes.len() {
            len if len < SECRET_MIN => Err(format!("a key has {len} bytes, fewer than {SECRET_MIN}")),
            _ => Ok(Self(bytes.to_vec())),
        }
    }

    /// The key's bytes, for the keyring only.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(***, {} bytes)", self.0.len())
    }
}

/// A key as base64 behind `base64:`, or as plain text.
pub(in crate::config) fn secret(text: &str) -> Result<Secret, InvalidValue> {
    let bytes = match text.strip_prefix("base64:") {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| "it is not base64".to_owned())?,
        None => text.as_bytes().to_vec(),
    };
    Secret::from_bytes(&bytes)
}

pub(in crate::config) fn secrets(items: &[String]) -> Result<Vec<Secret>, InvalidValue> {
    items.iter().map(|item| secret(item)).collect()
}

/// An operator's token; what a file holds is read the same way.
pub(in crate::config) fn dashboard_token(text: &str) -> Result<Secret, InvalidValue> {
    let text = text.trim();
    match text.len() {
        len if len < TOKEN_MIN => Err(format!("a token has {len} bytes, fewer than {TOKEN_MIN}")),
        len if len > TOKEN_MAX => Err(format!("a token has {len} bytes, more than {TOKEN_MAX}")),
        _ => Ok(Secret(text.as_bytes().to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_enough_and_never_printed() {
        assert!(dashboard_token("fifteen letters").is_err() && dashboard_token(&"x".repeat(1025)).is_err());
        let token = dashboard_token(" a token of mine too\n").unwrap_or_else(|reason| panic!("{reason}"));
        assert_eq!(token.expose(), b"a token of mine too", "what surrounds it in a file is not part of it");
        assert!(!format!("{token:?}").contains("mine"));
        let key = secret("correct horse battery staple and more").unwrap();
        assert!(!format!("{key:?}").contains("horse"));
    }
}
