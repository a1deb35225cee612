//! The way of one command: to the node that has its keys, and on to wherever that one sends it.

use std::sync::Arc;
use std::time::Duration;

use fred::types::Value;
use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::config::place::Peer;
use crate::redis::caller::Caller;
use crate::redis::cluster::routes::Node;
use crate::redis::cluster::routes::Routes;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::topology;
use crate::redis::topology::Redirect;
use crate::redis::topology::Target;

/// Most times one call follows a redirection, or waits for keys that are on their way.
const REDIRECTS_MAX: usize = 16;
/// Pause before a call whose keys lie on two nodes is made once more.
const TORN_PAUSE: Duration = Duration::from_millis(3);
/// Shortest wait for a node that a redirection names: it is connected to only then.
const NAMED_MIN: Duration = Duration::from_secs(1);

/// Sends each command to the node that has its keys; cheap to clone.
#[derive(Clone)]
pub(in crate::redis) struct Router {
    /// The map.
    routes: Arc<Routes>,
    /// How long calls wait for a node that is away, counted from when it went; none: they do not.
    hold: Option<Duration>,
    /// Whether answers may take longer than others.
    long: bool,
    /// Whether a call is told at once that its keys lie on two nodes; if not, it waits for them to come together.
    torn: bool,
}

impl Router {
    pub(super) fn new(routes: &Arc<Routes>, hold: Option<Duration>) -> Self {
        Self { routes: Arc::clone(routes), hold, long: false, torn: false }
    }

    /// The same for calls whose answers may be large.
    pub(in crate::redis) fn long(&self) -> Self {
        Self { long: true, ..self.clone() }
    }

    /// The same for calls that can be made in pieces.
    pub(in crate::redis) fn torn(&self) -> Self {
        Self { torn: true, ..self.clone() }
    }

    /// A number that changes when the map or any node does.
    pub(in crate::redis) fn changes(&self) -> u64 {
        *self.routes.changes.borrow()
    }

    /// One command. Keys get the names that they have in a cluster.
    ///
    /// Its future has no name of its own: it holds that of a node's caller, which could be a router's.
    pub(in crate::redis) fn send(
        &self,
        command: &'static str,
        args: Vec<Value>,
    ) -> BoxFuture<'_, Result<Value, Error>> {
        Box::pin(self.route(command, args))
    }

    async fn route(&self, command: &'static str, mut args: Vec<Value>) -> Result<Value, Error> {
        let keys = match topology::target(command, &args) {
            Target::Every => return self.every(command, args).await,
            Target::Any => return self.any(command, args).await,
            Target::Keys(keys) => keys,
        };
        let mut slot = None;
        for value in &mut args[keys] {
            let key = value.as_bytes().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
            let name = keys::in_cluster(&self.routes.prefix, key);
            slot.get_or_insert_with(|| topology::slot_of(name.as_deref().unwrap_or(key)));
            if let Some(name) = name {
                *value = Value::from(name);
            }
        }
        self.follow(command, args, slot.unwrap_or(0)).await
    }

    /// To the slot's node, and on to wherever that one sends it.
    async fn follow(&self, command: &'static str, args: Vec<Value>, slot: u16) -> Result<Value, Error> {
        let mut redirected = None;
        let mut last = Error::unavailable("the cluster sends a call from node to node");
        for _ in 0..=REDIRECTS_MAX {
            let (node, caller, asking) = match &redirected {
                None => {
                    let (node, caller) = self.owner(slot).await?;
                    (node, caller, false)
                }
                Some(Redirect::Moved(peer)) => {
                    self.named(peer).await.map(|(node, caller)| (node, caller, false))?
                }
                Some(Redirect::Ask(peer)) => {
                    self.named(peer).await.map(|(node, caller)| (node, caller, true))?
                }
            };
            let answer = if asking {
                caller.ask(command, args.clone()).await
            } else {
                caller.send(command, args.clone()).await
            };
            let error = match answer {
                Err(error) => error,
                answered => return answered,
            };
            if let Some(to) = topology::redirect(&error, &node) {
                if matches!(to, Redirect::Moved(_)) {
                    self.routes.doubt.notify_one();
                }
                redirected = Some(to);
            } else if topology::torn(&error) && !self.torn || matches!(error, Error::Unavailable { .. }) {
                // Nothing was executed: keys are on their way, or the connection ended before the call was sent.
                tokio::time::sleep(TORN_PAUSE).await;
            } else {
                return Err(error);
            }
            last = error;
        }
        // One slot's trouble, and nothing was executed: the others go on.
        Err(Error::unavailable(last.to_string()))
    }

    /// The node that has a slot; waits for one that went away a short time ago, or for another one to take its place.
    async fn owner(&self, slot: u16) -> Result<(Peer, Caller), Error> {
        let mut changes = self.routes.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let table = self.routes.table();
            let node = table.owner(slot).ok_or_else(|| {
                self.routes.doubt.notify_one();
                Error::unavailable(format!("no node of the cluster serves slot {slot}"))
            })?;
            if let Some(caller) = self.caller(node) {
                return Ok((node.peer.clone(), caller));
            }
            let end = node.since().zip(self.hold).map(|(since, hold)| since + hold);
            let changed = match end.filter(|end| *end > Instant::now()) {
                Some(end) => timeout_at(end, changes.changed()).await.is_ok_and(|changed| changed.is_ok()),
                None => false,
            };
            if !changed {
                let away = node.away();
                return Err(away.unwrap_or_else(|| Error::unavailable("it was away a moment ago")));
            }
        }
    }

    /// A node that a redirection names; waits until it is connected to.
    async fn named(&self, peer: &Peer) -> Result<(Peer, Caller), Error> {
        let end = Instant::now() + self.hold.unwrap_or(NAMED_MIN).max(NAMED_MIN);
        let mut changes = self.routes.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let table = self.routes.table();
            match table.nodes.get(peer) {
                Some(node) => {
                    if let Some(caller) = self.caller(node) {
                        return Ok((node.peer.clone(), caller));
                    }
                }
                None => self.routes.want(peer),
            }
            if !timeout_at(end, changes.changed()).await.is_ok_and(|changed| changed.is_ok()) {
                return Err(Error::unavailable(format!("{peer}, which a node named, cannot be reached")));
            }
        }
    }

    async fn any(&self, command: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let table = self.routes.table();
        let mut callers = table.nodes.values().filter_map(|node| self.caller(node));
        match callers.next() {
            Some(caller) => caller.send(command, args).await,
            None => Err(Error::unavailable("no node of the cluster is connected")),
        }
    }

    fn caller(&self, node: &Node) -> Option<Caller> {
        let caller = node.ready()?.caller;
        Some(if self.long { caller.long() } else { caller })
    }

    /// To every node, whatever one of them says; that it was there already is no failure.
    async fn every(&self, command: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let callers = self.callers();
        let said = join_all(callers.iter().map(|caller| caller.send(command, args.clone()))).await;
        let harmless = |error: &Error| matches!(error, Error::Refused { reason, .. } if reason.contains("already exists"));
        let weight = |said: &Result<Value, Error>| match said {
            Ok(_) => 0,
            Err(error) if harmless(error) => 1,
            Err(_) => 2,
        };
        let worst = said.into_iter().max_by_key(weight);
        worst.unwrap_or_else(|| Err(Error::unavailable("no node of the cluster is connected")))
    }

    /// One caller for each node.
    pub(in crate::redis) fn callers(&self) -> Vec<Caller> {
        let table = self.routes.table();
        table.owners().into_iter().filter_map(|node| self.caller(node)).collect()
    }
}
