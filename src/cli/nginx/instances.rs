//! The instances of the fleet as Redis lists them.

use std::time::Duration;

use crate::cli::status::fleet;
use crate::config::settings::Config;
use crate::redis::RedisError;
use crate::registry::InstanceList;

/// What `CLIENT LIST` shows.
const NAME: &str = "regatta-nginx";

/// Longest wait for Redis at one query.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks Redis once, on a connection of its own.
pub(super) fn fetch(config: &Config) -> Result<InstanceList, RedisError> {
    fleet::fetch_instances(config, NAME, TIMEOUT)
}
