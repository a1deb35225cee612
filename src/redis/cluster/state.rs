//! What every call reads: which node has which hash slots, and the state of each node.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::redis_url::HostPort;
use crate::redis::error::RedisError;
use crate::redis::hash_slots::HashSlotRange;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::node_transport::NodeTransport;

/// How long a node without slots that a redirection named is kept.
const REQUEST_RETENTION: Duration = Duration::from_secs(30);

/// One primary.
pub(super) struct ClusterNode {
    pub(super) peer: HostPort,
    pub(super) state: RwLock<NodeState>,
}

/// The state of a node.
pub(super) enum NodeState {
    /// The first attempt has not ended since then.
    Connecting(Instant),
    /// It is connected.
    Ready(ReadyNode),
    /// It has been down since then, for this reason.
    Down(Instant, RedisError),
}

/// A node's connection.
#[derive(Clone)]
pub(super) struct ReadyNode {
    pub(super) transport: NodeTransport,
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
    /// Nodes that a redirection named and that are not in the map.
    requested: RwLock<HashMap<HostPort, Instant>>,
    /// Notified when a node reported that the map is outdated, or a connection ended.
    pub(super) refresh_requested: Notify,
    /// Increases with every change of the map or of a node.
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

    /// Nodes that were named recently: one that is about to get its first slot is in no map yet.
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
