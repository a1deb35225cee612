//! The way of one command: to the node that has its keys, and on to wherever that one sends it.

use std::sync::Arc;
use std::time::Duration;

use fred::types::Value;
use futures_util::future::BoxFuture;
use futures_util::future::join_all;

use crate::config::place::Peer;
use crate::redis::caller::Caller;
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

/// Sends each command to the node that has its keys; cheap to clone.
#[derive(Clone)]
pub(in crate::redis) struct Router {
    /// The map.
    pub(super) routes: Arc<Routes>,
    /// Longest time for one call, its redirections included.
    pub(super) timeout: Duration,
}

impl Router {
    /// The same with another deadline.
    pub(in crate::redis) fn within(&self, timeout: Duration) -> Self {
        Self { routes: Arc::clone(&self.routes), timeout }
    }

    /// One command. Keys get the names that they have in a cluster.
    ///
    /// Its future has no name of its own: it holds that of a node's caller, which could be a router's.
    pub(in crate::redis) fn send(
        &self,
        command: &'static str,
        args: Vec<Value>,
    ) -> BoxFuture<'_, Result<Value, Error>> {
        // Each step has a deadline of its own; a call that is redirected must not take several of them.
        let work = tokio::time::timeout(self.timeout, self.route(command, args));
        Box::pin(async { work.await.unwrap_or(Err(Error::Timeout)) })
    }

    async fn route(&self, command: &'static str, mut args: Vec<Value>) -> Result<Value, Error> {
        let keys = match topology::target(command, &args) {
            Target::Every => return self.every(command, args).await,
            Target::Any => return self.any(command, args).await,
            Target::Keys(keys) => keys,
        };
        let mut slot = None;
        for value in &mut args[keys] {
            let name = value.as_string().unwrap_or_default();
            let name = keys::in_cluster(&self.routes.prefix, &name).unwrap_or(name);
            slot.get_or_insert_with(|| topology::slot_of(&name));
            *value = Value::from(name);
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
                    let (node, caller) = self.owner(slot)?;
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
            let error = match answer.map_err(lost) {
                Err(error) => error,
                answered => return answered,
            };
            if let Some(to) = topology::redirect(&error, &node) {
                if matches!(to, Redirect::Moved(_)) {
                    self.routes.doubt.notify_one();
                }
                redirected = Some(to);
            } else if topology::torn(&error) {
                tokio::time::sleep(TORN_PAUSE).await;
            } else {
                return Err(error);
            }
            last = error;
        }
        // One slot's trouble, and nothing was executed: the others go on.
        Err(Error::unavailable(last.to_string()))
    }

    fn owner(&self, slot: u16) -> Result<(Peer, Caller), Error> {
        let table = self.routes.table();
        let node = table.owner(slot).ok_or_else(|| {
            self.routes.doubt.notify_one();
            Error::unavailable(format!("no node of the cluster serves slot {slot}"))
        })?;
        match node.caller(self.timeout) {
            Some(caller) => Ok((node.peer.clone(), caller)),
            None => Err(node.away().unwrap_or_else(|| Error::unavailable("it was away a moment ago"))),
        }
    }

    /// A node that a redirection names; waits until it is connected to, which the caller's deadline ends.
    async fn named(&self, peer: &Peer) -> Result<(Peer, Caller), Error> {
        let mut changes = self.routes.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let table = self.routes.table();
            match table.nodes.get(peer) {
                Some(node) => {
                    if let Some(caller) = node.caller(self.timeout) {
                        return Ok((node.peer.clone(), caller));
                    }
                }
                None => self.routes.want(peer),
            }
            if changes.changed().await.is_err() {
                return Err(Error::unavailable("the cluster is no longer watched"));
            }
        }
    }

    async fn any(&self, command: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let table = self.routes.table();
        let mut callers = table.nodes.values().filter_map(|node| node.caller(self.timeout));
        match callers.next() {
            Some(caller) => caller.send(command, args).await.map_err(lost),
            None => Err(Error::unavailable("no node of the cluster is connected")),
        }
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
        table.owners().into_iter().filter_map(|node| node.caller(self.timeout)).collect()
    }
}

/// A node was connected: what its client calls unreachable was sent, or may have been.
fn lost(error: Error) -> Error {
    match error {
        Error::Unavailable { reason } => Error::Lost { reason },
        other => other,
    }
}
