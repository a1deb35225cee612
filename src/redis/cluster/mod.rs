//! A cluster, kept: one client a node, each with the one connection it lives as long as, and the map of slots.
//!
//! The client library has a mode of its own for clusters. It is not used: there, one dead node ends the connections to
//! all of them, a redirection holds up every other call while the map is read, and calls in flight on a connection that
//! is dropped are sent again although they may have been executed. Here each node is kept like a server of its own
//! (`link.rs`), a dead one costs its own slots, and a call is sent again only if a node said that it did not execute it.

mod nodes;
mod router;
mod state;

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

pub(super) use nodes::OneShotCluster;
pub(super) use router::ClusterRouter;
use state::{ClusterNode, ClusterState, HashSlotMap, NodeState};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::redis_url::HostPort;
use crate::redis::connection::{ActiveConnection, RedisConnection};
use crate::redis::error::RedisError;
use crate::redis::hash_slots::HashSlotRange;
use crate::redis::reconnect_pauses::{ReconnectPauses, random_unit};
use crate::redis::transport::RedisTransport;
use crate::redis::{ClientInner, connection, hash_slots, migrations, signing_keys};

/// How often the map is read when nobody says that it is old; the signing key is offered as often.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest time between two readings of the map, so that a thousand redirections cost one.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(20);
/// Longest wait for the first attempts at all nodes.
const FIRST_ATTEMPTS_TIMEOUT: Duration = Duration::from_millis(1400);

/// What keeps each node, ended with this value.
struct NodeTasks(HashMap<HostPort, JoinHandle<()>>);

impl Drop for NodeTasks {
    fn drop(&mut self) {
        self.0.values().for_each(JoinHandle::abort);
    }
}

/// What is known of the whole, as it was last said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClusterHealth {
    Unknown,
    Healthy,
    Partial,
    Down,
}

/// Keeps connections to all nodes for as long as the runtime lives.
pub(super) async fn maintain(inner: Arc<ClientInner>, seeds: Vec<HostPort>) {
    let routes = Arc::new(ClusterState::new(&inner.prefix));
    let mut node_tasks = NodeTasks(HashMap::new());
    let (mut health, mut pauses) =
        (ClusterHealth::Unknown, ReconnectPauses::new(inner.reconnect_wait, Instant::now()));
    loop {
        let mut refused = false;
        let now = match discover(&inner, &routes, &seeds).await {
            Ok(ranges) => {
                apply_hash_slots(&inner, &routes, &mut node_tasks, ranges);
                wait_for_first_attempts(&routes).await;
                publish_transport(&inner, &routes, health).await
            }
            Err(error) => {
                refused = error.is_misconfiguration();
                report_health(&inner, &routes, &error)
            }
        };
        if now == ClusterHealth::Healthy {
            pauses.on_lost(Instant::now(), true);
        }
        health = now;
        if refused {
            tokio::time::sleep(connection::REJECTED_PAUSE).await;
            continue;
        }
        let pause = match health {
            ClusterHealth::Healthy => REFRESH_INTERVAL,
            _ => pauses.next_pause(Instant::now(), random_unit()),
        };
        tokio::select! {
            () = routes.refresh_requested.notified() => tokio::time::sleep(MIN_REFRESH_INTERVAL.mul_f64(1.0 + random_unit())).await,
            () = tokio::time::sleep(pause.max(MIN_REFRESH_INTERVAL)) => {}
        }
    }
}

/// Asks for the map: a node that is connected, or one of those that are known from the start.
async fn discover(
    inner: &ClientInner,
    routes: &ClusterState,
    seeds: &[HostPort],
) -> Result<Vec<HashSlotRange>, RedisError> {
    let table = routes.slot_map();
    let mut last = RedisError::unavailable("no node of the cluster is known");
    for node in table.nodes.values() {
        let Some(ready) = node.ready() else { continue };
        match query_hash_slots(&ready.transport, &node.peer).await {
            Ok(ranges) => return Ok(ranges),
            Err(error) => last = error,
        }
    }
    for seed in seeds {
        match RedisConnection::open(inner, Some(seed)).await {
            Ok(link) => match query_hash_slots(&link.setup_transport(), seed).await {
                Ok(ranges) => return Ok(ranges),
                Err(error) => last = error,
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn query_hash_slots(
    caller: &RedisTransport,
    queried: &HostPort,
) -> Result<Vec<HashSlotRange>, RedisError> {
    match caller.call("CLUSTER", ["SLOTS"]).await {
        Ok(answer) => hash_slots::parse_ranges(&answer, queried),
        Err(RedisError::Rejected { reason, .. }) if reason.contains("cluster support disabled") => {
            Err(RedisError::invalid_setting(format!(
                "{queried} belongs to no cluster: redis.url must begin with redis:// (or redis-sentinel://)"
            )))
        }
        Err(error) => Err(error),
    }
}

/// Takes a new map into use: begins to keep nodes that are new, and lets go of those that have left.
fn apply_hash_slots(
    inner: &Arc<ClientInner>,
    routes: &Arc<ClusterState>,
    node_tasks: &mut NodeTasks,
    ranges: Vec<HashSlotRange>,
) {
    let old = routes.slot_map();
    let requested = routes.requested_nodes();
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
                tokio::spawn(nodes::maintain_node(Arc::clone(inner), Arc::clone(routes), Arc::clone(&node)));
            node_tasks.0.insert(peer.clone(), task);
            node
        });
        nodes.insert(peer.clone(), node);
    }
    for gone in old.nodes.keys().filter(|peer| !nodes.contains_key(peer)) {
        if let Some(task) = node_tasks.0.remove(gone) {
            tokio::spawn(async move {
                tokio::time::sleep(connection::LINGER).await;
                task.abort();
            });
        }
    }
    *routes.slot_map.write().unwrap_or_else(PoisonError::into_inner) =
        Arc::new(HashSlotMap { ranges, nodes });
    routes.notify_changed();
}

/// Waits until the first attempt at every node has ended.
async fn wait_for_first_attempts(routes: &ClusterState) {
    let mut changes = routes.changes.subscribe();
    let all = async {
        while !routes.slot_map().nodes.values().all(|node| node.was_tried()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    // Whoever has not answered by then is away for now.
    let _ = tokio::time::timeout(FIRST_ATTEMPTS_TIMEOUT, all).await.is_ok();
}

/// Makes the cluster ready for requests and says how it stands.
async fn publish_transport(
    inner: &Arc<ClientInner>,
    routes: &Arc<ClusterState>,
    previous: ClusterHealth,
) -> ClusterHealth {
    let table = routes.slot_map();
    let Some(ready) = table.owners().into_iter().find_map(|node| node.ready()) else {
        let reason = table.owners().first().and_then(|node| node.down_error());
        let reason = reason.unwrap_or_else(|| RedisError::unavailable("no node of the cluster is connected"));
        return report_health(inner, routes, &reason);
    };
    let caller = RedisTransport::Cluster(ClusterRouter::new(routes, Some(inner.reconnect_wait)));
    // What prepares a cluster waits for no node.
    let patient = RedisTransport::Cluster(ClusterRouter::new(routes, None)).with_long_timeout();
    let prepared = async {
        if matches!(previous, ClusterHealth::Unknown | ClusterHealth::Down) {
            migrations::ensure_applied(&patient, ready.mode, &inner.prefix, &inner.name).await?;
        }
        signing_keys::refresh_signing_keys(&patient, inner).await
    };
    let refused = match prepared.await {
        Ok(refused) => refused,
        Err(error) => return report_health(inner, routes, &error),
    };
    let away: Vec<_> = table.owners().into_iter().filter_map(|node| node.down_error()).collect();
    let number = inner.connections_opened.fetch_add(1, Relaxed) + 1;
    let live = ActiveConnection { transport: caller, mode: ready.mode, number, deduplicates: false };
    match away.first() {
        None if previous == ClusterHealth::Healthy => {}
        None => inner.set_up(live, refused.as_ref()),
        Some(reason) => {
            let (count, all) = (away.len(), table.owners().len());
            let reason = format!("{count} of {all} nodes of the cluster cannot be used: {reason}");
            inner.set_degraded(live, &RedisError::unavailable(reason));
        }
    }
    if away.is_empty() { ClusterHealth::Healthy } else { ClusterHealth::Partial }
}

/// Nothing new is known: it stands as the connections that are there.
fn report_health(inner: &Arc<ClientInner>, routes: &ClusterState, error: &RedisError) -> ClusterHealth {
    let connected = routes.slot_map().nodes.values().any(|node| node.ready().is_some());
    match inner.active_connection().filter(|_| connected) {
        Some(live) => {
            inner.set_degraded(live, error);
            ClusterHealth::Partial
        }
        None => {
            inner.set_lost(Instant::now(), false, error);
            inner.on_attempt_failed(error);
            ClusterHealth::Down
        }
    }
}
