//! Connections to every node of a cluster for one piece of work.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::config::redis_url::HostPort;
use crate::redis::client::ClientInner;
use crate::redis::cluster::discovery::discover;
use crate::redis::cluster::router::ClusterRouter;
use crate::redis::cluster::state::{ClusterNode, ClusterState, HashSlotMap, NodeState, ReadyNode};
use crate::redis::connection::RedisConnection;
use crate::redis::error::RedisError;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::transport::RedisTransport;

/// Connections to every node, which are not replaced when they are lost.
pub(in crate::redis) struct OneShotCluster {
    /// Closed when this is dropped.
    _connections: Vec<RedisConnection>,
    transport: RedisTransport,
    mode: InvocationMode,
}

impl OneShotCluster {
    /// Connects to every node once; loads no code.
    ///
    /// # Errors
    /// Why one of them cannot be reached: the work is done on all of them or not at all.
    pub(in crate::redis) async fn open(inner: &ClientInner, seeds: &[HostPort]) -> Result<Self, RedisError> {
        let state = Arc::new(ClusterState::new(&inner.target.prefix));
        let ranges = discover(inner, &state, seeds).await?;
        let (mut connections, mut nodes, mut mode) = (Vec::new(), HashMap::new(), InvocationMode::Function);
        for range in &ranges {
            if nodes.contains_key(&range.node) {
                continue;
            }
            let connection = RedisConnection::open(inner, Some(&range.node)).await?;
            mode = connection.detect_mode(inner.target.mode).await?;
            let ready = ReadyNode { transport: connection.node_transport().with_long_timeout(), mode };
            let node = ClusterNode { peer: range.node.clone(), state: RwLock::new(NodeState::Ready(ready)) };
            nodes.insert(range.node.clone(), Arc::new(node));
            connections.push(connection);
        }
        *state.slot_map.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(HashSlotMap { ranges, nodes });
        let transport = RedisTransport::cluster(ClusterRouter::new(&state, None)).with_long_timeout();
        Ok(Self { _connections: connections, transport, mode })
    }

    /// A transport for the whole cluster.
    pub(in crate::redis) fn setup_transport(&self) -> RedisTransport {
        self.transport.clone()
    }

    /// How server-side code is called.
    pub(in crate::redis) fn invocation_mode(&self) -> InvocationMode {
        self.mode
    }
}
