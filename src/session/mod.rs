//! Sessions: a signed cookie that names one, and the store that carries its fields to and from Redis.
//!
//! Guarantees that an id without a genuine signature never reaches Redis, that the id itself is never stored, and that
//! a session which is gone is never brought back by a late write.

pub mod cookie;
pub mod last_known;
pub mod store;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use tower_sessions::session::Id;

use crate::redis::keys;

/// Hashed id of a session: all that Redis, its dumps and its logs ever see of it.
pub fn digest(id: Id) -> String {
    let digest = digest::digest(&digest::SHA256, &id.0.to_le_bytes());
    URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16])
}

/// Key of a session's hash.
pub fn key(prefix: &str, id: Id) -> String {
    keys::session(prefix, &digest(id))
}
