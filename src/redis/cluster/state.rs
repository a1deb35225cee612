//! What every call looks at: which node has which slots, and how each node stands.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::redis_url::HostPort;
use crate::redis::error::RedisError;
use crate::redis::functions::InvocationMode;
use crate::redis::hash_slots::HashSlotRange;
use crate::redis::transport::RedisTransport;

/// A node without slots that a redirection named is kept for so long.
const REQUEST_RETENTION: Duration = Duration::from_secs(30);

/// One node that takes writes.
pub(super) struct ClusterNode {
    pub(super) peer: HostPort,
    pub(super) state: RwLock<NodeState>,
}

/// How a node stands.
pub(super) enum NodeState {
    /// The first attempt has not ended since then.
    Connecting(Instant),
    /// Calls can be made.
    Ready(ReadyNode),
    /// Since when they cannot, and why.
    Down(Instant, RedisError),
}

/// A node's connection.
#[derive(Clone)]
pub(super) struct ReadyNode {
    pub(super) transport: RedisTransport,
    pub(super) mode: InvocationMode,
}

impl ClusterNode {
    pub(super) fn ready(&self) -> Option<ReadyNode> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            NodeState::Ready(ready) => Some(ready.clone()),
            NodeState::Connecting(_) | NodeState::Down(..) => None,
        }
    }

    /// Since when calls cannot be made; `None` if they can.
    pub(super) fn unready_since(&self) -> Option<Instant> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            NodeState::Ready(_) => None,
            NodeState::Connecting(since) | NodeState::Down(since, _) => Some(*since),
        }
    }

    pub(super) fn set_state(&self, state: NodeState) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Why it cannot be used; `None` if it can.
    pub(super) fn down_error(&self) -> Option<RedisError> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            NodeState::Ready(_) => None,
            NodeState::Connecting(_) => {
                Some(RedisError::unavailable(format!("{} is being connected to", self.peer)))
            }
            NodeState::Down(_, error) => Some(RedisError::unavailable(format!("{}: {error}", self.peer))),
        }
    }

    pub(super) fn was_tried(&self) -> bool {
        !matches!(&*self.state.read().unwrap_or_else(PoisonError::into_inner), NodeState::Connecting(_))
    }
}

/// Which node has which slots.
#[derive(Default)]
pub(super) struct HashSlotMap {
    pub(super) ranges: Vec<HashSlotRange>,
    pub(super) nodes: HashMap<HostPort, Arc<ClusterNode>>,
}

impl HashSlotMap {
    pub(super) fn owner(&self, slot: u16) -> Option<&Arc<ClusterNode>> {
        let at = self.ranges.partition_point(|range| range.last < slot);
        let range = self.ranges.get(at).filter(|range| range.first <= slot)?;
        self.nodes.get(&range.node)
    }

    /// Nodes that have slots.
    pub(super) fn owners(&self) -> Vec<&Arc<ClusterNode>> {
        let mut peers: Vec<_> = self.ranges.iter().map(|range| &range.node).collect();
        peers.sort();
        peers.dedup();
        peers.into_iter().filter_map(|peer| self.nodes.get(peer)).collect()
    }
}

/// The map that every call looks at.
pub(super) struct ClusterState {
    pub(super) prefix: String,
    pub(super) slot_map: RwLock<Arc<HashSlotMap>>,
    /// Nodes that a redirection named and the map does not know.
    requested: RwLock<HashMap<HostPort, Instant>>,
    /// Told when a node said that the map is old, or a connection ended.
    pub(super) refresh_requested: Notify,
    /// Goes up with every change of the map or of a node.
    pub(super) changes: watch::Sender<u64>,
}

impl ClusterState {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            slot_map: RwLock::default(),
            requested: RwLock::default(),
            refresh_requested: Notify::new(),
            changes: watch::Sender::new(0),
        }
    }

    pub(super) fn slot_map(&self) -> Arc<HashSlotMap> {
        Arc::clone(&self.slot_map.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn notify_changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Nodes that were named lately: one that is about to get its first slot stands in no map yet.
    pub(super) fn requested_nodes(&self) -> Vec<HostPort> {
        let mut requested = self.requested.write().unwrap_or_else(PoisonError::into_inner);
        requested.retain(|_, named| named.elapsed() < REQUEST_RETENTION);
        requested.keys().cloned().collect()
    }

    pub(super) fn request_node(&self, peer: &HostPort) {
        let mut requested = self.requested.write().unwrap_or_else(PoisonError::into_inner);
        requested.insert(peer.clone(), Instant::now());
        drop(requested);
        self.refresh_requested.notify_one();
    }
}
