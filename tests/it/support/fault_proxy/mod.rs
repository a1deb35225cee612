//! A TCP proxy between workers and Redis: faults that are switched on and off, and exact counts of what was asked.
//!
//! It understands RESP just enough to know where a command or a reply ends, which command it is, and which reply
//! belongs to which command. What is no RESP (TLS) passes uncounted, in pieces as they come.

mod counts;
mod pump;
mod resp;
mod serve;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use regatta::__internals::config::settings::{RedisUrl, ScriptingMode};
use regatta::__internals::config::{ConfigInputs, settings};
use regatta::__internals::redis::{RedisClient, RedisStatus};
use tokio::sync::watch;

pub(crate) use crate::support::fault_proxy::counts::CommandCounts;
use crate::support::redis::TestRedis;
use crate::support::wait;
use regatta::__internals::request_state::StateClient;

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// They reach Redis.
    Open,
    /// New ones are refused, those there are were closed.
    Down,
    /// New ones are accepted and reset, those there are were reset.
    Reset,
    /// Everything is accepted and acknowledged, nothing is answered or passed on, and it is lost.
    BlackHole,
    /// Nothing passes now; nothing is lost, it passes later.
    Stalled,
}

/// What happens to the bytes of an open link.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Faults {
    /// Every reply comes this much later.
    pub(crate) latency: Duration,
    /// And by up to this much more or less.
    pub(crate) jitter: Duration,
    /// Both ways in pieces of so many bytes at most, each a packet of its own; 0: as they come.
    pub(crate) slices: usize,
    /// Bytes a second of replies, per connection; 0: no bound.
    pub(crate) bandwidth: u64,
    /// A connection is closed when so many bytes of replies have passed since this was set.
    pub(crate) limit_data: Option<u64>,
    /// Share of commands, 0 to 1, at which the connection is reset: half of them before the server has the command,
    /// half of them after it was done.
    pub(crate) resets: f64,
}

impl Faults {
    /// Nothing happens to them.
    pub(crate) const NONE: Self = Self {
        latency: Duration::ZERO,
        jitter: Duration::ZERO,
        slices: 0,
        bandwidth: 0,
        limit_data: None,
        resets: 0.0,
    };
}

/// Where the server is.
#[derive(Debug, Clone)]
pub(crate) enum ProxyUpstream {
    /// A Unix socket.
    Unix(PathBuf),
    /// An address.
    Tcp(SocketAddr),
}

/// What the serving thread and its connections look at.
#[derive(Debug, Clone)]
struct ProxyOrders {
    link: LinkState,
    /// Grows with each setting of toxics.
    age: u64,
    faults: Faults,
    /// Connections older than this are reset.
    resets: u64,
    /// Connections older than this lose everything that is said on them.
    blackholes: u64,
    is_stopped: bool,
}

/// What is done to commands of some name.
#[derive(Debug)]
enum CommandFault {
    /// The server does it, the reply is lost and the connection reset.
    LoseReply,
    /// The server never sees it; this is its reply, without the line's end.
    Answer(String),
}

#[derive(Debug, Default)]
struct ProxyState {
    counts: CommandCounts,
    /// Name of the command, how many more of them, and what is done to them.
    command_faults: VecDeque<(String, u64, CommandFault)>,
    sprung: u64,
    accepted: Vec<Instant>,
    open: usize,
    /// The order's age that the listener follows.
    obeyed: u64,
    orders: u64,
}

#[derive(Debug)]
struct ProxyShared {
    upstream: ProxyUpstream,
    state: Mutex<ProxyState>,
}

impl ProxyShared {
    fn state(&self) -> MutexGuard<'_, ProxyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy that runs; it ends, with its connections, when it goes out of scope.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    address: SocketAddr,
    shared: Arc<ProxyShared>,
    order: watch::Sender<ProxyOrders>,
    thread: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Before a server of this test's; the server may be restarted behind it.
    pub(crate) fn before(server: &TestRedis) -> Self {
        Self::to(ProxyUpstream::Unix(server.socket()))
    }

    /// Before any server.
    pub(crate) fn to(upstream: ProxyUpstream) -> Self {
        let shared = Arc::new(ProxyShared { upstream, state: Mutex::default() });
        let order = ProxyOrders {
            link: LinkState::Open,
            age: 0,
            faults: Faults::NONE,
            resets: 0,
            blackholes: 0,
            is_stopped: false,
        };
        let (order, orders) = watch::channel(order);
        // Its port stays ours while no one listens.
        let place = serve::reserve();
        let address = place.local_addr().unwrap().as_socket().unwrap();
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || serve::run(place, &of_thread, orders));
        let proxy = Self { address, shared, order, thread: Some(thread) };
        proxy.update_orders(|_| ());
        proxy
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, as settings have it.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Settings for the library's client, which goes through it.
    pub(crate) fn settings(
        &self,
        server: &TestRedis,
        prefix: &str,
        mode: ScriptingMode,
    ) -> settings::RedisConfig {
        settings::RedisConfig { url: Some(self.redis_url()), ..server.settings(prefix, mode) }
    }

    fn redis_url(&self) -> RedisUrl {
        let flags = vec![("redis.url".to_owned(), self.url(), "--redis".to_owned())];
        let inputs = ConfigInputs { flags, ..ConfigInputs::default() };
        regatta::__internals::config::load(&inputs).unwrap().redis.url.unwrap()
    }

    /// A worker's connection to the server through it, ready.
    pub(crate) async fn connect(&self, server: &TestRedis, prefix: &str, mode: ScriptingMode) -> StateClient {
        let settings = self.settings(server, prefix, mode);
        let redis = StateClient::new(RedisClient::new(&settings, &self.redis_url(), "test").unwrap());
        redis.start();
        assert_eq!(redis.wait_for_first_attempt().await, RedisStatus::Up);
        redis
    }

    /// Changes what becomes of connections, and returns when it is so.
    #[track_caller]
    pub(crate) fn set_link(&self, link: LinkState) {
        self.update_orders(|order| order.link = link);
        if link == LinkState::Down {
            wait::until("the proxy has closed its connections", wait::LONG, || self.open() == 0);
        }
    }

    /// Resets the connections there are; new ones are as before.
    #[track_caller]
    pub(crate) fn reset(&self) {
        self.update_orders(|order| order.resets += 1);
    }

    /// Forgets the connections there are, as a firewall does: bytes on them are lost, and neither side is told;
    /// new ones are as before.
    #[track_caller]
    pub(crate) fn blackhole(&self) {
        self.update_orders(|order| order.blackholes += 1);
    }

    /// Sets what happens to the bytes, e.g. `|toxics| toxics.slices = 10`.
    #[track_caller]
    pub(crate) fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        self.update_orders(|order| change(&mut order.faults));
    }

    /// Loses the replies of the next so many commands of this name (as in [`Counts`]), which the server has done;
    /// each time the connection is reset.
    pub(crate) fn lose_replies(&self, name: &str, count: u64) {
        self.shared.state().command_faults.push_back((name.to_owned(), count, CommandFault::LoseReply));
    }

    /// Answers the next so many commands of this name in the server's place, e.g. `-LOADING Redis is loading`.
    pub(crate) fn answer(&self, name: &str, count: u64, reply: &str) {
        self.shared.state().command_faults.push_back((
            name.to_owned(),
            count,
            CommandFault::Answer(reply.to_owned()),
        ));
    }

    /// No one's replies are lost, no one is answered in the server's place any more.
    pub(crate) fn clear_command_faults(&self) {
        self.shared.state().command_faults.clear();
    }

    /// How many commands met with [`Proxy::lose_replies`], [`Proxy::answer`] or a reset of [`Toxics::resets`] so far.
    pub(crate) fn faults_injected(&self) -> u64 {
        self.shared.state().sprung
    }

    /// Everything asked so far.
    pub(crate) fn counts(&self) -> CommandCounts {
        self.shared.state().counts.clone()
    }

    /// What was asked while this was done, housekeeping left out; replies must have come by its end.
    pub(crate) fn during<T>(&self, act: impl FnOnce() -> T) -> (CommandCounts, T) {
        let before = self.counts();
        let value = act();
        (self.counts().since(&before), value)
    }

    /// Connections there are now.
    pub(crate) fn open(&self) -> usize {
        self.shared.state().open
    }

    /// When connections were accepted, in their order.
    pub(crate) fn accepted(&self) -> Vec<Instant> {
        self.shared.state().accepted.clone()
    }

    #[track_caller]
    fn update_orders(&self, change: impl FnOnce(&mut ProxyOrders)) {
        let orders = {
            let mut state = self.shared.state();
            state.orders += 1;
            state.orders
        };
        self.order.send_modify(|order| {
            change(order);
            order.age = orders;
        });
        wait::until("the proxy obeys", wait::LONG, || self.shared.state().obeyed >= orders);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.order.send_modify(|order| order.is_stopped = true);
        let joined = self.thread.take().map(JoinHandle::join);
        assert!(matches!(joined, Some(Ok(()))) || thread::panicking(), "the proxy panicked");
    }
}
