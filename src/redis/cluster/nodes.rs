//! One node: connected to, made ready, watched, and connected to anew.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::time::Instant;

use crate::config::redis_url::HostPort;
use crate::redis::cluster::router::ClusterRouter;
use crate::redis::cluster::state::{ClusterNode, ClusterState, HashSlotMap, NodeState, ReadyNode};
use crate::redis::connection::RedisConnection;
use crate::redis::error::RedisError;
use crate::redis::functions::InvocationMode;
use crate::redis::reconnect_pauses::{ReconnectPauses, random_unit};
use crate::redis::transport::RedisTransport;
use crate::redis::{ClientInner, cluster, connection, functions};

/// Keeps a connection to one node for as long as it belongs to the cluster.
pub(super) async fn maintain_node(
    inner: Arc<ClientInner>,
    routes: Arc<ClusterState>,
    node: Arc<ClusterNode>,
) {
    let mut pauses = ReconnectPauses::new(inner.reconnect_wait, Instant::now());
    loop {
        let mut pause = None;
        match connect_node(&inner, &node.peer).await {
            Ok(connected) => {
                let since = Instant::now();
                let (lost, reason) = serve_until_lost(&inner, &routes, &node, connected).await;
                node.set_state(NodeState::Down(lost, reason));
                pauses.on_lost(lost, since.elapsed() >= connection::STABLE_AFTER);
            }
            Err(error) => {
                pause = error.is_misconfiguration().then_some(connection::REJECTED_PAUSE);
                node.set_state(NodeState::Down(pauses.lost_at(), error));
            }
        }
        routes.notify_changed();
        // A password that is wrong here is wrong everywhere: looking around would only try it more often.
        if pause.is_none() {
            routes.refresh_requested.notify_one();
        }
        tokio::time::sleep(pause.unwrap_or_else(|| pauses.next_pause(Instant::now(), random_unit()))).await;
    }
}

/// Uses a connection, and those that take its place, until one is lost; since when, and why.
async fn serve_until_lost(
    inner: &ClientInner,
    routes: &ClusterState,
    node: &ClusterNode,
    (mut link, mut ready): (RedisConnection, ReadyNode),
) -> (Instant, RedisError) {
    loop {
        node.set_state(NodeState::Ready(ready.clone()));
        routes.notify_changed();
        routes.refresh_requested.notify_one();
        let fell = |since: Option<Instant>| {
            node.set_state(match since {
                Some(since) => NodeState::Down(since, RedisError::unavailable("it does not answer")),
                None => NodeState::Ready(ready.clone()),
            });
            routes.notify_changed();
        };
        match link.run_until_lost(inner, fell, || connect_node(inner, &node.peer)).await {
            Ok(another) => (link, ready) = another,
            Err(lost) => return lost,
        }
    }
}

async fn connect_node(
    inner: &ClientInner,
    peer: &HostPort,
) -> Result<(RedisConnection, ReadyNode), RedisError> {
    let link = RedisConnection::open(inner, Some(peer)).await?;
    let patient = link.setup_transport();
    let _ = patient.call("CLIENT", ["SETNAME", &inner.name]).await;
    let form = link.detect_mode(inner.mode).await?;
    if form == InvocationMode::Plain {
        return Err(RedisError::invalid_setting(
            "a cluster needs server-side code, which this node or its user does not allow",
        ));
    }
    // Code that is loaded on one node is not on the others.
    functions::ensure(&patient, form).await?;
    let ready = ReadyNode { transport: link.transport(), mode: form };
    Ok((link, ready))
}

/// A cluster without anybody who keeps it, for work that is done once.
pub(in crate::redis) struct OneShotCluster {
    /// Its connections end with this value.
    _connections: Vec<RedisConnection>,
    transport: RedisTransport,
    mode: InvocationMode,
}

impl OneShotCluster {
    /// Connects to every node once; code is loaded by nobody.
    ///
    /// # Errors
    /// Why one of them cannot be reached: work that is done once is done on all of them or not at all.
    pub(in crate::redis) async fn open(inner: &ClientInner, seeds: &[HostPort]) -> Result<Self, RedisError> {
        let routes = Arc::new(ClusterState::new(&inner.prefix));
        let ranges = cluster::discover(inner, &routes, seeds).await?;
        let (mut links, mut nodes, mut form) = (Vec::new(), HashMap::new(), InvocationMode::Function);
        for range in &ranges {
            if nodes.contains_key(&range.node) {
                continue;
            }
            let link = RedisConnection::open(inner, Some(&range.node)).await?;
            form = link.detect_mode(inner.mode).await?;
            let ready = ReadyNode { transport: link.setup_transport(), mode: form };
            let node = ClusterNode { peer: range.node.clone(), state: RwLock::new(NodeState::Ready(ready)) };
            nodes.insert(range.node.clone(), Arc::new(node));
            links.push(link);
        }
        *routes.slot_map.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(HashSlotMap { ranges, nodes });
        let caller = RedisTransport::Cluster(ClusterRouter::new(&routes, None)).with_long_timeout();
        Ok(Self { _connections: links, transport: caller, mode: form })
    }

    /// A caller for the whole cluster.
    pub(in crate::redis) fn setup_transport(&self) -> RedisTransport {
        self.transport.clone()
    }

    /// How code is called here.
    pub(in crate::redis) fn invocation_mode(&self) -> InvocationMode {
        self.mode
    }
}
