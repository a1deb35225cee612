//! Takes connections from one listener, and from other workers, and has each served.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::http::real_ip::ConnectionPeer;
use crate::listener::SocketOwner;
use crate::worker::accepting_socket::{SharedSocket, has_ended, transferred_peer};
use crate::worker::balancer::ConnectionBalancer;
use crate::worker::connection::serve::{ConnectionServer, ConnectionStart};
use crate::worker::handler::RequestHandler;

/// Pause after an accept that failed for want of descriptors or memory; accepting again at once would only spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Idle connections that are closed when there is no descriptor for a new one.
const EVICTIONS_PER_FAILURE: usize = 16;

/// One listener, what answers on it, and how many connections it may serve at once.
#[derive(Debug, Clone)]
pub(super) struct Acceptor<A> {
    /// Where connections come from.
    pub(super) listener: SharedSocket,
    /// Whose queue that is.
    pub(super) owner: SocketOwner,
    /// What answers on them.
    pub(super) handler: A,
    /// One permit per connection that is served. Each audience has its own: visitors who take every permit must not
    /// keep an operator, or a health check, from being answered.
    pub(super) permits: Arc<Semaphore>,
    /// What it passes on of them, and takes of those that other workers pass on.
    pub(super) balancer: Option<Arc<ConnectionBalancer>>,
    /// What its connections begin with.
    pub(super) start: ConnectionStart,
    /// Whether requests wait for their turn. Operators must get an answer while visitors wait.
    pub(super) gated: bool,
    /// What all connections share.
    pub(super) server: ConnectionServer,
}

impl<A: RequestHandler> Acceptor<A> {
    /// Accepts until the listener is shut down; the caller drops the future to stop.
    ///
    /// # Cancel safety
    /// A connection is either still in the listener's queue or served by a task of its own.
    pub(super) async fn accept(self) {
        let Some(listener) = self.listener.get() else { return };
        loop {
            if self.gated {
                self.server.gate.wait_until_accepting().await;
            }
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let retained = match &self.balancer {
                        Some(balancer) => balancer.retain_or_transfer(stream),
                        None => Some(stream),
                    };
                    let Some(stream) = retained else { continue };
                    self.serve_connection(stream, peer, self.start);
                    // One connection beyond the bound waits in its task, all others in the listener's queue. The
                    // semaphore is fair: this wait ends after that task's.
                    if self.permits.acquire().await.is_err() {
                        return;
                    }
                }
                Err(error) if is_connection_error(&error) => {}
                // Another worker, or the supervisor, has ended it for all.
                Err(error) if has_ended(&error) => return self.listener.close(),
                Err(error) => self.evict_and_back_off(&error, "cannot accept").await,
            }
        }
    }

    /// Closes idle connections for one that could not be taken, and lets the time pass that this takes.
    async fn evict_and_back_off(&self, error: &io::Error, what: &str) {
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
        let Some(listener) = self.listener.get() else { return false };
        while let Poll::Ready(Ok((stream, peer))) = listener.poll_accept(&mut context) {
            any = true;
            self.serve_connection(stream, peer, self.start);
        }
        any
    }

    fn serve_connection(&self, stream: TcpStream, peer: ConnectionPeer, start: ConnectionStart) {
        if start == ConnectionStart::ProxyHeader && !self.server.admits_proxy(peer) {
            return;
        }
        let Some((stream, guard)) = self.server.admit(stream, peer, self.gated) else { return };
        let gate = self.gated.then(|| Arc::clone(&self.server.gate));
        let (permits, handler) = (Arc::clone(&self.permits), self.handler.clone());
        tokio::spawn(self.server.clone().serve_with_permit(
            (stream, peer),
            guard,
            permits,
            gate,
            handler,
            start,
        ));
    }

    /// Takes for ever what other workers pass on; the caller drops the future to stop.
    ///
    /// # Cancel safety
    /// A connection is either still in the fleet's shared queue or served by a task of its own.
    async fn accept_transferred(self, balancer: Arc<ConnectionBalancer>) {
        loop {
            self.server.gate.wait_until_accepting().await;
            match balancer.next_transferred().await {
                Ok(stream) => {
                    self.serve_transferred(stream);
                    if self.permits.acquire().await.is_err() {
                        return;
                    }
                }
                // What could not be taken out stays in the queue, and another worker takes it if this one cannot soon.
                Err(error) => {
                    self.evict_and_back_off(&error, "cannot take what another worker passes on").await
                }
            }
        }
    }

    /// The client of one that has ended meanwhile is not known any more, and there is nothing to answer.
    fn serve_transferred(&self, stream: TcpStream) {
        if let Ok(peer) = transferred_peer(&stream) {
            // Whichever worker has accepted it, its listener is none of the PROXY protocol: those keep what they accept.
            self.serve_connection(stream, peer, ConnectionStart::Http);
        }
    }

    /// Takes what waits in the fleet's shared queue now; whether there was anything.
    pub(super) fn accept_transferred_backlog(&self) -> bool {
        let mut any = false;
        while let Some(Ok(stream)) = self.balancer.as_ref().map(|balancer| balancer.try_take()) {
            any = true;
            self.serve_transferred(stream);
        }
        any
    }
}

/// Accepts on all of these listeners for ever, and takes what other workers transfer; to stop, the set is dropped.
pub(super) fn spawn_acceptors<A: RequestHandler>(acceptors: &[Acceptor<A>]) -> JoinSet<()> {
    let mut accepting: JoinSet<()> = acceptors.iter().map(|acceptor| acceptor.clone().accept()).collect();
    // Any public acceptor will do: they differ only in where they listen.
    if let Some((acceptor, balancer)) =
        acceptors.iter().find_map(|acceptor| Some((acceptor, acceptor.balancer.clone()?)))
    {
        accepting.spawn(Arc::clone(&balancer).start_accepting_transfers());
        accepting.spawn(Arc::clone(&balancer).close_surplus(Arc::clone(&acceptor.server.connections)));
        accepting.spawn(acceptor.clone().accept_transferred(balancer));
    }
    accepting
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
