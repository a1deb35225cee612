//! The worker's own refusals, rendered once.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use tokio::net::TcpStream;

use crate::http;
use crate::scoreboard::refusal::Refusal;
use crate::sys::fd;
use crate::sys::socket;
use crate::worker::frames::PREFACE;
use crate::worker::linger;
use crate::worker::linger::Linger;

/// Seconds after which the refused are to come again: spread, so that they do not come back together.
const RETRY_AFTER: [u64; 3] = [1, 2, 3];

/// One refusal in each form that is needed.
#[derive(Debug)]
pub(super) struct Rendered {
    /// For requests that hyper has read.
    pub(super) response: http::Refusal,
    /// The whole answer of HTTP/1.
    whole: Vec<u8>,
    /// The same to HEAD.
    head: Vec<u8>,
}

impl Rendered {
    fn new(response: http::Refusal) -> Self {
        Self { whole: response.http1(false), head: response.http1(true), response }
    }

    /// What is sent on the raw stream.
    pub(super) fn bytes(&self, head_only: bool) -> &[u8] {
        if head_only { &self.head } else { &self.whole }
    }
}

/// All refusals.
#[derive(Debug)]
pub(super) struct Refusals {
    overload: [Rendered; RETRY_AFTER.len()],
    client_connections: Rendered,
    header_memory: Rendered,
    next: AtomicUsize,
}

impl Refusals {
    /// Those of the worker with this process id.
    pub(super) fn new(pid: u32) -> Self {
        Self {
            overload: RETRY_AFTER.map(|seconds| Rendered::new(http::Refusal::overload(pid, seconds))),
            client_connections: Rendered::new(http::Refusal::client_connections(pid)),
            header_memory: Rendered::new(http::Refusal::header_memory(pid)),
            next: AtomicUsize::new(0),
        }
    }

    /// The one for this reason.
    pub(super) fn get(&self, why: Refusal) -> &Rendered {
        match why {
            Refusal::Overload => &self.overload[self.next.fetch_add(1, Relaxed) % RETRY_AFTER.len()],
            Refusal::ClientConnections => &self.client_connections,
            Refusal::HeaderMemory => &self.header_memory,
        }
    }
}

/// Answers the first request of a connection that was never served, and closes it.
pub(super) async fn turn_away(
    mut stream: TcpStream,
    refusal: &Rendered,
    discarded_max: linger::Bound,
) -> io::Result<()> {
    let mut bytes = [0; PREFACE.len()];
    let read = stream.peek(&mut bytes).await?;
    if read > 0 && !PREFACE.starts_with(&bytes[..read]) {
        fd::send_now(&stream, refusal.bytes(bytes.starts_with(b"HEAD ")))?;
    }
    socket::finish_sending(&stream)?;
    let mut linger = Linger::new(discarded_max);
    poll_fn(|context| linger.poll(&mut stream, context)).await;
    Ok(())
}
