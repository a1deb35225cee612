//! One node: connected to, made ready, watched, and connected to anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use tokio::time::Instant;

use crate::config::place::Peer;
use crate::redis::Inner;
use crate::redis::caller::Caller;
use crate::redis::cluster;
use crate::redis::cluster::router::Router;
use crate::redis::cluster::routes::Node;
use crate::redis::cluster::routes::Ready;
use crate::redis::cluster::routes::Routes;
use crate::redis::cluster::routes::State;
use crate::redis::cluster::routes::Table;
use crate::redis::error::Error;
use crate::redis::library;
use crate::redis::library::Form;
use crate::redis::link;
use crate::redis::link::Link;
use crate::redis::pauses::Pauses;
use crate::redis::pauses::random;

/// Keeps a connection to one node for as long as it belongs to the cluster.
pub(super) async fn keep(inner: Arc<Inner>, routes: Arc<Routes>, node: Arc<Node>) {
    let mut pauses = Pauses::new(inner.hold, Instant::now());
    loop {
        let mut pause = None;
        match open(&inner, &node.peer).await {
            Ok(connected) => {
                let since = Instant::now();
                let (lost, reason) = live(&inner, &routes, &node, connected).await;
                node.set(State::Away(lost, reason));
                pauses.lost(lost, since.elapsed() >= link::SETTLED);
            }
            Err(error) => {
                pause = error.misconfigured().then_some(link::REFUSED_PAUSE);
                node.set(State::Away(pauses.away(), error));
            }
        }
        routes.changed();
        // A password that is wrong here is wrong everywhere: looking around would only try it more often.
        if pause.is_none() {
            routes.doubt.notify_one();
        }
        tokio::time::sleep(pause.unwrap_or_else(|| pauses.next(Instant::now(), random()))).await;
    }
}

/// Uses a connection, and those that take its place, until one is lost; since when, and why.
async fn live(
    inner: &Inner,
    routes: &Routes,
    node: &Node,
    (mut link, mut ready): (Link, Ready),
) -> (Instant, Error) {
    loop {
        node.set(State::Ready(ready.clone()));
        routes.changed();
        routes.doubt.notify_one();
        let fell = |since: Option<Instant>| {
            node.set(match since {
                Some(since) => State::Away(since, Error::unavailable("it does not answer")),
                None => State::Ready(ready.clone()),
            });
            routes.changed();
        };
        match link.lives(inner, fell, || open(inner, &node.peer)).await {
            Ok(another) => (link, ready) = another,
            Err(lost) => return lost,
        }
    }
}

async fn open(inner: &Inner, peer: &Peer) -> Result<(Link, Ready), Error> {
    let link = Link::open(inner, Some(peer)).await?;
    let patient = link.patient();
    let _ = patient.call("CLIENT", ["SETNAME", &inner.name]).await;
    let form = link.form(inner.mode).await?;
    if form == Form::Plain {
        return Err(Error::setting(
            "a cluster needs server-side code, which this node or its user does not allow",
        ));
    }
    // Code that is loaded on one node is not on the others.
    library::ensure(&patient, form).await?;
    let ready = Ready { caller: link.caller(), form };
    Ok((link, ready))
}

/// A cluster without anybody who keeps it, for work that is done once.
pub(in crate::redis) struct Visit {
    /// Its connections end with this value.
    _links: Vec<Link>,
    caller: Caller,
    form: Form,
}

impl Visit {
    /// Connects to every node once; code is loaded by nobody.
    ///
    /// # Errors
    /// Why one of them cannot be reached: work that is done once is done on all of them or not at all.
    pub(in crate::redis) async fn open(inner: &Inner, seeds: &[Peer]) -> Result<Self, Error> {
        let routes = Arc::new(Routes::new(&inner.prefix));
        let ranges = cluster::discover(inner, &routes, seeds).await?;
        let (mut links, mut nodes, mut form) = (Vec::new(), HashMap::new(), Form::Function);
        for range in &ranges {
            if nodes.contains_key(&range.node) {
                continue;
            }
            let link = Link::open(inner, Some(&range.node)).await?;
            form = link.form(inner.mode).await?;
            let ready = Ready { caller: link.patient(), form };
            let node = Node { peer: range.node.clone(), state: RwLock::new(State::Ready(ready)) };
            nodes.insert(range.node.clone(), Arc::new(node));
            links.push(link);
        }
        *routes.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Table { ranges, nodes });
        let caller = Caller::Cluster(Router::new(&routes, None)).long();
        Ok(Self { _links: links, caller, form })
    }

    /// A caller for the whole cluster.
    pub(in crate::redis) fn patient(&self) -> Caller {
        self.caller.clone()
    }

    /// How code is called here.
    pub(in crate::redis) fn form(&self) -> Form {
        self.form
    }
}
