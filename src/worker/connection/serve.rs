//! hyper over one connection, and the commands that reach it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ::http::header::{CONNECTION, EXPECT};
use ::http::request::Parts;
use ::http::{Request, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::settings::ProxyConfig;
use crate::http;
use crate::http::real_ip::ConnectionPeer;
use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::worker::admission::AdmissionGate;
use crate::worker::connection::guard::ConnectionGuard;
use crate::worker::connection::in_flight::InFlightRequest;
use crate::worker::connection::incoming_body::IncomingBody;
use crate::worker::connection::linger::{DiscardLimit, LINGER_TIMEOUT};
use crate::worker::connection::pending_response::PendingResponse;
use crate::worker::connection::proxy_header;
use crate::worker::connection::record::ConnectionCommand;
use crate::worker::connection::refusals::{RefusalResponses, refuse_connection};
use crate::worker::connection::stream::TrackedStream;
use crate::worker::connection::table::ConnectionTable;
use crate::worker::handler::RequestHandler;

/// How long a connection may take that is refused.
const REJECTION_TIMEOUT: Duration = LINGER_TIMEOUT;

/// Bytes that each stream of HTTP/2 keeps for a client that does not take them.
const STREAM_SEND_BUFFER: usize = 16 << 10;

/// What every connection of a worker shares.
#[derive(Debug, Clone)]
pub(in crate::worker) struct ConnectionServer {
    /// Builder of hyper's connections, with all bounds set.
    pub(in crate::worker) builder: Arc<auto::Builder<TokioExecutor>>,
    /// All open connections.
    pub(in crate::worker) connections: Arc<ConnectionTable>,
    /// Where the requests of visitors wait for their turn.
    pub(in crate::worker) gate: Arc<AdmissionGate>,
    /// What the worker answers by itself.
    pub(in crate::worker) refusals: Arc<RefusalResponses>,
    /// What a client may still send once our side of a connection has ended.
    pub(in crate::worker) discarded_max: DiscardLimit,
    /// Whose connections are not counted.
    pub(in crate::worker) proxy: Arc<ProxyConfig>,
    /// Length of the network that is one IPv6 client.
    pub(in crate::worker) ipv6_prefix: u8,
    /// Places of connections that are refused.
    pub(in crate::worker) rejection_permits: Arc<Semaphore>,
}

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum ConnectionStart {
    /// HTTP.
    Http,
    /// A header of the PROXY protocol, and HTTP behind it.
    ProxyHeader,
}

/// hyper's connections with our bounds.
pub(in crate::worker) fn connection_builder(header_limit: usize) -> auto::Builder<TokioExecutor> {
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

impl ConnectionServer {
    /// A client as connections are counted; none for trusted proxies and Unix sockets, behind which there may be any
    /// number of them.
    fn counted_client(&self, peer: ConnectionPeer) -> Option<IpAddr> {
        let ip = peer.ip().filter(|ip| !self.proxy.trusts(*ip))?;
        Some(http::real_ip::client_network(ip, self.ipv6_prefix))
    }

    /// Whether this peer may say who its client is; if not, the connection is to be closed, which is counted.
    pub(in crate::worker) fn admits_proxy(&self, peer: ConnectionPeer) -> bool {
        let is_trusted = peer.ip().is_none_or(|ip| self.proxy.trusts(ip));
        if !is_trusted {
            tracing::debug!(
                ?peer,
                "a connection to an address of the PROXY protocol is not from proxy.trusted"
            );
            self.connections.count_closed(ConnectionCloseReason::ProxyProtocol);
        }
        is_trusted
    }

    /// Enters a connection into the table; none: its client has too many of them, and this one was refused. `counted`:
    /// whether the connections of its client's address are bounded.
    pub(in crate::worker) fn admit(
        &self,
        stream: TcpStream,
        peer: ConnectionPeer,
        counted: bool,
    ) -> Option<(TcpStream, ConnectionGuard)> {
        let client = if counted { self.counted_client(peer) } else { None };
        match ConnectionGuard::open(&self.connections, client) {
            Some(guard) => Some((stream, guard)),
            None => {
                self.reject(stream);
                None
            }
        }
    }

    /// Serves a connection until its end, once it has one of the `permits`. With a `gate` its requests wait for their
    /// turn.
    pub(in crate::worker) async fn serve_with_permit<A: RequestHandler>(
        self,
        (stream, peer): (TcpStream, ConnectionPeer),
        guard: ConnectionGuard,
        permits: Arc<Semaphore>,
        gate: Option<Arc<AdmissionGate>>,
        handler: A,
        start: ConnectionStart,
    ) {
        let Some(permit) = self.connections.acquire_permit(&permits).await else { return };
        drop(permits);
        let guard = Arc::new(guard);
        guard.start_header_timeout();
        let peer = match start {
            ConnectionStart::Http => peer,
            ConnectionStart::ProxyHeader => match proxy_header::read_client(&stream, peer, &guard).await {
                Some(client) => client,
                None => return,
            },
        };
        let refusals = Arc::clone(&self.refusals);
        let tracked = TrackedStream::new(
            stream,
            Arc::clone(&guard),
            permit,
            gate.clone(),
            refusals,
            self.discarded_max,
        );
        self.serve(tracked, (peer, gate), handler, &guard).await;
    }

    /// Refuses a connection that its client has too many of, which takes no place. Of very many at once some are just
    /// closed: as many refusals would cost no less than as many connections.
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
        (peer, gate): (ConnectionPeer, Option<Arc<AdmissionGate>>),
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
                        tracing::debug!(%error, "connection closed early");
                    }
                    return;
                }
                command = guard.connection.next_command() => match command {
                    ConnectionCommand::Continue => {}
                    // An HTTP/2 client gets GOAWAY first (RFC 9113 §6.8), so that it knows what was not served.
                    ConnectionCommand::CloseIfExpired if guard.connection.is_http2() && !going_away => {
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
                        let refused = guard.connection.is_header_refused();
                        if refused && poll_kernel_once(served.as_mut(), guard).await {
                            return;
                        }
                        guard.clear_header_refusal();
                    }
                    // hyper takes a connection with half a header for an idle one; the next sweep repeats the command.
                    ConnectionCommand::CloseWhenIdle => {
                        // A client that takes nothing is waited for no longer than otherwise.
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

/// Whether a client waits for 100 (Continue) before it sends a body (RFC 9110 §10.1.1).
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
    if guard.connection.take_admitted() {
        return None;
    }
    if gate.is_open() {
        gate.start_request();
        return None;
    }
    Some((Arc::clone(gate), Arc::clone(refusals)))
}

/// Serves what the kernel has and the reactor has not reported yet; whether the connection has ended with that.
///
/// An idle connection is about to be closed. A request that the kernel has already would be reset by it.
async fn poll_kernel_once(mut served: Pin<&mut impl Future>, guard: &ConnectionGuard) -> bool {
    guard.connection.set_read_past_reactor(true);
    let finished = poll_fn(|context| Poll::Ready(served.as_mut().poll(context).is_ready())).await;
    guard.connection.set_read_past_reactor(false);
    finished
}
