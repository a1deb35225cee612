//! Maintains the connection to one node: opens it, prepares it, and replaces it when it is lost.

use std::sync::Arc;

use tokio::time::Instant;

use crate::config::redis_url::HostPort;
use crate::redis::client::ClientInner;
use crate::redis::cluster::state::{ClusterNode, ClusterState, NodeState, ReadyNode};
use crate::redis::connection::{KeyRefresh, REJECTED_PAUSE, RedisConnection, STABLE_AFTER};
use crate::redis::error::RedisError;
use crate::redis::functions;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::reconnect_pauses::{ReconnectPauses, random_unit};

/// Keeps a connection to one node for as long as it belongs to the cluster.
pub(super) async fn maintain_node(inner: Arc<ClientInner>, state: Arc<ClusterState>, node: Arc<ClusterNode>) {
    let mut pauses = ReconnectPauses::new(inner.state.reconnect_wait, Instant::now());
    loop {
        let mut pause = None;
        match connect_node(&inner, &node.peer).await {
            Ok(connected) => {
                let since = Instant::now();
                let (lost, reason) = serve_until_lost(&inner, &state, &node, connected).await;
                node.set_state(NodeState::Down(lost, reason));
                pauses.on_lost(lost, since.elapsed() >= STABLE_AFTER);
            }
            Err(error) => {
                pause = error.is_misconfiguration().then_some(REJECTED_PAUSE);
                node.set_state(NodeState::Down(pauses.lost_at(), error));
            }
        }
        state.notify_changed();
        // A wrong password is wrong on every node: reading the map would only try it more often.
        if pause.is_none() {
            state.refresh_requested.notify_one();
        }
        tokio::time::sleep(pause.unwrap_or_else(|| pauses.next_pause(Instant::now(), random_unit()))).await;
    }
}

/// Uses a connection, and those that replace it, until one is lost; the start of the outage and the reason.
async fn serve_until_lost(
    inner: &ClientInner,
    state: &ClusterState,
    node: &ClusterNode,
    (mut connection, mut ready): (RedisConnection, ReadyNode),
) -> (Instant, RedisError) {
    loop {
        node.set_state(NodeState::Ready(ready.clone()));
        state.notify_changed();
        state.refresh_requested.notify_one();
        let on_silence_change = |since: Option<Instant>| {
            node.set_state(match since {
                Some(since) => NodeState::Down(since, RedisError::unavailable("it does not answer")),
                None => NodeState::Ready(ready.clone()),
            });
            state.notify_changed();
        };
        match connection
            .run_until_lost(inner, KeyRefresh::Elsewhere, on_silence_change, || {
                connect_node(inner, &node.peer)
            })
            .await
        {
            Ok(another) => (connection, ready) = another,
            Err(lost) => return lost,
        }
    }
}

async fn connect_node(
    inner: &ClientInner,
    peer: &HostPort,
) -> Result<(RedisConnection, ReadyNode), RedisError> {
    let connection = RedisConnection::open(inner, Some(peer)).await?;
    let transport = connection.setup_transport();
    let _ = transport.call("CLIENT", ["SETNAME", &inner.target.name]).await;
    let mode = connection.detect_mode(inner.target.mode).await?;
    if mode == InvocationMode::Plain {
        return Err(RedisError::invalid_setting(
            "a cluster needs server-side code, which this node or its user does not allow",
        ));
    }
    // Functions that are loaded on one node are not on the others.
    functions::ensure(&transport, mode).await?;
    let ready = ReadyNode { transport: connection.node_transport(), mode };
    Ok((connection, ready))
}
