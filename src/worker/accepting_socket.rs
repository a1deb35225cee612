//! A listening socket as a worker accepts from it, and what is known of the client's end at once.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::http::real_ip::ConnectionPeer;
use crate::listener::ListeningSocket;
use crate::sys::{tcp_socket, unix_listener};

/// A listening socket that this worker's reactor watches.
#[derive(Debug)]
pub(super) enum AcceptingSocket {
    /// At an Internet address.
    Tcp(TcpListener),
    /// At a Unix socket's name.
    Unix(UnixListener),
}

impl AcceptingSocket {
    /// Has the reactor watch it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn from_socket(socket: ListeningSocket) -> io::Result<Self> {
        Ok(match socket {
            ListeningSocket::Tcp(socket) => Self::Tcp(TcpListener::from_std(socket)?),
            ListeningSocket::Unix(socket) => Self::Unix(UnixListener::from_std(socket)?),
        })
    }

    /// The next connection.
    ///
    /// # Errors
    /// Among others, of which [`has_ended`] says so, that the listener was shut down.
    ///
    /// # Cancel safety
    /// A connection is either still in the queue or returned.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, ConnectionPeer)> {
        match self {
            Self::Tcp(listener) => {
                listener.accept().await.map(|(stream, peer)| (stream, ConnectionPeer::Internet(peer)))
            }
            Self::Unix(listener) => poll_fn(|context| poll_accept_unix(listener, context)).await,
        }
    }

    /// The same as a poll.
    pub(super) fn poll_accept(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, ConnectionPeer)>> {
        Poll::Ready(match self {
            Self::Tcp(listener) => ready!(listener.poll_accept(context))
                .map(|(stream, peer)| (stream, ConnectionPeer::Internet(peer))),
            Self::Unix(listener) => {
                ready!(listener.poll_accept(context)).and_then(|(stream, _)| as_stream(stream))
            }
        })
    }

    /// Has the kernel take no new connections, while those in the queue can still be accepted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn refuse_new_connections(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => tcp_socket::drop_new_connections(listener),
            // Its clients are on this host and are told at once; unix(7) leaves the queue as it is.
            Self::Unix(listener) => tcp_socket::shut_down_listener(listener),
        }
    }
}

/// A listening socket that is closed here as soon as it has ended, while those who know it know it still: a port that is not
/// listened on any more must be free for others.
#[derive(Debug, Clone)]
pub(super) struct SharedSocket(Arc<Mutex<Option<Arc<AcceptingSocket>>>>);

impl SharedSocket {
    pub(super) fn new(socket: AcceptingSocket) -> Self {
        Self(Arc::new(Mutex::new(Some(Arc::new(socket)))))
    }

    /// The socket; none: it has ended.
    pub(super) fn get(&self) -> Option<Arc<AcceptingSocket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It was shut down; it is closed when the last one who has it gives it up.
    pub(super) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The kernel wakes those who wait at a listener that is shut down, and then has them wait on.
///
/// A listener is also pending when the task has done enough for one turn, or the reactor does not know yet what is queued:
/// only the kernel's own word says that nothing is.
fn poll_accept_unix(
    listener: &UnixListener,
    context: &mut Context<'_>,
) -> Poll<io::Result<(TcpStream, ConnectionPeer)>> {
    match listener.poll_accept(context) {
        Poll::Ready(accepted) => Poll::Ready(accepted.and_then(|(stream, _)| as_stream(stream))),
        Poll::Pending if unix_listener::is_shut_down(listener) => {
            let queued = unix_listener::accept_queued(listener)?;
            Poll::Ready(queued.ok_or(io::ErrorKind::NotConnected.into()).and_then(as_std_stream))
        }
        Poll::Pending => Poll::Pending,
    }
}

/// Whether accepting failed because the listener was shut down.
pub(super) fn has_ended(error: &io::Error) -> bool {
    tcp_socket::is_shut_down(error) || error.kind() == io::ErrorKind::NotConnected
}

impl AsFd for AcceptingSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// A Unix socket's connection in the type of the other ones, so that no request costs a choice between two: sending,
/// receiving and shutting down are the same calls for any stream socket, and nothing else is done with one. Its type's
/// `peer_addr` and options of TCP fail.
fn as_stream(stream: UnixStream) -> io::Result<(TcpStream, ConnectionPeer)> {
    as_std_stream(stream.into_std()?)
}

fn as_std_stream(stream: std::os::unix::net::UnixStream) -> io::Result<(TcpStream, ConnectionPeer)> {
    let stream = std::net::TcpStream::from(OwnedFd::from(stream));
    Ok((TcpStream::from_std(stream)?, ConnectionPeer::UnixSocket))
}

/// The other end of a connection that another worker has accepted.
///
/// # Errors
/// When it has ended meanwhile.
pub(super) fn transferred_peer(stream: &TcpStream) -> io::Result<ConnectionPeer> {
    let address = tcp_socket::peer_address(stream)?;
    Ok(address.map_or(ConnectionPeer::UnixSocket, ConnectionPeer::Internet))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// More than a task may do in one turn.
    const CLIENTS: usize = 300;

    #[tokio::test]
    async fn a_unix_socket_that_is_shut_down_gives_out_its_whole_queue_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        socket2::SockRef::from(&listener).listen(512).unwrap();
        let clients: Vec<_> = (0..CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let socket = AcceptingSocket::from_socket(ListeningSocket::Unix(listener)).unwrap();
        socket.refuse_new_connections().unwrap();
        let accepted = tokio::spawn(async move {
            let mut accepted = Vec::new();
            loop {
                match socket.accept().await {
                    Ok(connection) => accepted.push(connection),
                    Err(error) => return (accepted.len(), has_ended(&error)),
                }
            }
        });
        assert_eq!(accepted.await.unwrap(), (clients.len(), true));
    }
}
