//! Reads the map of hash slots from a node.

use crate::config::redis_url::HostPort;
use crate::redis::client::ClientInner;
use crate::redis::cluster::state::ClusterState;
use crate::redis::connection::RedisConnection;
use crate::redis::error::RedisError;
use crate::redis::hash_slots::{self, HashSlotRange};
use crate::redis::transport::RedisTransport;

/// Reads the map from a connected node, or from one of the configured nodes.
pub(super) async fn discover(
    inner: &ClientInner,
    state: &ClusterState,
    seeds: &[HostPort],
) -> Result<Vec<HashSlotRange>, RedisError> {
    let map = state.slot_map();
    let mut last = RedisError::unavailable("no node of the cluster is known");
    for node in map.nodes.values() {
        let Some(ready) = node.ready() else { continue };
        match query_hash_slots(&RedisTransport::standalone(ready.transport), &node.peer).await {
            Ok(ranges) => return Ok(ranges),
            Err(error) => last = error,
        }
    }
    for seed in seeds {
        match RedisConnection::open(inner, Some(seed)).await {
            Ok(connection) => match query_hash_slots(&connection.setup_transport(), seed).await {
                Ok(ranges) => return Ok(ranges),
                Err(error) => last = error,
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn query_hash_slots(
    transport: &RedisTransport,
    queried: &HostPort,
) -> Result<Vec<HashSlotRange>, RedisError> {
    match transport.call("CLUSTER", ["SLOTS"]).await {
        Ok(answer) => hash_slots::parse_ranges(&answer, queried),
        Err(RedisError::Rejected { reason, .. }) if reason.contains("cluster support disabled") => {
            Err(RedisError::invalid_setting(format!(
                "{queried} belongs to no cluster: redis.url must begin with redis:// (or redis-sentinel://)"
            )))
        }
        Err(error) => Err(error),
    }
}
