//! Takes connections from one listener and serves HTTP/1.1 or h2c on each.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::http::header::{CONNECTION, EXPECT};
use ::http::request::Parts;
use ::http::{Request, Response, Version};
use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::settings::ProxyConfig;
use crate::http;
use crate::listener::SocketOwner;
use crate::scoreboard::refusal_reason::RefusalReason;
use crate::worker::admission::AdmissionGate;
use crate::worker::balancer::ConnectionBalancer;
use crate::worker::connection::in_flight::InFlightRequest;
use crate::worker::connection::incoming_body::IncomingBody;
use crate::worker::connection::pending_response::PendingResponse;
use crate::worker::connection::refusals::{RefusalResponses, refuse_connection};
use crate::worker::connection::stream::TrackedStream;
use crate::worker::connection::{ConnectionCommand, ConnectionGuard, ConnectionTable, linger};

/// Pause after an accept that failed for want of descriptors or memory; accepting again at once would only spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Idle connections that are closed when there is no descriptor for a new one.
const EVICTIONS_PER_FAILURE: usize = 16;

/// How long a connection may take that is refused.
const REJECTION_TIMEOUT: Duration = linger::LINGER_TIMEOUT;

/// Bytes that each stream of HTTP/2 keeps for a client that does not take them.
const STREAM_SEND_BUFFER: usize = 16 << 10;

/// What answers requests: the application, or the operators' routes.
pub(super) trait RequestHandler: Clone + Send + Sync + 'static {
    /// Body of a response.
    type HandlerBody: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + From<http::Body>
        + Send
        + Unpin
        + 'static;

    /// A request until there is its response. Small, because hyper moves it about before it polls it.
    type HandlerFuture: Future<Output = Response<Self::HandlerBody>> + Send + Unpin + 'static;

    /// Answers one request of the client at `peer`.
    fn handle(&self, head: Parts, body: IncomingBody, peer: SocketAddr) -> Self::HandlerFuture;
}

/// What every connection of a worker shares.
#[derive(Debug, Clone)]
pub(super) struct ConnectionServer {
    /// Builder of hyper's connections, with all bounds set.
    pub(super) builder: Arc<auto::Builder<TokioExecutor>>,
    /// All open connections.
    pub(super) connections: Arc<ConnectionTable>,
    /// Where the requests of visitors wait for their turn.
    pub(super) gate: Arc<AdmissionGate>,
    /// What the worker answers by itself.
    pub(super) refusals: Arc<RefusalResponses>,
    /// What a client may still send once our side of a connection has ended.
    pub(super) discarded_max: linger::DiscardLimit,
    /// Whose connections are not counted.
    pub(super) proxy: Arc<ProxyConfig>,
    /// Length of the network that is one IPv6 client.
    pub(super) ipv6_prefix: u8,
    /// Places of connections that are refused.
    pub(super) rejection_permits: Arc<Semaphore>,
}

/// One listener, what answers on it, and how many connections it may serve at once.
#[derive(Debug, Clone)]
pub(super) struct Acceptor<A> {
    /// Where connections come from.
    pub(super) listener: Arc<TcpListener>,
    /// Whose queue that is.
    pub(super) owner: SocketOwner,
    /// What answers on them.
    pub(super) handler: A,
    /// One permit per connection that is served. Each audience has its own: visitors who take every place must not
    /// keep an operator, or a health check, from being answered.
    pub(super) permits: Arc<Semaphore>,
    /// What it passes on of them, and takes of those that other workers pass on.
    pub(super) balancer: Option<Arc<ConnectionBalancer>>,
    /// Whether requests wait for their turn. Operators must get an answer while visitors wait.
    pub(super) gated: bool,
    /// What all connections share.
    pub(super) server: ConnectionServer,
}

/// hyper's connections with our bounds.
pub(super) fn connection_builder(header_limit: usize) -> auto::Builder<TokioExecutor> {
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
        .max_send_buf_size(STREAM_SEND_BUFFER)
        .max_header_list_size(header_list);
    builder
}

impl<A: RequestHandler> Acceptor<A> {
    /// Accepts for ever; the caller drops the future to stop.
    ///
    /// # Cancel safety
    /// A connection is either still in the listener's queue or served by a task of its own.
    pub(super) async fn accept(self) {
        loop {
            if self.gated {
                self.server.gate.wait_until_accepting().await;
            }
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let retained = match &self.balancer {
                        Some(balancer) => balancer.retain_or_transfer(stream),
                        None => Some(stream),
                    };
                    let Some(stream) = retained else { continue };
                    self.serve_connection(stream, peer);
                    // One connection beyond the bound waits in its task, all others in the listener's queue. The
                    // semaphore is fair: this wait ends after that task's.
                    if self.permits.acquire().await.is_err() {
                        return;
                    }
                }
                Err(error) if is_connection_error(&error) => {}
                Err(error) => self.evict_and_back_off(&error, "cannot accept").await,
            }
        }
    }

    /// Closes idle connections for one that could not be taken, and lets the time pass that this takes.
    pub(super) async fn evict_and_back_off(&self, error: &io::Error, what: &str) {
        // Descriptors, most likely: those of idle connections are worth less than a new one.
        (0..EVICTIONS_PER_FAILURE).for_each(|_| _ = self.server.connections.evict());
        tracing::warn!(%error, "{what}: {error}");
        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
    }

    /// Accepts what waits in the queue now, beyond the bound if need be: it is the last chance of what is there.
    ///
    /// Returns whether there was anything.
    pub(super) fn accept_backlog(&self) -> bool {
        let mut any = false;
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok((stream, peer))) = self.listener.poll_accept(&mut context) {
            any = true;
            self.serve_connection(stream, peer);
        }
        any
    }

    pub(super) fn serve_connection(&self, stream: TcpStream, peer: SocketAddr) {
        let client = if self.gated { self.server.counted_client(peer) } else { None };
        let Some(guard) = self.server.connections.open(client) else {
            self.server.reject(stream);
            return;
        };
        let guard = Arc::new(guard);
        let acceptor = self.clone();
        tokio::spawn(async move {
            let Some(permit) = acceptor.server.connections.acquire_permit(&acceptor.permits).await else {
                return;
            };
            guard.start_header_timeout();
            let refusals = Arc::clone(&acceptor.server.refusals);
            let gate = acceptor.gated.then(|| Arc::clone(&acceptor.server.gate));
            let tracked = TrackedStream::new(
                stream,
                Arc::clone(&guard),
                permit,
                gate.clone(),
                refusals,
                acceptor.server.discarded_max,
            );
            acceptor.server.serve(tracked, (peer, gate), acceptor.handler, &guard).await;
        });
    }
}

impl ConnectionServer {
    /// A client as connections are counted; none for trusted proxies, behind which there may be any number of them.
    fn counted_client(&self, peer: SocketAddr) -> Option<IpAddr> {
        (!self.proxy.trusts(peer.ip())).then(|| http::real_ip::client_network(peer.ip(), self.ipv6_prefix))
    }

    /// Refuses a connection that its client has too many of, which takes no place. Of very many at once some are just
    /// closed: a crowd of refusals would be no cheaper than one of connections.
    fn reject(&self, stream: TcpStream) {
        self.connections.count_refused(RefusalReason::ClientConnections);
        let Ok(permit) = Arc::clone(&self.rejection_permits).try_acquire_owned() else { return };
        let (refusals, discarded_max) = (Arc::clone(&self.refusals), self.discarded_max);
        tokio::spawn(async move {
            let _place = permit;
            let refusal = refusals.get(RefusalReason::ClientConnections);
            let _ = timeout(REJECTION_TIMEOUT, refuse_connection(stream, refusal, discarded_max)).await;
        });
    }

    async fn serve<A: RequestHandler>(
        &self,
        tracked: TrackedStream,
        (peer, gate): (SocketAddr, Option<Arc<AdmissionGate>>),
        handler: A,
        guard: &Arc<ConnectionGuard>,
    ) {
        let service = service_fn(move |request: Request<Incoming>| {
            let request_guard = InFlightRequest::start(guard, request.version(), || requests_close(&request));
            // In two parts from here to the handler: put together again on the way, the head would be copied each time.
            let (head, body) = request.into_parts();
            let announced = expects_continue(&head, &body);
            let body = IncomingBody::new(body, guard, request_guard.is_http2(), announced);
            let queue = gate.as_ref().and_then(|gate| queue_unless_open(gate, &self.refusals, guard));
            PendingResponse::new(queue, &handler, (head, body, peer), request_guard)
        });
        let mut served = pin!(self.builder.serve_connection_with_upgrades(TokioIo::new(tracked), service));
        let mut going_away = false;
        loop {
            tokio::select! {
                biased;
                result = served.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "connection ended early");
                    }
                    return;
                }
                command = guard.state.next_command() => match command {
                    ConnectionCommand::Continue => {}
                    // An HTTP/2 client is told first (GOAWAY, RFC 9113 §6.8), so that it knows what was not served.
                    ConnectionCommand::CloseIfExpired if guard.state.is_http2() && !going_away => {
                        if let Some(why) = guard.check_expired() {
                            guard.count_closed(why);
                            going_away = true;
                            served.as_mut().graceful_shutdown();
                        }
                    }
                    ConnectionCommand::CloseIfExpired => {
                        if poll_kernel_once(served.as_mut(), guard).await {
                            return;
                        }
                        if let Some(why) = guard.check_expired() {
                            if !going_away {
                                guard.count_closed(why);
                            }
                            return;
                        }
                    }
                    // The connection's next read refuses the header (`stream.rs`).
                    ConnectionCommand::RefuseHeader => {
                        let refused = guard.state.is_header_refused();
                        if refused && poll_kernel_once(served.as_mut(), guard).await {
                            return;
                        }
                        guard.clear_header_refusal();
                    }
                    // hyper takes a connection with half a header for an idle one; the next sweep asks again.
                    ConnectionCommand::CloseWhenIdle => {
                        // Whoever takes nothing is not waited for any longer than otherwise.
                        if poll_kernel_once(served.as_mut(), guard).await || guard.check_expired().is_some() {
                            return;
                        }
                        if !guard.is_reading_header() {
                            served.as_mut().graceful_shutdown();
                        }
                    }
                    ConnectionCommand::Abort => return,
                },
            }
        }
    }
}

/// Whether a client waits to be told before it sends a body (RFC 9110 §10.1.1).
fn expects_continue(head: &Parts, body: &Incoming) -> bool {
    !body.is_end_stream() && head.headers.contains_key(EXPECT)
}

/// Whether a client of HTTP/1 keeps no connection beyond this request (RFC 9112 §9.3).
fn requests_close<B>(request: &Request<B>) -> bool {
    let has_token = |word| http::has_token(request.headers(), &CONNECTION, word);
    has_token("close") || request.version() < Version::HTTP_11 && !has_token("keep-alive")
}

/// Where a request waits that was read already: a stream of HTTP/2, or what was sent ahead in HTTP/1; none: it begins.
fn queue_unless_open(
    gate: &Arc<AdmissionGate>,
    refusals: &Arc<RefusalResponses>,
    guard: &ConnectionGuard,
) -> Option<(Arc<AdmissionGate>, Arc<RefusalResponses>)> {
    if guard.state.take_admitted() {
        return None;
    }
    if gate.is_open() {
        gate.start_request();
        return None;
    }
    Some((Arc::clone(gate), Arc::clone(refusals)))
}

/// Serves what has come and the reactor has not told of yet; whether the connection has ended with that.
///
/// An idle connection is about to be closed. A request that the kernel has already would be reset by it.
async fn poll_kernel_once(mut served: Pin<&mut impl Future>, guard: &ConnectionGuard) -> bool {
    guard.state.set_read_past_reactor(true);
    let finished = poll_fn(|context| Poll::Ready(served.as_mut().poll(context).is_ready())).await;
    guard.state.set_read_past_reactor(false);
    finished
}

/// Errors that concern the connection and not the listener; accept(2).
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
