//! The cookies' keys of one worker: the configured ones, or those that the fleet generated and keeps in Redis.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use crate::config::settings::Secret;
use crate::redis::RedisClient;
use crate::sessions::cookie::CookieKeyring;
use crate::sessions::user::UserTag;

/// Stands for configured keys, which never change.
const CONFIGURED: u64 = u64::MAX;

/// Gives out the keyring that is in force.
pub struct SigningKeys {
    redis: RedisClient,
    configured: Vec<Secret>,
    /// The last keyring, and the version of the keys it is made of.
    keyring: RwLock<Option<(u64, Arc<CookieKeyring>)>>,
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKeys").field("configured", &self.configured.len()).finish_non_exhaustive()
    }
}

impl SigningKeys {
    /// These keys; none: those that `redis` has generated for the fleet.
    pub fn new(configured: &[Secret], redis: &RedisClient) -> Self {
        Self { redis: redis.clone(), configured: configured.to_vec(), keyring: RwLock::new(None) }
    }

    /// The keys in force; `None` until Redis, which keeps the generated ones, was reached for the first time.
    pub fn keyring(&self) -> Option<Arc<CookieKeyring>> {
        let version = if self.configured.is_empty() { self.redis.signing_keys_version() } else { CONFIGURED };
        let known = self.keyring.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, keyring)) = known.filter(|(of, _)| *of == version) {
            return Some(keyring);
        }
        let keyring = match version {
            CONFIGURED => CookieKeyring::new(self.configured.iter().map(Secret::expose)),
            _ => CookieKeyring::new(self.redis.generated_signing_keys().iter().map(Vec::as_slice)),
        };
        let keyring = Arc::new(keyring?);
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = Some((version, Arc::clone(&keyring)));
        Some(keyring)
    }

    /// A user's tag; `None` until Redis, which keeps its key, was reached for the first time.
    ///
    /// Its key is the generated one even where signing keys are configured: those are replaced from time to time, and
    /// with another tag the user's sessions would not be found.
    pub fn user_tag(&self, name: &str) -> Option<UserTag> {
        self.redis.generated_signing_keys().first().map(|key| UserTag::from_name(key, name))
    }
}
