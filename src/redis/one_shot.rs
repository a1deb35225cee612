//! One piece of work with Redis from a process that is no worker, such as a command on the terminal.

use std::future::Future;

use crate::config::settings;
use crate::config::settings::RedisUrl;
use crate::redis::RedisClient;
use crate::redis::error::RedisError;

/// Runs `work` on a runtime of its own and returns what it returns.
///
/// Never call it in a process that forks workers: they could not use tokio any more.
///
/// # Errors
/// When the URL cannot be used or the runtime cannot be made; what `work` meets is in its own answer.
pub fn run_once<T, F>(
    settings: &settings::RedisConfig,
    url: &RedisUrl,
    name: &str,
    work: impl FnOnce(RedisClient) -> F,
) -> Result<T, RedisError>
where
    F: Future<Output = T>,
{
    let redis = RedisClient::new(settings, url, name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| RedisError::unavailable(format!("no runtime: {error}")))?;
    let answer = runtime.block_on(work(redis));
    runtime.shutdown_background();
    Ok(answer)
}
