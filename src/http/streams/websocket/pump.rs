//! What reads and writes an open WebSocket, whatever its handler does meanwhile (RFC 6455 §5 to §7).
//!
//! Guarantees that pings are answered; that a client which answers none, or reads nothing, is gone after a bounded time;
//! that each violation is answered with its close code; and that a socket whose worker leaves is closed with 1012. A
//! client whose messages the handler does not take is not judged by its silence: nothing of it is read then.

use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::ws::Message;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, tungstenite};

use crate::http::streams::websocket::error::SocketError;
use crate::http::streams::websocket::link::{CloseRequest, Link};
use crate::http::streams::websocket::message::{close_to_wire, from_wire, to_wire};
use crate::http::streams::websocket::message_rate::{MessageDecision, MessageRateLimiter};
use crate::http::streams::websocket::metered_io::MeteredIo;
use crate::http::streams::websocket::socket::{CloseReason, LEAVING, close_reason_for};

/// What this side's pings carry: answers to them are none of the handler's messages.
const PING_PAYLOAD: &[u8] = b"regatta";

/// Bounds of one socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct PumpLimits {
    pub(super) keep_alive_interval: Duration,
    /// Pings and unasked pongs in a second.
    pub(super) pings_per_second: u64,
    /// How long a client may read nothing of what is sent to it.
    pub(super) send_timeout: Duration,
    /// How long a client has to answer a close frame.
    pub(super) close_linger: Duration,
    /// The same for one that its handler sent.
    pub(super) handler_close_linger: Duration,
}

/// An open connection, and what goes over it in either direction.
pub(super) struct Pump<I> {
    stream: WebSocketStream<MeteredIo<I>>,
    link: Arc<Link>,
    keep_alive: Interval,
    liveness: Liveness,
    ping_rate: MessageRateLimiter,
    limits: PumpLimits,
    /// Something may be left in the connection's buffer.
    is_dirty: bool,
    stall: Option<Stall>,
}

/// Whether the client is known to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Liveness {
    /// It was heard since the last tick.
    Alive,
    /// It was sent a ping and was not heard since.
    Pinged,
}

/// Since when the client has taken nothing.
struct Stall {
    written: u64,
    timer: Pin<Box<Sleep>>,
}

/// How a socket ends.
#[derive(Debug)]
enum SocketEnd {
    /// No close frame can be sent.
    Cut(SocketError),
    /// The client sent its close frame.
    ByClient,
    /// The client broke a rule.
    ByRule(SocketError, CloseCode, &'static str),
    /// The handler closes it.
    ByHandler(CloseRequest),
    /// The worker leaves.
    Leaving,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Pump<I> {
    pub(super) fn new(
        stream: WebSocketStream<MeteredIo<I>>,
        link: Arc<Link>,
        limits: PumpLimits,
        now: std::time::Instant,
    ) -> Self {
        let interval = limits.keep_alive_interval;
        let mut keep_alive = tokio::time::interval_at(Instant::from_std(now) + interval, interval);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            stream,
            link,
            keep_alive,
            liveness: Liveness::Alive,
            ping_rate: MessageRateLimiter::new(limits.pings_per_second, now),
            limits,
            is_dirty: false,
            stall: None,
        }
    }

    /// Runs until the socket has ended; gives the connection back, which is closed by its drop.
    pub(super) async fn run(mut self, leaving: impl Future<Output = ()>) -> WebSocketStream<MeteredIo<I>> {
        let mut leaving = pin!(leaving);
        let end = poll_fn(|context| self.poll_open(leaving.as_mut(), context)).await;
        self.finish(end).await;
        self.link.end();
        self.stream
    }

    fn poll_open(
        &mut self,
        leaving: Pin<&mut impl Future<Output = ()>>,
        context: &mut Context<'_>,
    ) -> Poll<SocketEnd> {
        self.link.watch(context);
        if leaving.poll(context).is_ready() {
            return Poll::Ready(SocketEnd::Leaving);
        }
        // Writing comes last: what is read and each tick may make something to be written.
        let end = self.read(context).or_else(|| self.keep_alive(context)).or_else(|| self.write(context));
        end.map_or(Poll::Pending, Poll::Ready)
    }

    /// Receives what has come, as far as the handler takes it.
    fn read(&mut self, context: &mut Context<'_>) -> Option<SocketEnd> {
        while self.link.has_room() {
            let end = match self.stream.poll_next_unpin(context) {
                Poll::Pending => return None,
                Poll::Ready(None) => Some(SocketEnd::Cut(SocketError::Disconnected)),
                Poll::Ready(Some(Err(error))) => Some(end_for(&error)),
                Poll::Ready(Some(Ok(message))) => self.receive(message),
            };
            if end.is_some() {
                return end;
            }
        }
        None
    }

    fn receive(&mut self, message: tungstenite::Message) -> Option<SocketEnd> {
        let was = mem::replace(&mut self.liveness, Liveness::Alive);
        match &message {
            tungstenite::Message::Pong(payload) if was == Liveness::Pinged && payload == PING_PAYLOAD => {
                return None;
            }
            tungstenite::Message::Ping(_) | tungstenite::Message::Pong(_) => {
                // A ping's answer is in the connection's buffer.
                self.is_dirty = true;
                match self.ping_rate.decide(std::time::Instant::now()) {
                    MessageDecision::Accept => {}
                    MessageDecision::Warn | MessageDecision::Drop => return None,
                    MessageDecision::Close => {
                        return Some(SocketEnd::ByRule(
                            SocketError::TooManyPings,
                            CloseCode::Policy,
                            "too many pings",
                        ));
                    }
                }
            }
            _ => {}
        }
        let closes = matches!(message, tungstenite::Message::Close(_));
        if let Some(message) = from_wire(message) {
            self.link.deliver(message);
        }
        closes.then_some(SocketEnd::ByClient)
    }

    /// Asks a client that was not heard for a sign of life, and ends the socket of one that has given none.
    fn keep_alive(&mut self, context: &mut Context<'_>) -> Option<SocketEnd> {
        while self.keep_alive.poll_tick(context).is_ready() {
            if self.liveness == Liveness::Pinged && self.link.has_room() {
                return Some(SocketEnd::ByRule(
                    SocketError::NoPong,
                    CloseCode::Policy,
                    "no answer to a ping",
                ));
            }
            // One that takes nothing is not asked: it is cut for that.
            if let Poll::Ready(Ok(())) = self.stream.poll_ready_unpin(context) {
                let ping = tungstenite::Message::Ping(Bytes::from_static(PING_PAYLOAD));
                if let Err(error) = self.stream.start_send_unpin(ping) {
                    return Some(end_for(&error));
                }
                self.liveness = Liveness::Pinged;
                self.is_dirty = true;
            }
        }
        None
    }

    /// Sends what the handler has given, and ends the socket if it wants that.
    fn write(&mut self, context: &mut Context<'_>) -> Option<SocketEnd> {
        match self.poll_write(context) {
            Poll::Ready(Ok(())) => self.stall = None,
            Poll::Ready(Err(error)) => return Some(end_for(&error)),
            Poll::Pending if self.has_stalled(context) => return Some(SocketEnd::Cut(SocketError::TooSlow)),
            Poll::Pending => {}
        }
        let request = self.link.close_request().filter(|_| !self.link.has_outgoing());
        request.map(SocketEnd::ByHandler)
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), tungstenite::Error>> {
        loop {
            ready!(self.stream.poll_ready_unpin(context))?;
            let Some(message) = self.link.take_outgoing() else { break };
            self.stream.start_send_unpin(to_wire(message))?;
            self.is_dirty = true;
        }
        if mem::take(&mut self.is_dirty) {
            let flushed = self.stream.poll_flush_unpin(context);
            self.is_dirty = flushed.is_pending();
            ready!(flushed)?;
        }
        self.link.set_flushed();
        Poll::Ready(Ok(()))
    }

    /// Whether the client has taken nothing for too long.
    fn has_stalled(&mut self, context: &mut Context<'_>) -> bool {
        let written = self.stream.get_ref().written();
        if self.stall.as_ref().is_none_or(|stall| stall.written != written) {
            self.stall = Some(Stall { written, timer: Box::pin(sleep(self.limits.send_timeout)) });
        }
        self.stall.as_mut().is_some_and(|stall| stall.timer.as_mut().poll(context).is_ready())
    }

    /// Closes the connection, with the close frames of both sides where that can be.
    async fn finish(&mut self, end: SocketEnd) {
        let server_close = |code, reason: &'static str| {
            let reason = tungstenite::Utf8Bytes::from_static(reason);
            Some(tungstenite::Message::Close(Some(CloseFrame { code, reason })))
        };
        let (failure, close, linger) = match end {
            SocketEnd::Cut(error) => return self.link.start_closing(Some(error)),
            SocketEnd::ByClient => (None, None, self.limits.close_linger),
            SocketEnd::ByRule(error, code, reason) => {
                (Some(error), server_close(code, reason), self.limits.close_linger)
            }
            SocketEnd::ByHandler(CloseRequest(frame)) => {
                let close = tungstenite::Message::Close(frame.and_then(close_to_wire));
                (None, Some(close), self.limits.handler_close_linger)
            }
            SocketEnd::Leaving => (None, server_close(CloseCode::Restart, LEAVING), self.limits.close_linger),
        };
        self.link.start_closing(failure);
        // What a client sent before it learnt of the end is its handler's, unless that was told of a failure.
        let _ = timeout(linger, self.close_handshake(close, failure.is_none())).await;
        // The connection lingers before it is closed: a reset would discard the close frame on its way.
        let _ = timeout(linger, self.stream.get_mut().shutdown()).await;
    }

    /// Sends the close frame, if it is not the client's that is answered, and reads until the client has answered.
    async fn close_handshake(
        &mut self,
        close: Option<tungstenite::Message>,
        delivers: bool,
    ) -> Result<(), tungstenite::Error> {
        if let Some(close) = close {
            while let Some(message) = self.link.take_outgoing() {
                self.stream.feed(to_wire(message)).await?;
            }
            self.stream.send(close).await?;
            self.link.set_flushed();
        } else {
            // The answer to the client's close is queued only: the handler may take long to make room for more.
            self.stream.flush().await?;
        }
        loop {
            let link = &self.link;
            poll_fn(|context| poll_room(link, context)).await;
            match self.stream.next().await.transpose()? {
                None => return Ok(()),
                Some(message) if delivers && (message.is_text() || message.is_binary()) => {
                    from_wire(message).into_iter().for_each(|message: Message| self.link.deliver(message));
                }
                Some(_) => {}
            }
        }
    }
}

/// Waits until a message can be delivered.
fn poll_room(link: &Link, context: &Context<'_>) -> Poll<()> {
    link.watch(context);
    if link.has_room() { Poll::Ready(()) } else { Poll::Pending }
}

/// How a socket ends whose connection or client failed like this.
fn end_for(error: &tungstenite::Error) -> SocketEnd {
    match close_reason_for(error) {
        CloseReason::ByServer(code, reason) => SocketEnd::ByRule(SocketError::from(error), code, reason),
        CloseReason::Disconnected | CloseReason::ByClient => SocketEnd::Cut(SocketError::from(error)),
    }
}
