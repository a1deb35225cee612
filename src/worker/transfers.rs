//! A door's connections that other workers have accepted.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::worker::acceptor::{Acceptor, RequestHandler};
use crate::worker::balancer::ConnectionBalancer;

/// Accepts at all of these doors for ever, and takes what other workers pass on; to stop, it is dropped.
pub(super) fn spawn_acceptors<A: RequestHandler>(acceptors: &[Acceptor<A>]) -> JoinSet<()> {
    let mut accepting: JoinSet<()> = acceptors.iter().map(|acceptor| acceptor.clone().accept()).collect();
    // Any public door will do: they differ in where they listen alone.
    if let Some((acceptor, balancer)) = acceptors.iter().find_map(|door| Some((door, door.balancer.clone()?)))
    {
        accepting.spawn(Arc::clone(&balancer).start_accepting_transfers());
        accepting.spawn(Arc::clone(&balancer).close_surplus(Arc::clone(&acceptor.server.connections)));
        accepting.spawn(acceptor.clone().accept_transferred(balancer));
    }
    accepting
}

impl<A: RequestHandler> Acceptor<A> {
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
        if let Ok(peer) = stream.peer_addr() {
            self.serve_connection(stream, peer);
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
