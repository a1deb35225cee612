//! What every call looks at: which node has which slots, and how each node stands.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::place::Peer;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::library::Form;
use crate::redis::topology::Range;

/// A node without slots that a redirection named is kept for so long.
const WANTED: Duration = Duration::from_secs(30);

/// One node that takes writes.
pub(super) struct Node {
    pub(super) peer: Peer,
    pub(super) state: RwLock<State>,
}

/// How a node stands.
pub(super) enum State {
    /// The first attempt has not ended since then.
    Connecting(Instant),
    /// Calls can be made.
    Ready(Ready),
    /// Since when they cannot, and why.
    Away(Instant, Error),
}

/// A node's connection.
#[derive(Clone)]
pub(super) struct Ready {
    pub(super) caller: Caller,
    pub(super) form: Form,
}

impl Node {
    pub(super) fn ready(&self) -> Option<Ready> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Ready(ready) => Some(ready.clone()),
            State::Connecting(_) | State::Away(..) => None,
        }
    }

    /// Since when calls cannot be made; `None` if they can.
    pub(super) fn since(&self) -> Option<Instant> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Ready(_) => None,
            State::Connecting(since) | State::Away(since, _) => Some(*since),
        }
    }

    pub(super) fn set(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Why it cannot be used; `None` if it can.
    pub(super) fn away(&self) -> Option<Error> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Ready(_) => None,
            State::Connecting(_) => Some(Error::unavailable(format!("{} is being connected to", self.peer))),
            State::Away(_, error) => Some(Error::unavailable(format!("{}: {error}", self.peer))),
        }
    }

    pub(super) fn tried(&self) -> bool {
        !matches!(&*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Connecting(_))
    }
}

/// Which node has which slots.
#[derive(Default)]
pub(super) struct Table {
    pub(super) ranges: Vec<Range>,
    pub(super) nodes: HashMap<Peer, Arc<Node>>,
}

impl Table {
    pub(super) fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        let at = self.ranges.partition_point(|range| range.last < slot);
        let range = self.ranges.get(at).filter(|range| range.first <= slot)?;
        self.nodes.get(&range.node)
    }

    /// Nodes that have slots.
    pub(super) fn owners(&self) -> Vec<&Arc<Node>> {
        let mut peers: Vec<_> = self.ranges.iter().map(|range| &range.node).collect();
        peers.sort();
        peers.dedup();
        peers.into_iter().filter_map(|peer| self.nodes.get(peer)).collect()
    }
}

/// The map that every call looks at.
pub(super) struct Routes {
    pub(super) prefix: String,
    pub(super) table: RwLock<Arc<Table>>,
    /// Nodes that a redirection named and the map does not know.
    wanted: RwLock<HashMap<Peer, Instant>>,
    /// Told when a node said that the map is old, or a connection ended.
    pub(super) doubt: Notify,
    /// Goes up with every change of the map or of a node.
    pub(super) changes: watch::Sender<u64>,
}

impl Routes {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            table: RwLock::default(),
            wanted: RwLock::default(),
            doubt: Notify::new(),
            changes: watch::Sender::new(0),
        }
    }

    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Nodes that were named lately: one that is about to get its first slot stands in no map yet.
    pub(super) fn wanted(&self) -> Vec<Peer> {
        let mut wanted = self.wanted.write().unwrap_or_else(PoisonError::into_inner);
        wanted.retain(|_, named| named.elapsed() < WANTED);
        wanted.keys().cloned().collect()
    }

    pub(super) fn want(&self, peer: &Peer) {
        let mut wanted = self.wanted.write().unwrap_or_else(PoisonError::into_inner);
        wanted.insert(peer.clone(), Instant::now());
        drop(wanted);
        self.doubt.notify_one();
    }
}
