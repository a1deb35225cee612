//! Signing secrets of unit tests.

#![cfg(test)]

use crate::sessions::cookie::CookieKeyring;

pub(crate) const OLD: &[u8] = b"an old secret of thirty-two bytes";
pub(crate) const NEW: &[u8] = b"a new secret with thirty-two bytes";

/// The first signs, all verify.
pub(crate) fn ring(secrets: &[&[u8]]) -> CookieKeyring {
    CookieKeyring::new(secrets.iter().copied()).unwrap()
}
