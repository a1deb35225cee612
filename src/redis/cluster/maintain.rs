//! Keeps a cluster usable: reads the map of slots, keeps a connection to every node, and publishes the result.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::redis_url::HostPort;
use crate::redis::client::ClientInner;
use crate::redis::cluster::discovery::discover;
use crate::redis::cluster::nodes;
use crate::redis::cluster::router::ClusterRouter;
use crate::redis::cluster::state::{ClusterNode, ClusterState, HashSlotMap, NodeState};
use crate::redis::connection::{LINGER, REJECTED_PAUSE};
use crate::redis::error::RedisError;
use crate::redis::hash_slots::HashSlotRange;
use crate::redis::migrations;
use crate::redis::reconnect_pauses::{ReconnectPauses, random_unit};
use crate::redis::transport::{ActiveConnection, RedisTransport};

/// How often the map is read if no node reports a change; the signing key is refreshed as often.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest time between two reads of the map, so that a thousand redirections cost one.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(20);
/// Longest wait for the first attempts at all nodes.
const FIRST_ATTEMPTS_TIMEOUT: Duration = Duration::from_millis(1400);

/// The tasks that maintain the nodes; they end when this is dropped.
struct NodeTasks(HashMap<HostPort, JoinHandle<()>>);

impl Drop for NodeTasks {
    fn drop(&mut self) {
        self.0.values().for_each(JoinHandle::abort);
    }
}

/// The health that was reported last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClusterHealth {
    Unknown,
    Healthy,
    Partial,
    Down,
}

/// Keeps connections to all nodes for as long as the runtime lives.
pub(in crate::redis) async fn maintain(inner: Arc<ClientInner>, seeds: Vec<HostPort>) {
    let state = Arc::new(ClusterState::new(&inner.target.prefix));
    let mut node_tasks = NodeTasks(HashMap::new());
    let (mut health, mut pauses) =
        (ClusterHealth::Unknown, ReconnectPauses::new(inner.state.reconnect_wait, Instant::now()));
    loop {
        let mut refused = false;
        let now = match discover(&inner, &state, &seeds).await {
            Ok(ranges) => {
                apply_hash_slots(&inner, &state, &mut node_tasks, ranges);
                wait_for_first_attempts(&state).await;
                publish_transport(&inner, &state, health).await
            }
            Err(error) => {
                refused = error.is_misconfiguration();
                report_health(&inner, &state, &error)
            }
        };
        if now == ClusterHealth::Healthy {
            pauses.on_lost(Instant::now(), true);
        }
        health = now;
        if refused {
            tokio::time::sleep(REJECTED_PAUSE).await;
            continue;
        }
        let pause = match health {
            ClusterHealth::Healthy => REFRESH_INTERVAL,
            _ => pauses.next_pause(Instant::now(), random_unit()),
        };
        tokio::select! {
            () = state.refresh_requested.notified() => tokio::time::sleep(MIN_REFRESH_INTERVAL.mul_f64(1.0 + random_unit())).await,
            () = tokio::time::sleep(pause.max(MIN_REFRESH_INTERVAL)) => {}
        }
    }
}

/// Applies a new map: starts a task for each new node, and ends those of nodes that have left.
fn apply_hash_slots(
    inner: &Arc<ClientInner>,
    state: &Arc<ClusterState>,
    node_tasks: &mut NodeTasks,
    ranges: Vec<HashSlotRange>,
) {
    let old = state.slot_map();
    let requested = state.requested_nodes();
    let mut nodes = HashMap::new();
    for peer in ranges.iter().map(|range| &range.node).chain(&requested) {
        if nodes.contains_key(peer) {
            continue;
        }
        let node = old.nodes.get(peer).cloned().unwrap_or_else(|| {
            let node = Arc::new(ClusterNode {
                peer: peer.clone(),
                state: RwLock::new(NodeState::Connecting(Instant::now())),
            });
            let task =
                tokio::spawn(nodes::maintain_node(Arc::clone(inner), Arc::clone(state), Arc::clone(&node)));
            node_tasks.0.insert(peer.clone(), task);
            node
        });
        nodes.insert(peer.clone(), node);
    }
    for gone in old.nodes.keys().filter(|peer| !nodes.contains_key(peer)) {
        if let Some(task) = node_tasks.0.remove(gone) {
            tokio::spawn(async move {
                tokio::time::sleep(LINGER).await;
                task.abort();
            });
        }
    }
    *state.slot_map.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(HashSlotMap { ranges, nodes });
    state.notify_changed();
}

/// Waits until the first attempt at every node has ended.
async fn wait_for_first_attempts(state: &ClusterState) {
    let mut changes = state.changes.subscribe();
    let all = async {
        while !state.slot_map().nodes.values().all(|node| node.was_tried()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    // A node that has not answered by then counts as down for now.
    let _ = tokio::time::timeout(FIRST_ATTEMPTS_TIMEOUT, all).await.is_ok();
}

/// Prepares the cluster for requests and reports its health.
async fn publish_transport(
    inner: &Arc<ClientInner>,
    state: &Arc<ClusterState>,
    previous: ClusterHealth,
) -> ClusterHealth {
    let map = state.slot_map();
    let Some(ready) = map.owners().into_iter().find_map(|node| node.ready()) else {
        let reason = map.owners().first().and_then(|node| node.down_error());
        let reason = reason.unwrap_or_else(|| RedisError::unavailable("no node of the cluster is connected"));
        return report_health(inner, state, &reason);
    };
    let transport = RedisTransport::cluster(ClusterRouter::new(state, Some(inner.state.reconnect_wait)));
    // Preparation waits for no node.
    let setup_transport = RedisTransport::cluster(ClusterRouter::new(state, None)).with_long_timeout();
    let prepared = async {
        if matches!(previous, ClusterHealth::Unknown | ClusterHealth::Down) {
            migrations::ensure_applied(
                &setup_transport,
                ready.mode,
                &inner.target.prefix,
                &inner.target.name,
            )
            .await?;
        }
        inner.signing_keys.refresh(&setup_transport, &inner.target.prefix).await
    };
    let refused = match prepared.await {
        Ok(refused) => refused,
        Err(error) => return report_health(inner, state, &error),
    };
    let down: Vec<_> = map.owners().into_iter().filter_map(|node| node.down_error()).collect();
    let number = inner.history.connections_opened.fetch_add(1, Relaxed) + 1;
    let active = ActiveConnection { transport, mode: ready.mode, number, deduplicates: false };
    match down.first() {
        None if previous == ClusterHealth::Healthy => {}
        None => inner.state.set_up(active, refused.as_ref()),
        Some(reason) => {
            let (count, all) = (down.len(), map.owners().len());
            let reason = format!("{count} of {all} nodes of the cluster cannot be used: {reason}");
            inner.state.set_degraded(active, &RedisError::unavailable(reason));
        }
    }
    if down.is_empty() { ClusterHealth::Healthy } else { ClusterHealth::Partial }
}

/// Nothing new is known: the health follows from the connections that exist.
fn report_health(inner: &Arc<ClientInner>, state: &ClusterState, error: &RedisError) -> ClusterHealth {
    let connected = state.slot_map().nodes.values().any(|node| node.ready().is_some());
    match inner.state.active_connection().filter(|_| connected) {
        Some(active) => {
            inner.state.set_degraded(active, error);
            ClusterHealth::Partial
        }
        None => {
            inner.state.set_lost(Instant::now(), false, error);
            inner.state.on_attempt_failed(error);
            ClusterHealth::Down
        }
    }
}
