//! A cluster, kept: one client a node, each with the one connection it lives as long as, and the map of slots.
//!
//! The client library has a mode of its own for clusters. It is not used: there, one dead node ends the connections to
//! all of them, a redirection holds up every other call while the map is read, and calls in flight on a connection that
//! is dropped are sent again although they may have been executed. Here each node is kept like a server of its own
//! (`link.rs`), a dead one costs its own slots, and a call is sent again only if a node said that it did not execute it.

mod node;
mod router;
mod routes;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::place::Peer;
use crate::redis::Inner;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::link;
use crate::redis::link::Link;
use crate::redis::link::Live;
use crate::redis::migrations;
use crate::redis::pauses::Pauses;
use crate::redis::pauses::random;
use crate::redis::secret;
use crate::redis::topology;
use crate::redis::topology::Range;
pub(super) use node::Visit;
pub(super) use router::Router;
use routes::Node;
use routes::Routes;
use routes::State;
use routes::Table;

/// How often the map is read when nobody says that it is old; the signing key is offered as often.
const REFRESH: Duration = Duration::from_secs(5);
/// Shortest time between two readings of the map, so that a thousand redirections cost one.
const SPACING: Duration = Duration::from_millis(20);
/// Longest wait for the first attempts at all nodes.
const SETTLE: Duration = Duration::from_millis(1400);

/// What keeps each node, ended with this value.
struct Keepers(HashMap<Peer, JoinHandle<()>>);

impl Drop for Keepers {
    fn drop(&mut self) {
        self.0.values().for_each(JoinHandle::abort);
    }
}

/// What is known of the whole, as it was last said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Unknown,
    Whole,
    Part,
    Away,
}

/// Keeps connections to all nodes for as long as the runtime lives.
pub(super) async fn keep(inner: Arc<Inner>, seeds: Vec<Peer>) {
    let routes = Arc::new(Routes::new(&inner.prefix));
    let mut keepers = Keepers(HashMap::new());
    let (mut said, mut pauses) = (Said::Unknown, Pauses::new(inner.hold, Instant::now()));
    loop {
        let mut refused = false;
        let now = match discover(&inner, &routes, &seeds).await {
            Ok(ranges) => {
                apply(&inner, &routes, &mut keepers, ranges);
                settle(&routes).await;
                introduce(&inner, &routes, said).await
            }
            Err(error) => {
                refused = error.misconfigured();
                standing(&inner, &routes, &error)
            }
        };
        if now == Said::Whole {
            pauses.lost(Instant::now(), true);
        }
        said = now;
        if refused {
            tokio::time::sleep(link::REFUSED_PAUSE).await;
            continue;
        }
        let pause = match said {
            Said::Whole => REFRESH,
            _ => pauses.next(Instant::now(), random()),
        };
        tokio::select! {
            () = routes.doubt.notified() => tokio::time::sleep(SPACING.mul_f64(1.0 + random())).await,
            () = tokio::time::sleep(pause.max(SPACING)) => {}
        }
    }
}

/// Asks for the map: a node that is connected, or one of those that are known from the start.
async fn discover(inner: &Inner, routes: &Routes, seeds: &[Peer]) -> Result<Vec<Range>, Error> {
    let table = routes.table();
    let mut last = Error::unavailable("no node of the cluster is known");
    for node in table.nodes.values() {
        let Some(ready) = node.ready() else { continue };
        match slots(&ready.caller, &node.peer).await {
            Ok(ranges) => return Ok(ranges),
            Err(error) => last = error,
        }
    }
    for seed in seeds {
        match Link::open(inner, Some(seed)).await {
            Ok(link) => match slots(&link.patient(), seed).await {
                Ok(ranges) => return Ok(ranges),
                Err(error) => last = error,
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn slots(caller: &Caller, asked: &Peer) -> Result<Vec<Range>, Error> {
    match caller.call("CLUSTER", ["SLOTS"]).await {
        Ok(answer) => topology::ranges(&answer, asked),
        Err(Error::Refused { reason, .. }) if reason.contains("cluster support disabled") => {
            Err(Error::setting(format!(
                "{asked} belongs to no cluster: redis.url must begin with redis:// (or redis-sentinel://)"
            )))
        }
        Err(error) => Err(error),
    }
}

/// Takes a new map into use: begins to keep nodes that are new, and lets go of those that have left.
fn apply(inner: &Arc<Inner>, routes: &Arc<Routes>, keepers: &mut Keepers, ranges: Vec<Range>) {
    let old = routes.table();
    let wanted = routes.wanted();
    let mut nodes = HashMap::new();
    for peer in ranges.iter().map(|range| &range.node).chain(&wanted) {
        if nodes.contains_key(peer) {
            continue;
        }
        let node = old.nodes.get(peer).cloned().unwrap_or_else(|| {
            let node =
                Arc::new(Node { peer: peer.clone(), state: RwLock::new(State::Connecting(Instant::now())) });
            let task = tokio::spawn(node::keep(Arc::clone(inner), Arc::clone(routes), Arc::clone(&node)));
            keepers.0.insert(peer.clone(), task);
            node
        });
        nodes.insert(peer.clone(), node);
    }
    for gone in old.nodes.keys().filter(|peer| !nodes.contains_key(peer)) {
        if let Some(task) = keepers.0.remove(gone) {
            tokio::spawn(async move {
                tokio::time::sleep(link::FAREWELL).await;
                task.abort();
            });
        }
    }
    *routes.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Table { ranges, nodes });
    routes.changed();
}

/// Waits until the first attempt at every node has ended.
async fn settle(routes: &Routes) {
    let mut changes = routes.changes.subscribe();
    let all = async {
        while !routes.table().nodes.values().all(|node| node.tried()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    // Whoever has not answered by then is away for now.
    let _ = tokio::time::timeout(SETTLE, all).await.is_ok();
}

/// Makes the cluster ready for requests and says how it stands.
async fn introduce(inner: &Arc<Inner>, routes: &Arc<Routes>, said: Said) -> Said {
    let table = routes.table();
    let Some(ready) = table.owners().into_iter().find_map(|node| node.ready()) else {
        let reason = table.owners().first().and_then(|node| node.away());
        let reason = reason.unwrap_or_else(|| Error::unavailable("no node of the cluster is connected"));
        return standing(inner, routes, &reason);
    };
    let caller = Caller::Cluster(Router::new(routes, Some(inner.hold)));
    // What prepares a cluster waits for no node.
    let patient = Caller::Cluster(Router::new(routes, None)).long();
    let prepared = async {
        if matches!(said, Said::Unknown | Said::Away) {
            migrations::bring_up(&patient, ready.form, &inner.prefix, &inner.name).await?;
        }
        secret::offer(&patient, inner).await
    };
    let refused = match prepared.await {
        Ok(refused) => refused,
        Err(error) => return standing(inner, routes, &error),
    };
    let away: Vec<_> = table.owners().into_iter().filter_map(|node| node.away()).collect();
    let number = inner.connections.fetch_add(1, Relaxed) + 1;
    let live = Live { caller, form: ready.form, number, notes: false };
    match away.first() {
        None if said == Said::Whole => {}
        None => inner.up(live, refused.as_ref()),
        Some(reason) => {
            let (count, all) = (away.len(), table.owners().len());
            let reason = format!("{count} of {all} nodes of the cluster cannot be used: {reason}");
            inner.impaired(live, &Error::unavailable(reason));
        }
    }
    if away.is_empty() { Said::Whole } else { Said::Part }
}

/// Nothing new is known: it stands as the connections that are there.
fn standing(inner: &Arc<Inner>, routes: &Routes, error: &Error) -> Said {
    let connected = routes.table().nodes.values().any(|node| node.ready().is_some());
    match inner.live().filter(|_| connected) {
        Some(live) => {
            inner.impaired(live, error);
            Said::Part
        }
        None => {
            inner.lost(Instant::now(), false, error);
            inner.failed(error);
            Said::Away
        }
    }
}
