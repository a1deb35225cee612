//! One connection: commands one way, replies the other, and what befalls them.

use std::collections::VecDeque;
use std::io::{ErrorKind, Result};
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::fault_proxy::counts::CommandName;
use crate::support::fault_proxy::serve::Stream;
use crate::support::fault_proxy::{CommandFault, Faults, LinkState, ProxyOrders, ProxyShared, counts, resp};

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Close,
    Reset,
}

/// A reply that is to come.
#[derive(Debug)]
enum Expected {
    /// The server's to a command.
    Reply { of: CommandName, lose: bool },
    /// Our own, when it is its turn.
    Instead(Vec<u8>),
}

/// What both directions know of each other.
#[derive(Debug, Default)]
struct Talk {
    expected: VecDeque<Expected>,
    /// A request's command went out and no reply has come since.
    awaits_reply: bool,
}

struct Pump<'a> {
    shared: &'a ProxyShared,
    orders: watch::Receiver<ProxyOrders>,
    /// How many times connections had been forgotten when this one was made.
    blackholes: u64,
    talk: Mutex<Talk>,
}

type Replies = mpsc::UnboundedSender<(Instant, Vec<u8>)>;

/// Carries both ways until either side or the order ends it.
pub(super) async fn carry(
    client: &mut TcpStream,
    upstream: Pin<Box<dyn Stream>>,
    shared: &ProxyShared,
    mut orders: watch::Receiver<ProxyOrders>,
) -> End {
    let blackholes = orders.borrow().blackholes;
    let pump = Pump { shared, orders: orders.clone(), blackholes, talk: Mutex::default() };
    let born = orders.borrow().resets;
    let (from_client, mut to_client) = client.split();
    let (from_server, to_server) = tokio::io::split(upstream);
    let (replies, due) = mpsc::unbounded_channel();
    let result = tokio::select! {
        biased;
        end = doom(&mut orders, born) => Ok(end),
        end = pump.commands(from_client, to_server, replies.clone()) => end,
        end = pump.replies(from_server, replies) => end,
        end = pump.deliver(due, &mut to_client) => end,
    };
    result.unwrap_or_else(|error| match error.kind() {
        ErrorKind::ConnectionReset => End::Reset,
        _ => End::Close,
    })
}

/// Returns when the order ends this connection.
async fn doom(orders: &mut watch::Receiver<ProxyOrders>, born: u64) -> End {
    let mut swallowed = false;
    loop {
        let (link, resets, is_stopped) = {
            let order = orders.borrow_and_update();
            (order.link, order.resets, order.is_stopped)
        };
        match link {
            _ if is_stopped || resets > born => return End::Reset,
            LinkState::Down => return End::Close,
            LinkState::Reset => return End::Reset,
            LinkState::BlackHole => swallowed = true,
            // It lost an unknown part of what was said.
            LinkState::Open | LinkState::Stalled if swallowed => return End::Reset,
            LinkState::Open | LinkState::Stalled => (),
        }
        if orders.changed().await.is_err() {
            return End::Reset;
        }
    }
}

impl Pump<'_> {
    fn faults(&self) -> (u64, Faults) {
        let order = self.orders.borrow();
        (order.age, order.faults.clone())
    }

    /// Waits while the link stands still; whether what was read is lost.
    async fn held(&self) -> bool {
        let mut orders = self.orders.clone();
        let order = orders.wait_for(|order| order.link != LinkState::Stalled).await;
        order.is_ok_and(|order| order.link == LinkState::BlackHole || order.blackholes > self.blackholes)
    }

    async fn commands(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        replies: Replies,
    ) -> Result<End> {
        let mut buffer = Vec::new();
        while from.read_buf(&mut buffer).await? > 0 {
            if self.held().await {
                buffer.clear();
                continue;
            }
            let mut onward = Vec::new();
            let mut reset = false;
            while let Some(frame) = frame(&mut buffer) {
                let name = counts::name(&frame);
                reset = self.command(name, &frame, &mut onward, &replies);
                if reset {
                    break;
                }
            }
            write(&mut to, &onward, self.faults().1.slices).await?;
            if reset {
                return Ok(End::Reset);
            }
        }
        Ok(End::Close)
    }

    /// Counts one command and lets it pass, or not; whether the connection is reset instead.
    fn command(&self, name: CommandName, frame: &[u8], onward: &mut Vec<u8>, replies: &Replies) -> bool {
        let mut state = self.shared.state();
        state.counts.command(&name, frame.len());
        // The command alone means each of its scripts, too.
        let is = |expected: &str| {
            name.text.strip_prefix(expected).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        let ambush = state.command_faults.iter_mut().find(|(expected, count, _)| is(expected) && *count > 0);
        let mut instead = None;
        let mut lose = false;
        if let Some((_, count, ambush)) = ambush {
            *count -= 1;
            match ambush {
                CommandFault::LoseReply => lose = true,
                CommandFault::Answer(reply) => instead = Some(format!("{reply}\r\n").into_bytes()),
            }
            state.sprung += 1;
        } else if !name.housekeeping && rand::rng().random_bool(self.orders.borrow().faults.resets) {
            state.sprung += 1;
            if rand::rng().random() {
                return true;
            }
            lose = true;
        }
        drop(state);
        let mut talk = self.talk.lock().unwrap();
        talk.awaits_reply |= !name.housekeeping;
        match instead {
            Some(reply) => talk.expected.push_back(Expected::Instead(reply)),
            None => {
                talk.expected.push_back(Expected::Reply { of: name, lose });
                onward.extend_from_slice(frame);
            }
        }
        self.answer_ourselves(&mut talk, replies);
        false
    }

    /// Gives our own replies that are next.
    fn answer_ourselves(&self, talk: &mut Talk, replies: &Replies) {
        while let Some(Expected::Instead(reply)) =
            talk.expected.pop_front_if(|next| matches!(next, Expected::Instead(_)))
        {
            self.round(talk, reply.len());
            let _ = replies.send((self.due(), reply));
        }
    }

    /// A reply to a request came.
    fn round(&self, talk: &mut Talk, bytes: usize) {
        let mut state = self.shared.state();
        state.counts.rounds += u64::from(std::mem::take(&mut talk.awaits_reply));
        state.counts.received += bytes as u64;
    }

    /// When a reply that is here now is to arrive.
    fn due(&self) -> Instant {
        let toxics = self.faults().1;
        let shift = toxics.jitter.mul_f64(rand::rng().random_range(0.0..=2.0));
        Instant::now() + (toxics.latency + shift).saturating_sub(toxics.jitter)
    }

    async fn replies(&self, mut from: impl AsyncRead + Unpin, to: Replies) -> Result<End> {
        let mut buffer = Vec::new();
        while from.read_buf(&mut buffer).await? > 0 {
            if self.held().await {
                buffer.clear();
                continue;
            }
            while let Some(frame) = frame(&mut buffer) {
                let mut talk = self.talk.lock().unwrap();
                // A push answers nothing.
                let answers = if frame[0] == b'>' { None } else { talk.expected.pop_front() };
                match answers {
                    Some(Expected::Reply { lose: true, .. }) => return Ok(End::Reset),
                    Some(Expected::Reply { of, .. }) if !of.housekeeping => {
                        self.round(&mut talk, frame.len())
                    }
                    _ => (),
                }
                let _ = to.send((self.due(), frame));
                self.answer_ourselves(&mut talk, &to);
            }
        }
        // What came before the server closed still arrives.
        let _ = to.send((self.due(), Vec::new()));
        std::future::pending().await
    }

    /// Delivers replies when they are due; nothing says that the server has closed.
    async fn deliver(
        &self,
        mut due: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<End> {
        let (mut age, mut passed) = (0, 0u64);
        while let Some((at, mut reply)) = due.recv().await {
            if reply.is_empty() {
                break;
            }
            // Coarse timers are later than asked; without latency none is.
            if at > Instant::now() {
                sleep_until(at).await;
            }
            if self.held().await {
                continue;
            }
            let (now, toxics) = self.faults();
            if now != age {
                (age, passed) = (now, 0);
            }
            let left = toxics.limit_data.map(|limit| usize::try_from(limit - passed.min(limit)).unwrap());
            let exceeds = left.is_some_and(|left| left < reply.len());
            reply.truncate(left.unwrap_or(reply.len()));
            passed += reply.len() as u64;
            if toxics.bandwidth > 0 {
                sleep(Duration::from_secs_f64(reply.len() as f64 / toxics.bandwidth as f64)).await;
            }
            write(to, &reply, toxics.slices).await?;
            if exceeds {
                break;
            }
        }
        Ok(End::Close)
    }
}

/// The first value of the buffer, taken out of it; everything, if it is no RESP.
fn frame(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = match resp::whole(buffer) {
        Ok(length) => length?,
        Err(resp::NotResp) => buffer.len(),
    };
    let rest = buffer.split_off(length);
    Some(std::mem::replace(buffer, rest))
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], slices: usize) -> Result<()> {
    if slices == 0 {
        return to.write_all(bytes).await;
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = rand::rng().random_range(1..=slices).min(rest.len());
        to.write_all(&rest[..length]).await?;
        rest = &rest[length..];
        // The other side is to see it as a piece of its own.
        tokio::task::yield_now().await;
    }
    Ok(())
}
