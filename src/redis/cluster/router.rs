//! Sends a command to the node that has its keys, and follows redirections.

use std::sync::Arc;
use std::time::Duration;

use fred::types::Value;
use futures_util::future::{BoxFuture, join_all};
use tokio::time::{Instant, timeout_at};

use crate::config::redis_url::HostPort;
use crate::redis::cluster::state::{ClusterNode, ClusterState};
use crate::redis::error::RedisError;
use crate::redis::hash_slots::{self, ClusterRedirect, CommandRoute};
use crate::redis::keys;
use crate::redis::node_transport::NodeTransport;

/// Most redirections that one call follows, migrating keys included.
const REDIRECTS_MAX: usize = 16;
/// Pause before a call whose keys are on two nodes is sent again.
const CROSS_SLOT_PAUSE: Duration = Duration::from_millis(3);
/// Shortest wait for a node that a redirection names, because it may not be connected yet.
const REDIRECT_WAIT_MIN: Duration = Duration::from_secs(1);

/// Sends each command to the node that has its keys; cheap to clone.
#[derive(Clone)]
pub(in crate::redis) struct ClusterRouter {
    /// The map.
    state: Arc<ClusterState>,
    /// How long calls wait for a node that is down, counted from the start of its outage; `None`: they do not wait.
    reconnect_wait: Option<Duration>,
    /// Whether responses may be so large that they take longer than the command timeout.
    allows_long_response: bool,
    /// Whether a call fails at once when its keys are on two nodes; otherwise it waits until they are on one.
    returns_cross_slot: bool,
}

impl ClusterRouter {
    pub(super) fn new(state: &Arc<ClusterState>, reconnect_wait: Option<Duration>) -> Self {
        Self {
            state: Arc::clone(state),
            reconnect_wait,
            allows_long_response: false,
            returns_cross_slot: false,
        }
    }

    /// The same router for calls whose responses may be large.
    pub(in crate::redis) fn with_long_timeout(&self) -> Self {
        Self { allows_long_response: true, ..self.clone() }
    }

    /// The same router for calls that can be split.
    pub(in crate::redis) fn without_cross_slot_retry(&self) -> Self {
        Self { returns_cross_slot: true, ..self.clone() }
    }

    /// A number that changes when the map or any node does.
    pub(in crate::redis) fn change_count(&self) -> u64 {
        *self.state.changes.borrow()
    }

    /// Sends one command. Keys are renamed to their names in a cluster.
    ///
    /// Boxed, so that the futures of all calls do not grow by this one.
    pub(in crate::redis) fn send(
        &self,
        command: &'static str,
        args: Vec<Value>,
    ) -> BoxFuture<'_, Result<Value, RedisError>> {
        Box::pin(self.route(command, args))
    }

    async fn route(&self, command: &'static str, mut args: Vec<Value>) -> Result<Value, RedisError> {
        let keys = match hash_slots::command_route(command, &args) {
            CommandRoute::AllNodes => return self.send_to_all(command, args).await,
            CommandRoute::AnyNode => return self.send_to_any(command, args).await,
            CommandRoute::Keys(keys) => keys,
        };
        let mut slot = None;
        for value in &mut args[keys] {
            let key = value.as_bytes().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
            let name = keys::cluster_name(&self.state.prefix, key);
            slot.get_or_insert_with(|| hash_slots::hash_slot(name.as_deref().unwrap_or(key)));
            if let Some(name) = name {
                *value = Value::from(name);
            }
        }
        self.follow_redirects(command, args, slot.unwrap_or(0)).await
    }

    /// Sends to the slot's node, and follows redirections.
    async fn follow_redirects(
        &self,
        command: &'static str,
        args: Vec<Value>,
        slot: u16,
    ) -> Result<Value, RedisError> {
        let mut redirected = None;
        let mut last = RedisError::unavailable("the cluster sends a call from node to node");
        for _ in 0..=REDIRECTS_MAX {
            let (node, transport, asking) = match &redirected {
                None => {
                    let (node, transport) = self.slot_owner(slot).await?;
                    (node, transport, false)
                }
                Some(ClusterRedirect::Moved(peer)) => {
                    self.redirect_target(peer).await.map(|(node, transport)| (node, transport, false))?
                }
                Some(ClusterRedirect::Ask(peer)) => {
                    self.redirect_target(peer).await.map(|(node, transport)| (node, transport, true))?
                }
            };
            let answer = if asking {
                transport.send_asking(command, args.clone()).await
            } else {
                transport.send(command, args.clone()).await
            };
            let error = match answer {
                Err(error) => error,
                answered => return answered,
            };
            if let Some(to) = hash_slots::parse_redirect(&error, &node) {
                if matches!(to, ClusterRedirect::Moved(_)) {
                    self.state.refresh_requested.notify_one();
                }
                redirected = Some(to);
            } else if hash_slots::is_cross_slot(&error) && !self.returns_cross_slot
                || matches!(error, RedisError::Unavailable { .. })
            {
                // Nothing was executed: keys are being migrated, or the connection ended before the call was sent.
                tokio::time::sleep(CROSS_SLOT_PAUSE).await;
            } else {
                return Err(error);
            }
            last = error;
        }
        // Only this slot is affected and nothing was executed: `Unavailable` opens no breaker.
        Err(RedisError::unavailable(last.to_string()))
    }

    /// The node that has a slot; waits for one that went down recently, or for its replacement.
    async fn slot_owner(&self, slot: u16) -> Result<(HostPort, NodeTransport), RedisError> {
        let mut changes = self.state.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let map = self.state.slot_map();
            let node = map.owner(slot).ok_or_else(|| {
                self.state.refresh_requested.notify_one();
                RedisError::unavailable(format!("no node of the cluster serves slot {slot}"))
            })?;
            if let Some(transport) = self.node_transport(node) {
                return Ok((node.peer.clone(), transport));
            }
            let end = node
                .unready_since()
                .zip(self.reconnect_wait)
                .map(|(since, reconnect_wait)| since + reconnect_wait);
            let changed = match end.filter(|end| *end > Instant::now()) {
                Some(end) => timeout_at(end, changes.changed()).await.is_ok_and(|changed| changed.is_ok()),
                None => false,
            };
            if !changed {
                let down = node.down_error();
                return Err(down.unwrap_or_else(|| RedisError::unavailable("it was down a moment ago")));
            }
        }
    }

    /// The node that a redirection names; waits until it is connected.
    async fn redirect_target(&self, peer: &HostPort) -> Result<(HostPort, NodeTransport), RedisError> {
        let end = Instant::now() + self.reconnect_wait.unwrap_or(REDIRECT_WAIT_MIN).max(REDIRECT_WAIT_MIN);
        let mut changes = self.state.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let map = self.state.slot_map();
            match map.nodes.get(peer) {
                Some(node) => {
                    if let Some(transport) = self.node_transport(node) {
                        return Ok((node.peer.clone(), transport));
                    }
                }
                None => self.state.request_node(peer),
            }
            if !timeout_at(end, changes.changed()).await.is_ok_and(|changed| changed.is_ok()) {
                return Err(RedisError::unavailable(format!(
                    "{peer}, which a node named, cannot be reached"
                )));
            }
        }
    }

    async fn send_to_any(&self, command: &'static str, args: Vec<Value>) -> Result<Value, RedisError> {
        let map = self.state.slot_map();
        let mut transports = map.nodes.values().filter_map(|node| self.node_transport(node));
        match transports.next() {
            Some(transport) => transport.send(command, args).await,
            None => Err(RedisError::unavailable("no node of the cluster is connected")),
        }
    }

    fn node_transport(&self, node: &ClusterNode) -> Option<NodeTransport> {
        let transport = node.ready()?.transport;
        Some(if self.allows_long_response { transport.with_long_timeout() } else { transport })
    }

    /// Sends to every node and returns the worst result; "already exists" is no failure.
    async fn send_to_all(&self, command: &'static str, args: Vec<Value>) -> Result<Value, RedisError> {
        let map = self.state.slot_map();
        let transports: Vec<_> =
            map.owners().into_iter().filter_map(|node| self.node_transport(node)).collect();
        let responses =
            join_all(transports.iter().map(|transport| transport.send(command, args.clone()))).await;
        let harmless = |error: &RedisError| matches!(error, RedisError::Rejected { reason, .. } if reason.contains("already exists"));
        let weight = |response: &Result<Value, RedisError>| match response {
            Ok(_) => 0,
            Err(error) if harmless(error) => 1,
            Err(_) => 2,
        };
        let worst = responses.into_iter().max_by_key(weight);
        worst.unwrap_or_else(|| Err(RedisError::unavailable("no node of the cluster is connected")))
    }
}
