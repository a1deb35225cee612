//! Takes connections from one listener and serves HTTP/1.1 or h2c on each.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use ::http::Request;
use ::http::Response;
use ::http::Version;
use ::http::header::CONNECTION;
use ::http::header::EXPECT;
use ::http::request::Parts;
use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::schema::Proxy;
use crate::http;
use crate::listener::Owner;
use crate::scoreboard::refusal::Refusal;
use crate::worker::balance::Balance;
use crate::worker::connection::Connections;
use crate::worker::connection::Entry;
use crate::worker::connection::Order;
use crate::worker::gate::Gate;
use crate::worker::linger;
use crate::worker::receiving::Receiving;
use crate::worker::refusals::Refusals;
use crate::worker::refusals::turn_away;
use crate::worker::respond::Responding;
use crate::worker::stream::Watched;
use crate::worker::under_way::UnderWay;

/// Pause after an accept that failed for want of descriptors or memory; accepting again at once would only spin.
const OUT_OF_RESOURCES: Duration = Duration::from_millis(50);

/// Idle connections that are closed when there is no descriptor for a new one.
const EVICTED: usize = 16;

/// How long a connection may take that is refused.
const TURNING_AWAY: Duration = linger::TIME;

/// Bytes that each stream of HTTP/2 keeps for a client that does not take them.
const SEND_BUFFER: usize = 16 << 10;

/// What answers requests: the application, or the operators' routes.
pub(super) trait Answer: Clone + Send + Sync + 'static {
    /// Body of a response.
    type Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + From<http::Body>
        + Send
        + Unpin
        + 'static;

    /// A request until there is its response. Small, because hyper moves it about before it polls it.
    type Answering: Future<Output = Response<Self::Body>> + Send + Unpin + 'static;

    /// Answers one request of the client at `peer`.
    fn answer(&self, head: Parts, body: Receiving, peer: SocketAddr) -> Self::Answering;
}

/// What every connection of a worker shares.
#[derive(Debug, Clone)]
pub(super) struct Hall {
    /// Builder of hyper's connections, with all bounds set.
    pub(super) builder: Arc<auto::Builder<TokioExecutor>>,
    /// All open connections.
    pub(super) connections: Arc<Connections>,
    /// Where the requests of visitors wait for their turn.
    pub(super) gate: Arc<Gate>,
    /// What the worker answers by itself.
    pub(super) refusals: Arc<Refusals>,
    /// What a client may still send once our side of a connection has ended.
    pub(super) discarded_max: linger::Bound,
    /// Whose connections are not counted.
    pub(super) proxy: Arc<Proxy>,
    /// Length of the network that is one IPv6 client.
    pub(super) ipv6_prefix: u8,
    /// Places of connections that are refused.
    pub(super) turning_away: Arc<Semaphore>,
}

/// One listener, what answers on it, and how many connections it may serve at once.
#[derive(Debug, Clone)]
pub(super) struct Door<A> {
    /// Where connections come from.
    pub(super) listener: Arc<TcpListener>,
    /// Whose queue that is.
    pub(super) owner: Owner,
    /// What answers on them.
    pub(super) answer: A,
    /// One permit per connection that is served. Each audience has its own: visitors who take every place must not
    /// keep an operator, or a health check, from being answered.
    pub(super) permits: Arc<Semaphore>,
    /// What it passes on of them, and takes of those that other workers pass on.
    pub(super) balance: Option<Arc<Balance>>,
    /// Whether requests wait for their turn. Operators must get an answer while visitors wait.
    pub(super) gated: bool,
    /// What all connections share.
    pub(super) hall: Hall,
}

/// hyper's connections with our bounds.
pub(super) fn builder(header_limit: usize) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // No header timer: see the connection module. Head and body are copied into one buffer: for
    // small responses that costs less than a vector of two for the kernel. hyper does not look for the
    // client's end while a request is under way: it would make room for 8 KiB to read into for each one, and the
    // request's header keeps the room there is. The stream looks for that end, and reads nothing.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(header_limit)
        .half_close(true)
        .writev(false);
    let streams = 256;
    let header_list = u32::try_from(header_limit).unwrap_or(u32::MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(header_list);
    builder
}

impl<A: Answer> Door<A> {
    /// Accepts for ever; the caller drops the future to stop.
    ///
    /// # Cancel safety
    /// A connection is either still in the listener's queue or served by a task of its own.
    pub(super) async fn accept(self) {
        loop {
            if self.gated {
                self.hall.gate.may_accept().await;
            }
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let kept = match &self.balance {
                        Some(balance) => balance.pass(stream),
                        None => Some(stream),
                    };
                    let Some(stream) = kept else { continue };
                    self.admit(stream, peer);
                    // One connection beyond the bound waits in its task, all others in the listener's queue. The
                    // semaphore is fair: this wait ends after that task's.
                    if self.permits.acquire().await.is_err() {
                        return;
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => self.make_room(&error, "cannot accept").await,
            }
        }
    }

    /// Closes idle connections for one that could not be taken, and lets the time pass that this takes.
    pub(super) async fn make_room(&self, error: &io::Error, what: &str) {
        // Descriptors, most likely: those of idle connections are worth less than a new one.
        (0..EVICTED).for_each(|_| _ = self.hall.connections.evict());
        tracing::warn!(%error, "{what}: {error}");
        tokio::time::sleep(OUT_OF_RESOURCES).await;
    }

    /// Accepts what waits in the queue now, beyond the bound if need be: it is the last chance of what is there.
    ///
    /// Returns whether there was anything.
    pub(super) fn accept_queued(&self) -> bool {
        let mut any = false;
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok((stream, peer))) = self.listener.poll_accept(&mut context) {
            any = true;
            self.admit(stream, peer);
        }
        any
    }

    pub(super) fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let client = if self.gated { self.hall.client(peer) } else { None };
        let Some(entry) = self.hall.connections.open(client) else {
            self.hall.turn_away(stream);
            return;
        };
        let entry = Arc::new(entry);
        let door = self.clone();
        tokio::spawn(async move {
            let Some(place) = door.hall.connections.place(&door.permits).await else { return };
            entry.seat();
            let refusals = Arc::clone(&door.hall.refusals);
            let gate = door.gated.then(|| Arc::clone(&door.hall.gate));
            let watched = Watched::new(
                stream,
                Arc::clone(&entry),
                place,
                gate.clone(),
                refusals,
                door.hall.discarded_max,
            );
            door.hall.serve(watched, (peer, gate), door.answer, &entry).await;
        });
    }
}

impl Hall {
    /// A client as connections are counted; none for trusted proxies, behind which there may be any number of them.
    fn client(&self, peer: SocketAddr) -> Option<IpAddr> {
        (!self.proxy.trusts(peer.ip())).then(|| http::identity::network(peer.ip(), self.ipv6_prefix))
    }

    /// Refuses a connection that its client has too many of, which takes no place. Of very many at once some are just
    /// closed: a crowd of refusals would be no cheaper than one of connections.
    fn turn_away(&self, stream: TcpStream) {
        self.connections.turned_away(Refusal::ClientConnections);
        let Ok(place) = Arc::clone(&self.turning_away).try_acquire_owned() else { return };
        let (refusals, discarded_max) = (Arc::clone(&self.refusals), self.discarded_max);
        tokio::spawn(async move {
            let _place = place;
            let refusal = refusals.get(Refusal::ClientConnections);
            let _ = timeout(TURNING_AWAY, turn_away(stream, refusal, discarded_max)).await;
        });
    }

    async fn serve<A: Answer>(
        &self,
        watched: Watched,
        (peer, gate): (SocketAddr, Option<Arc<Gate>>),
        answer: A,
        entry: &Arc<Entry>,
    ) {
        let service = service_fn(move |request: Request<Incoming>| {
            let under_way = UnderWay::begin(entry, request.version(), || ends_connection(&request));
            // In two parts from here to the handler: put together again on the way, the head would be copied each time.
            let (head, body) = request.into_parts();
            let announced = announces(&head, &body);
            let body = Receiving::new(body, entry, under_way.is_http2(), announced);
            let waits = gate.as_ref().and_then(|gate| wait_for_turn(gate, &self.refusals, entry));
            Responding::new(waits, &answer, (head, body, peer), under_way)
        });
        let mut served = pin!(self.builder.serve_connection_with_upgrades(TokioIo::new(watched), service));
        let mut going_away = false;
        loop {
            tokio::select! {
                biased;
                ended = served.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended early");
                    }
                    return;
                }
                order = entry.connection.told() => match order {
                    Order::Serve => {}
                    // An HTTP/2 client is told first (GOAWAY, RFC 9113 §6.8), so that it knows what was not served.
                    Order::Expire if entry.connection.is_http2() && !going_away => {
                        if let Some(why) = entry.expired() {
                            entry.closed(why);
                            going_away = true;
                            served.as_mut().graceful_shutdown();
                        }
                    }
                    Order::Expire => {
                        if look_again(served.as_mut(), entry).await {
                            return;
                        }
                        if let Some(why) = entry.expired() {
                            if !going_away {
                                entry.closed(why);
                            }
                            return;
                        }
                    }
                    // The connection's next read refuses the header (`stream.rs`).
                    Order::RefuseHeader => {
                        let refused = entry.connection.is_header_refused();
                        if refused && look_again(served.as_mut(), entry).await {
                            return;
                        }
                        entry.header_spared();
                    }
                    // hyper takes a connection with half a header for an idle one; the next sweep asks again.
                    Order::Finish => {
                        // Whoever takes nothing is not waited for any longer than otherwise.
                        if look_again(served.as_mut(), entry).await || entry.expired().is_some() {
                            return;
                        }
                        if !entry.is_begun() {
                            served.as_mut().graceful_shutdown();
                        }
                    }
                    Order::Cut => return,
                },
            }
        }
    }
}

/// Whether a client waits to be told before it sends a body (RFC 9110 §10.1.1).
fn announces(head: &Parts, body: &Incoming) -> bool {
    !body.is_end_stream() && head.headers.contains_key(EXPECT)
}

/// Whether a client of HTTP/1 keeps no connection beyond this request (RFC 9112 §9.3).
fn ends_connection<B>(request: &Request<B>) -> bool {
    let said = |word| http::has_token(request.headers(), &CONNECTION, word);
    said("close") || request.version() < Version::HTTP_11 && !said("keep-alive")
}

/// Where a request waits that was read already: a stream of HTTP/2, or what was sent ahead in HTTP/1; none: it begins.
fn wait_for_turn(
    gate: &Arc<Gate>,
    refusals: &Arc<Refusals>,
    entry: &Entry,
) -> Option<(Arc<Gate>, Arc<Refusals>)> {
    if entry.connection.was_admitted() {
        return None;
    }
    if gate.is_open() {
        gate.enter();
        return None;
    }
    Some((Arc::clone(gate), Arc::clone(refusals)))
}

/// Serves what has come and the reactor has not told of yet; whether the connection has ended with that.
///
/// An idle connection is about to be closed. A request that the kernel has already would be reset by it.
async fn look_again(mut served: Pin<&mut impl Future>, entry: &Entry) -> bool {
    entry.connection.look(true);
    let ended = poll_fn(|context| Poll::Ready(served.as_mut().poll(context).is_ready())).await;
    entry.connection.look(false);
    ended
}

/// Errors that concern the connection and not the listener; accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
