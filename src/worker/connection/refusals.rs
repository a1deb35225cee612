//! The worker's own refusals, rendered once.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use tokio::net::TcpStream;

use crate::http;
use crate::scoreboard::refusal_reason::RefusalReason;
use crate::sys::{fd, tcp_socket};
use crate::worker::connection::http2_frames::PREFACE;
use crate::worker::connection::linger;
use crate::worker::connection::linger::LingeringClose;

/// Seconds after which the refused are to come again: spread, so that they do not come back together.
const RETRY_AFTER_SECONDS: [u64; 3] = [1, 2, 3];

/// One refusal in each form that is needed.
#[derive(Debug)]
pub(in crate::worker) struct RenderedRefusal {
    /// For requests that hyper has read.
    pub(in crate::worker) response: http::PreparedRejection,
    /// The whole answer of HTTP/1.
    full: Vec<u8>,
    /// The same to HEAD.
    head_only: Vec<u8>,
}

impl RenderedRefusal {
    fn new(response: http::PreparedRejection) -> Self {
        Self { full: response.to_http1_bytes(false), head_only: response.to_http1_bytes(true), response }
    }

    /// What is sent on the raw stream.
    pub(in crate::worker) fn bytes(&self, head_only: bool) -> &[u8] {
        if head_only { &self.head_only } else { &self.full }
    }
}

/// All refusals.
#[derive(Debug)]
pub(in crate::worker) struct RefusalResponses {
    overload: [RenderedRefusal; RETRY_AFTER_SECONDS.len()],
    client_connections: RenderedRefusal,
    header_memory: RenderedRefusal,
    next: AtomicUsize,
}

impl RefusalResponses {
    /// Those of the worker with this process id.
    pub(in crate::worker) fn new(pid: u32) -> Self {
        Self {
            overload: RETRY_AFTER_SECONDS
                .map(|seconds| RenderedRefusal::new(http::PreparedRejection::overload(pid, seconds))),
            client_connections: RenderedRefusal::new(http::PreparedRejection::client_connections(pid)),
            header_memory: RenderedRefusal::new(http::PreparedRejection::header_memory(pid)),
            next: AtomicUsize::new(0),
        }
    }

    /// The one for this reason.
    pub(in crate::worker) fn get(&self, reason: RefusalReason) -> &RenderedRefusal {
        match reason {
            RefusalReason::Overload => {
                &self.overload[self.next.fetch_add(1, Relaxed) % RETRY_AFTER_SECONDS.len()]
            }
            RefusalReason::ClientConnections => &self.client_connections,
            RefusalReason::HeaderMemory => &self.header_memory,
        }
    }
}

/// Answers the first request of a connection that was never served, and closes it.
pub(in crate::worker) async fn refuse_connection(
    mut stream: TcpStream,
    refusal: &RenderedRefusal,
    discarded_max: linger::DiscardLimit,
) -> io::Result<()> {
    let mut bytes = [0; PREFACE.len()];
    let read = stream.peek(&mut bytes).await?;
    if read > 0 && !PREFACE.starts_with(&bytes[..read]) {
        fd::send_now(&stream, refusal.bytes(bytes.starts_with(b"HEAD ")))?;
    }
    tcp_socket::shut_down_write(&stream)?;
    let mut linger = LingeringClose::new(discarded_max);
    poll_fn(|context| linger.poll(&mut stream, context)).await;
    Ok(())
}
