//! The fleet's cookie signing key, for fleets that configure none: made once, kept in Redis, the same for all.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fred::types::Value;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use crate::digest::hex;
use crate::redis::error::RedisError;
use crate::redis::transport::RedisTransport;
use crate::redis::{ClientInner, keys};

/// Size of a key, bytes: the digest's, as RFC 2104 §3 asks.
const KEY_BYTES: usize = 32;

/// Keys that are remembered.
const KEYS_MAX: usize = 3;

impl ClientInner {
    fn signing_key(&self) -> Option<Vec<u8>> {
        self.signing_keys.read().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }

    /// Takes note of the key that Redis has now; cookies signed with the one before stay good here.
    fn set_signing_key(&self, secret: Vec<u8>) {
        let mut known = self.signing_keys.write().unwrap_or_else(PoisonError::into_inner);
        if known.first() == Some(&secret) {
            return;
        }
        known.retain(|old| *old != secret);
        known.insert(0, secret);
        known.truncate(KEYS_MAX);
        let marks = known.iter().map(|secret| derive_mark(secret)).collect();
        *self.broadcast_marks.write().unwrap_or_else(PoisonError::into_inner) = marks;
        self.signing_keys_version.fetch_add(1, Relaxed);
    }

    /// What this fleet's broadcasts are marked with: it is made of the key in this database, so that publishers that
    /// cannot read the database cannot know it. Empty until Redis was reached.
    pub(super) fn broadcast_mark(&self) -> String {
        self.broadcast_marks
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .first()
            .cloned()
            .unwrap_or_default()
    }

    /// Whether it is a mark of this fleet's, now or before Redis lost its key.
    pub(super) fn is_own_mark(&self, mark: &str) -> bool {
        self.broadcast_marks.read().unwrap_or_else(PoisonError::into_inner).iter().any(|known| known == mark)
    }
}

/// Offers the key this worker knows, or a new one, and takes the one that Redis has.
///
/// A worker that knew one puts it back after `FLUSHALL`, so that cookies outlive it. The answer is what the server said
/// if it takes no writes: then its key is only read, and a worker that knows one needs none.
///
/// # Errors
/// What the server said; `Protocol` if what lies under the key is no signing key.
pub(super) async fn refresh_signing_keys(
    caller: &RedisTransport,
    inner: &ClientInner,
) -> Result<Option<RedisError>, RedisError> {
    let mine = match inner.signing_key() {
        Some(known) => known,
        None => generate_key()?,
    };
    let text = STANDARD.encode(&mine);
    let key = keys::signing_key(&inner.prefix);
    // Two commands and not SET NX GET, which needs Redis 7.
    let (theirs, refused) = match caller.call("SET", [key.as_str(), text.as_str(), "NX"]).await {
        Ok(Value::Null) => (caller.call("GET", [key.as_str()]).await?.as_string(), None),
        Ok(_) => (Some(text), None),
        Err(error) if error.blocks_writes_only() => {
            match caller.call("GET", [key.as_str()]).await?.as_string() {
                None if inner.signing_key().is_some() => return Ok(Some(error)),
                None => return Err(error),
                theirs => (theirs, Some(error)),
            }
        }
        Err(error) => return Err(error),
    };
    let decoded = theirs.and_then(|text| STANDARD.decode(text).ok()).filter(|key| key.len() >= KEY_BYTES);
    inner
        .set_signing_key(decoded.ok_or_else(|| RedisError::protocol(format!("{key} holds no signing key")))?);
    Ok(refused)
}

/// Eight bytes, hex; they tell nothing of the key.
fn derive_mark(secret: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), b"regatta: broadcasts");
    hex(tag.as_ref().get(..8).unwrap_or_default())
}

fn generate_key() -> Result<Vec<u8>, RedisError> {
    let mut bytes = vec![0; KEY_BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| RedisError::unavailable("the operating system has no random bytes"))?;
    Ok(bytes)
}
