//! Whether a server can record which batches it executed, so that one that is sent again takes effect once.

use crate::redis::error::RedisError;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::server_info;
use crate::redis::transport::RedisTransport;

/// Whether this server can record what it executed, which needs `SET … GET` (Redis 6.2). A server that has functions is
/// newer.
///
/// # Errors
/// When the server did not answer.
pub(super) async fn supports_batch_ledger(
    transport: &RedisTransport,
    mode: InvocationMode,
) -> Result<bool, RedisError> {
    let info = match mode {
        InvocationMode::Plain => return Ok(false),
        InvocationMode::Function => return Ok(true),
        InvocationMode::Script => transport.call("INFO", ["server"]).await,
    };
    let info = match info {
        Err(RedisError::Rejected { .. }) => String::new(),
        info => info?.as_string().unwrap_or_default(),
    };
    let supported = has_set_get(&info);
    if !supported {
        tracing::warn!(
            "this server is older than Redis 6.2, or does not report its version (INFO): what is under way when the \
             connection to Redis is lost is answered 503, because it cannot be sent again"
        );
    }
    Ok(supported)
}

/// Forks of Redis report the version of Redis that they are compatible with.
fn has_set_get(info: &str) -> bool {
    server_info::server_version(info).is_some_and(|version| version >= (6, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_from_6_2_on_records_what_it_executed() {
        for version in ["6.2", "6.2.0", "6.3.4", "7.0.15", "10.0.1"] {
            assert!(has_set_get(&format!("# Server\r\nredis_version:{version}\r\n")), "{version}");
        }
        for info in
            ["", "# Server\r\n", "redis_version:\r\n", "redis_version:6.0.16\r\n", "redis_version:5.9\r\n"]
        {
            assert!(!has_set_get(info), "{info}");
        }
    }
}
