//! The proxy's thread: accepts as it is ordered to.

use std::io::Result;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

use crate::support::fault_proxy::pump::End;
use crate::support::fault_proxy::{LinkState, ProxyOrders, ProxyShared, ProxyUpstream, pump};

/// Either kind of stream.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// A port that no one else gets while no one listens on it.
pub(super) fn reserve() -> Socket {
    bound(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

fn bound(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(place: &Socket) -> Result<TcpListener> {
    let address = place.local_addr()?.as_socket().unwrap();
    let socket = bound(address)?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Serves until the order says that it has ended.
#[allow(clippy::needless_pass_by_value, reason = "the place is held for as long as this runs")]
pub(super) fn run(place: Socket, shared: &Arc<ProxyShared>, mut orders: watch::Receiver<ProxyOrders>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut listener = None;
        let of_connections = orders.clone();
        loop {
            let order = orders.borrow_and_update().clone();
            if order.is_stopped {
                return;
            }
            listener = match order.link {
                LinkState::Down => None,
                _ => Some(listener.unwrap_or_else(|| listen(&place).unwrap())),
            };
            shared.state().obeyed = order.age;
            tokio::select! {
                () = accept_all(listener.as_ref(), shared, &of_connections) => (),
                changed = orders.changed() => changed.unwrap_or(()),
            }
        }
    });
}

async fn accept_all(
    listener: Option<&TcpListener>,
    shared: &Arc<ProxyShared>,
    orders: &watch::Receiver<ProxyOrders>,
) {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        {
            let mut state = shared.state();
            state.accepted.push(Instant::now());
            state.open += 1;
        }
        let shared = Arc::clone(shared);
        let mut orders = orders.clone();
        orders.mark_unchanged();
        tokio::spawn(async move {
            serve_one(client, &shared, orders).await;
            shared.state().open -= 1;
        });
    }
}

async fn serve_one(mut client: TcpStream, shared: &ProxyShared, orders: watch::Receiver<ProxyOrders>) {
    let _ = client.set_nodelay(true);
    let end = match connect(&shared.upstream).await {
        // The server is away: so are we.
        Err(_) => End::Close,
        Ok(upstream) => pump::carry(&mut client, upstream, shared, orders).await,
    };
    if end == End::Reset {
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
    }
}

async fn connect(upstream: &ProxyUpstream) -> Result<Pin<Box<dyn Stream>>> {
    Ok(match upstream {
        ProxyUpstream::Unix(path) => Box::pin(UnixStream::connect(path).await?),
        ProxyUpstream::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::pin(stream)
        }
    })
}
