//! An open WebSocket and its handler, side by side in one task until both have ended.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;

use crate::http::streams::websocket::link::Link;
use crate::http::streams::websocket::metered_io::MeteredIo;
use crate::http::streams::websocket::open_socket::WebSocket;
use crate::http::streams::websocket::pump::{Pump, PumpLimits};
use crate::panics::panic_message;

/// How long a connection whose socket has ended is kept for its handler.
///
/// A worker that leaves waits for what the handler still does; one that has not noticed by then holds up no drain.
const HANDLER_GRACE: Duration = Duration::from_secs(5);

/// Runs `talk` over the connection until it and the socket have ended.
pub(super) async fn hold<I, F>(
    stream: WebSocketStream<MeteredIo<I>>,
    limits: PumpLimits,
    protocol: Option<HeaderValue>,
    leaving: impl Future<Output = ()>,
    talk: impl FnOnce(WebSocket) -> F,
) where
    I: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    let link = Arc::new(Link::default());
    let socket = WebSocket::new(Arc::clone(&link), protocol);
    let pump = Pump::new(stream, link, limits, Instant::now());
    let (done, talked) = oneshot::channel::<()>();
    tokio::join!(
        async {
            let stream = pump.run(leaving).await;
            let _ = timeout(HANDLER_GRACE, talked).await;
            drop(stream);
        },
        async {
            contain_panic(async { talk(socket).await }).await;
            drop(done);
        },
    );
}

/// Waits for `work`; its panic is logged and ends nothing else.
async fn contain_panic(work: impl Future<Output = ()>) {
    let mut work = pin!(work);
    poll_fn(|context| {
        // What the panic leaves half-done is the handler's own, and is dropped with it.
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))).unwrap_or_else(|panic| {
            let message = panic_message(panic.as_ref());
            tracing::error!(panic = %message, "the handler of a WebSocket panicked: {message}");
            Poll::Ready(())
        })
    })
    .await;
}

#[cfg(test)]
mod tests;
