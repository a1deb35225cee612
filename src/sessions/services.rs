//! What the requests of one worker share about sessions.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::config::settings::{CookieSecurity, Secret, SessionConfig, SessionCreation};
use crate::redis::RedisClient;
use crate::sessions::activity::SessionActivity;
use crate::sessions::cookie::CookieAttributes;
use crate::sessions::encryption::FieldCipher;
use crate::sessions::signing_keys::SigningKeys;
use crate::sessions::stale_cache::StaleSessionCache;
use crate::sessions::{SessionLifetimes, SessionSettings};

/// Everything about sessions that lives as long as its worker.
#[derive(Debug)]
pub struct SessionServices {
    pub(crate) settings: Arc<SessionSettings>,
    pub(crate) cookie_names: SessionCookieNames,
    pub(crate) cookie_attributes: CookieAttributes,
    pub(crate) cookie_security: CookieSecurity,
    /// When a session is stored for a visitor who has none.
    pub(crate) creation: SessionCreation,
    /// New sessions of one client: the time that one costs and the time that may be spent at once, µs.
    pub(crate) new_session_rate: Option<(u64, u64)>,
    pub(crate) signing_keys: SigningKeys,
    /// Sessions as last read, for when Redis is away.
    pub(crate) stale_cache: Arc<Mutex<StaleSessionCache>>,
    /// Whether this worker is notified of sessions that end.
    pub(crate) follows_session_ends: AtomicBool,
    pub(crate) activity: SessionActivity,
}

/// The session cookie's name in both forms.
#[derive(Debug)]
pub(crate) struct SessionCookieNames {
    pub(crate) plain: String,
    pub(crate) secure: String,
}

impl SessionCookieNames {
    /// The name of a cookie that is sent over TLS alone, or of one that is not.
    pub(crate) fn get(&self, secure: bool) -> &str {
        if secure { &self.secure } else { &self.plain }
    }
}

impl SessionServices {
    /// `counts_activity`: whether this instance writes to Redis how many sessions are active.
    pub fn new(
        config: &SessionConfig,
        attributes: CookieAttributes,
        prefix: &Arc<str>,
        redis: &RedisClient,
        counts_activity: bool,
    ) -> Self {
        let settings = SessionSettings {
            prefix: Arc::clone(prefix),
            lifetimes: SessionLifetimes { idle: config.idle, absolute: config.absolute },
            cipher: FieldCipher::new(config.encryption_keys.iter().map(Secret::expose)),
            strict: config.strict_fields.clone(),
            max_per_user: config.max_per_user,
        };
        Self {
            settings: Arc::new(settings),
            cookie_names: SessionCookieNames {
                plain: attributes.cookie_name(&config.cookie, false),
                secure: attributes.cookie_name(&config.cookie, true),
            },
            cookie_attributes: attributes,
            cookie_security: config.secure,
            creation: config.create,
            new_session_rate: config.create_rate.map(|rate| {
                let period_us = u64::try_from(rate.period.as_micros()).unwrap_or(u64::MAX);
                let interval_us = (period_us / rate.count.max(1)).max(1);
                // Redis counts exactly below 2^53.
                (interval_us, interval_us.saturating_mul(config.create_burst).min(1 << 52))
            }),
            signing_keys: SigningKeys::new(&config.secrets, redis),
            stale_cache: Arc::new(Mutex::new(StaleSessionCache::new(config.stale_if_error))),
            follows_session_ends: AtomicBool::new(false),
            activity: SessionActivity::new(redis, counts_activity),
        }
    }
}
