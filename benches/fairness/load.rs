//! Clients that ask again and again, each on connections of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::Outcome;

/// What clients do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// What they ask for.
    pub(crate) path: &'static str,
    /// What they ask for instead, every so many requests.
    pub(crate) other: Option<(u64, &'static str)>,
    /// Whether they keep their connections.
    pub(crate) keep: bool,
    /// How many of them there are.
    pub(crate) clients: usize,
    /// How long they go on before anything counts but which worker has their connection: opening many at once takes a
    /// time of its own.
    pub(crate) warm_up: Duration,
    /// How long they go on then.
    pub(crate) time: Duration,
    /// When a client asks again, counted from when it was to ask before; none: as soon as it has its answer.
    pub(crate) interval: Option<Duration>,
}

/// What clients saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Answers by worker.
    pub(crate) answers: BTreeMap<u32, u64>,
    /// Connections by worker.
    pub(crate) connections: BTreeMap<u32, u64>,
    /// Time of every answer since it was to be asked for, microseconds.
    pub(crate) latencies: Vec<u64>,
    /// Requests that have failed.
    pub(crate) failed: u64,
}

impl Seen {
    /// So many per cent of all answers took no longer than this, microseconds.
    pub(crate) fn quantile(&mut self, percent: usize) -> u64 {
        self.latencies.sort_unstable();
        let at = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

/// Clients that all begin at once.
pub(crate) async fn load(address: SocketAddr, load: Load) -> Outcome<Seen> {
    let begin = tokio::time::Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..u32::try_from(load.clients)? {
        clients.spawn(client(number, address, load, begin));
    }
    let mut all = Seen::default();
    while let Some(seen) = clients.join_next().await {
        let seen = seen?;
        seen.answers.into_iter().for_each(|(pid, count)| *all.answers.entry(pid).or_default() += count);
        seen.connections
            .into_iter()
            .for_each(|(pid, count)| *all.connections.entry(pid).or_default() += count);
        all.latencies.extend(seen.latencies);
        all.failed += seen.failed;
    }
    Ok(all)
}

/// So many connections that are opened one after the other, used once, and closed at the end.
pub(crate) async fn open_one_by_one(address: SocketAddr, count: usize) -> Outcome<Seen> {
    let (mut seen, mut kept) = (Seen::default(), Vec::new());
    for number in 0..u32::try_from(count)? {
        let begin = Instant::now();
        let mut client = Client::new(number, address);
        let worker = client.exchange("/hello", true).await?;
        *seen.answers.entry(worker).or_default() += 1;
        *seen.connections.entry(worker).or_default() += 1;
        seen.latencies.push(u64::try_from(begin.elapsed().as_micros())?);
        kept.push(client);
    }
    Ok(seen)
}

async fn client(number: u32, address: SocketAddr, load: Load, begin: tokio::time::Instant) -> Seen {
    let mut seen = Seen::default();
    let mut client = Client::new(number, address);
    let counted_from = begin + load.warm_up;
    let until = counted_from + load.time;
    let offset = load.interval.unwrap_or_default().mul_f64(f64::from(number) / load.clients.max(1) as f64);
    let mut due = begin + offset;
    let mut count = u64::from(number);
    loop {
        let asked = match load.interval {
            Some(interval) => {
                let late = tokio::time::Instant::now() >= due;
                let asked = due;
                due += interval;
                if late {
                    asked
                } else {
                    // A timer's own lateness, up to a millisecond, is none of the fleet's.
                    sleep_until(asked).await;
                    tokio::time::Instant::now()
                }
            }
            None => tokio::time::Instant::now(),
        };
        if asked >= until {
            return seen;
        }
        count += 1;
        let path =
            load.other.filter(|(every, _)| count.is_multiple_of(*every)).map_or(load.path, |other| other.1);
        let new = client.stream.is_none();
        match client.exchange(path, load.keep).await {
            Ok(worker) => {
                *seen.connections.entry(worker).or_default() += u64::from(new);
                if asked >= counted_from {
                    *seen.answers.entry(worker).or_default() += 1;
                    seen.latencies.push(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX));
                }
            }
            Err(_) => {
                client.stream = None;
                seen.failed += 1;
            }
        }
    }
}

/// A client with an address of its own.
struct Client {
    from: Ipv4Addr,
    to: SocketAddr,
    stream: Option<TcpStream>,
    /// What it was told to send with each request, as a line of the header.
    cookie: String,
    answer: Vec<u8>,
}

impl Client {
    fn new(number: u32, to: SocketAddr) -> Self {
        let [.., third, fourth] = (256 + number / 250 * 256 + number % 250 + 1).to_be_bytes();
        let from = Ipv4Addr::new(127, 0, third, fourth);
        Self { from, to, stream: None, cookie: String::new(), answer: Vec::with_capacity(1024) }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((self.from, 0)))?;
        let stream = socket.connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// One request; the worker that answered.
    async fn exchange(&mut self, path: &str, keep: bool) -> io::Result<u32> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect().await?,
        };
        let last = if keep { "" } else { "Connection: close\r\n" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{}{last}\r\n", self.cookie);
        stream.write_all(request.as_bytes()).await?;
        self.answer.clear();
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        loop {
            if stream.read_buf(&mut self.answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text = std::str::from_utf8(&self.answer).map_err(|_| wrong())?;
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length: usize =
                field(head, "content-length").and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            if body.len() < length {
                continue;
            }
            let worker = field(head, "x-worker-id").and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            if !head.starts_with("HTTP/1.1 200") {
                return Err(wrong());
            }
            if let Some(cookie) = field(head, "set-cookie").and_then(|cookie| cookie.split(';').next()) {
                self.cookie = format!("Cookie: {cookie}\r\n");
            }
            self.stream = keep.then_some(stream);
            return Ok(worker);
        }
    }
}

/// A header's value.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let of_name = |line: &'a str| {
        let (known, value) = line.split_once(':')?;
        known.eq_ignore_ascii_case(name).then(|| value.trim())
    };
    head.lines().find_map(of_name)
}
