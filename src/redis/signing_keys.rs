//! The fleet's cookie signing key, for fleets that configure none: generated once, kept in Redis, the same for all workers.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fred::types::Value;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use crate::digest::hex;
use crate::redis::error::RedisError;
use crate::redis::keys;
use crate::redis::transport::RedisTransport;

/// Length of a key, bytes: that of the digest, as RFC 2104 §3 recommends.
const KEY_BYTES: usize = 32;

/// Keys that a worker remembers.
const MAX_KEYS: usize = 3;

/// The signing keys that Redis has or had, the current one first.
#[derive(Default)]
pub(super) struct SigningKeys {
    keys: RwLock<Vec<Vec<u8>>>,
    /// Marks of this fleet's broadcasts, one for each key.
    marks: RwLock<Vec<String>>,
    version: AtomicU64,
}

impl SigningKeys {
    /// All keys; empty until Redis was reached.
    pub(super) fn all(&self) -> Vec<Vec<u8>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Grows with each new key; 0 while there is none.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    fn current(&self) -> Option<Vec<u8>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }

    /// Makes `key` the current one; cookies signed with the previous keys stay valid on this worker.
    fn set_current(&self, key: Vec<u8>) {
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if known.first() == Some(&key) {
            return;
        }
        known.retain(|old| *old != key);
        known.insert(0, key);
        known.truncate(MAX_KEYS);
        let marks = known.iter().map(|key| derive_mark(key)).collect();
        *self.marks.write().unwrap_or_else(PoisonError::into_inner) = marks;
        self.version.fetch_add(1, Relaxed);
    }

    /// The mark of this fleet's broadcasts; empty until Redis was reached. It is derived from the signing key, so that a
    /// publisher that cannot read this database cannot forge it.
    pub(super) fn broadcast_mark(&self) -> String {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).first().cloned().unwrap_or_default()
    }

    /// Whether `mark` is this fleet's, from the current key or one before it.
    pub(super) fn is_own_mark(&self, mark: &str) -> bool {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).iter().any(|known| known == mark)
    }

    /// Stores this worker's key, or a new one, if Redis has none, and takes the one that Redis has.
    ///
    /// A worker that knows a key puts it back after `FLUSHALL`, so that cookies stay valid. Returns the server's error if it
    /// takes no writes but the key is known.
    ///
    /// # Errors
    /// What the server answered; `Protocol` if the value under the key is no signing key.
    pub(super) async fn refresh(
        &self,
        transport: &RedisTransport,
        prefix: &str,
    ) -> Result<Option<RedisError>, RedisError> {
        let own = match self.current() {
            Some(known) => known,
            None => generate_key()?,
        };
        let encoded = STANDARD.encode(&own);
        let key = keys::signing_key(prefix);
        // Two commands and not SET NX GET, which needs Redis 7.
        let (stored, rejection) = match transport.call("SET", [key.as_str(), encoded.as_str(), "NX"]).await {
            Ok(Value::Null) => (transport.call("GET", [key.as_str()]).await?.as_string(), None),
            Ok(_) => (Some(encoded), None),
            Err(error) if error.blocks_writes_only() => {
                match transport.call("GET", [key.as_str()]).await?.as_string() {
                    None if self.current().is_some() => return Ok(Some(error)),
                    None => return Err(error),
                    stored => (stored, Some(error)),
                }
            }
            Err(error) => return Err(error),
        };
        let decoded = stored.and_then(|text| STANDARD.decode(text).ok()).filter(|key| key.len() >= KEY_BYTES);
        self.set_current(decoded.ok_or_else(|| RedisError::protocol(format!("{key} holds no signing key")))?);
        Ok(rejection)
    }
}

/// Eight bytes of an HMAC, hex, which reveal nothing of the key.
fn derive_mark(key: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"regatta: broadcasts");
    hex(tag.as_ref().get(..8).unwrap_or_default())
}

fn generate_key() -> Result<Vec<u8>, RedisError> {
    let mut bytes = vec![0; KEY_BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| RedisError::unavailable("the operating system has no random bytes"))?;
    Ok(bytes)
}
