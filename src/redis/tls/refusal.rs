//! What a program without TLS answers where an address asks for it: nothing is ever sent in plain instead.

use fred::types::config::Config;

use crate::config::settings::RedisCredentials;
use crate::redis::error::RedisError;

/// # Errors
/// Always `InvalidSetting`.
pub(in crate::redis) fn encrypt(_: Config, _: &RedisCredentials) -> Result<Config, RedisError> {
    Err(RedisError::invalid_setting(
        "the address asks for TLS, and this program was built without the feature tls of regatta",
    ))
}
