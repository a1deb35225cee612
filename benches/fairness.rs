//! `cargo bench --bench fairness`: how evenly each steering spreads requests over the workers, and what it costs.
//!
//! Figures only, never a verdict on them. Every connection is a client with an address of its own (127.0.1.1 and so on),
//! so that `client-ip` has something to choose by. Jain's index is 1 when all workers answer equally often and 1/n when
//! one answers everything. `redis-server` must be installed. Options: `--workers 4 --connections 64 --seconds 5
//! --rounds 5 --heavy 0` (every how many requests one is CPU work; 0: none).

#![allow(clippy::print_stdout, reason = "printing figures is what a benchmark is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The program under test, built by cargo with the release profile.
const REGATTA: &str = env!("CARGO_BIN_EXE_regatta");

/// What can be measured, as `listen.steering` spells it.
const STEERINGS: &[&str] = &["kernel", "client-ip"];

/// Longest wait for a fleet to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is measured.
#[derive(Debug, Clone, Copy)]
struct Options {
    workers: usize,
    connections: usize,
    seconds: u64,
    rounds: usize,
    heavy: u64,
}

/// What the clients saw in one round.
#[derive(Debug, Default)]
struct Seen {
    /// Answers by worker.
    answers: BTreeMap<u32, u64>,
    /// Time of every answer, microseconds.
    latencies: Vec<u64>,
    failed: u64,
}

/// The figures of one round.
#[derive(Debug, Clone, Copy)]
struct Figures {
    rate: f64,
    max_to_mean: f64,
    jain: f64,
    p50_us: u64,
    p99_us: u64,
    failed: u64,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benchmarks too, without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    match options().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Outcome<Options> {
    let mut options = Options { workers: 4, connections: 64, seconds: 5, rounds: 5, heavy: 0 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--bench" {
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--workers" => options.workers = value.parse()?,
            "--connections" => options.connections = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            "--rounds" => options.rounds = value.parse()?,
            "--heavy" => options.heavy = value.parse()?,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(options)
}

fn run(options: Options) -> Outcome<()> {
    println!("{options:?}\n");
    println!(
        "| steering | connections | req/s | max/mean | worst | Jain | worst | p50 ms | p99 ms | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for steering in STEERINGS {
        let folder = tempfile::Builder::new().prefix("regatta-fairness").tempdir()?;
        let fleet = Fleet::start(steering, folder.path(), options)?;
        for keep in [true, false] {
            let mut rounds = Vec::new();
            for _ in 0..options.rounds {
                let seen = runtime.block_on(load(fleet.address, keep, options))?;
                rounds.push(figures(seen, options));
            }
            print(steering, if keep { "kept" } else { "closed" }, &mut rounds);
        }
    }
    Ok(())
}

/// One line: the median round by evenness, beside the least even one.
fn print(steering: &str, kind: &str, rounds: &mut [Figures]) {
    rounds.sort_by(|a, b| a.max_to_mean.total_cmp(&b.max_to_mean));
    let (Some(worst), median) = (rounds.last(), rounds[rounds.len() / 2]) else { return };
    let p99 = {
        let mut all: Vec<_> = rounds.iter().map(|round| round.p99_us).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    let ms = |us: u64| format!("{:.2}", us as f64 / 1e3);
    println!(
        "| {steering} | {kind} | {:.0} | {:.3} | {:.3} | {:.4} | {:.4} | {} | {} | {} |",
        median.rate,
        median.max_to_mean,
        worst.max_to_mean,
        median.jain,
        worst.jain,
        ms(median.p50_us),
        ms(p99),
        rounds.iter().map(|round| round.failed).sum::<u64>()
    );
}

fn figures(mut seen: Seen, options: Options) -> Figures {
    let workers = options.workers as f64;
    let counts: Vec<f64> = seen.answers.values().map(|count| *count as f64).collect();
    let total: f64 = counts.iter().sum();
    let squares: f64 = counts.iter().map(|count| count * count).sum();
    seen.latencies.sort_unstable();
    let quantile = |share: usize| {
        let at = (seen.latencies.len() * share / 100).min(seen.latencies.len().saturating_sub(1));
        seen.latencies.get(at).copied().unwrap_or_default()
    };
    Figures {
        rate: total / options.seconds as f64,
        max_to_mean: counts.iter().copied().fold(0.0, f64::max) * workers / total.max(1.0),
        jain: total * total / (workers * squares.max(1.0)),
        p50_us: quantile(50),
        p99_us: quantile(99),
        failed: seen.failed,
    }
}

/// Every client asks again and again, on one connection or on a new one each time.
async fn load(address: SocketAddr, keep: bool, options: Options) -> Outcome<Seen> {
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let mut clients = JoinSet::new();
    for number in 0..u8::try_from(options.connections.min(250))? {
        clients.spawn(client(Ipv4Addr::new(127, 0, 1, number + 1), address, keep, options.heavy, until));
    }
    let mut all = Seen::default();
    while let Some(seen) = clients.join_next().await {
        let seen = seen?;
        seen.answers.into_iter().for_each(|(pid, count)| *all.answers.entry(pid).or_default() += count);
        all.latencies.extend(seen.latencies);
        all.failed += seen.failed;
    }
    Ok(all)
}

async fn client(from: Ipv4Addr, to: SocketAddr, keep: bool, heavy: u64, until: Instant) -> Seen {
    let mut seen = Seen::default();
    let mut kept = None;
    let mut number = u64::from(from.octets()[3]);
    while Instant::now() < until {
        number += 1;
        let path = if heavy > 0 && number % heavy == 0 { "/heavy?n=300000" } else { "/hello" };
        let begin = Instant::now();
        match exchange(kept.take(), from, to, path, keep).await {
            Ok((stream, worker)) => {
                kept = keep.then_some(stream);
                *seen.answers.entry(worker).or_default() += 1;
                seen.latencies.push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
            Err(_) => seen.failed += 1,
        }
    }
    seen
}

/// One request; the connection and the worker that answered.
async fn exchange(
    kept: Option<tokio::net::TcpStream>,
    from: Ipv4Addr,
    to: SocketAddr,
    path: &str,
    keep: bool,
) -> io::Result<(tokio::net::TcpStream, u32)> {
    let mut stream = match kept {
        Some(stream) => stream,
        None => {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from((from, 0)))?;
            let stream = socket.connect(to).await?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    let last = if keep { "" } else { "Connection: close\r\n" };
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{last}\r\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(512);
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = std::str::from_utf8(&answer).map_err(|_| wrong())?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let field = |name: &str| {
            let of_name = |line: &str| {
                let (known, value) = line.split_once(':')?;
                known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            };
            head.lines().find_map(of_name)
        };
        let length: usize = field("content-length").and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        if body.len() >= length {
            let worker = field("x-worker-id").and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            return if head.starts_with("HTTP/1.1 200") { Ok((stream, worker)) } else { Err(wrong()) };
        }
    }
}

/// The shipped program, running; told to stop when dropped.
struct Fleet {
    child: Child,
    address: SocketAddr,
}

impl Fleet {
    fn start(steering: &str, folder: &Path, options: Options) -> Outcome<Self> {
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
        let (address, admin) = (free()?, free()?);
        let mut command = Command::new(REGATTA);
        // A setting of the shell that runs the benchmark must not change what is measured.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(folder);
        command.env("REGATTA_LISTEN", address.to_string()).env("REGATTA_LISTEN__STEERING", steering);
        command.env("REGATTA_ADMIN__LISTEN", admin.to_string());
        command.env("REGATTA_WORKERS__COUNT", options.workers.to_string());
        command.env("REGATTA_RUN_DIR", folder.join("run")).env("REGATTA_DATA_DIR", folder.join("data"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let fleet = Self { child, address };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() || fleet.workers() < options.workers {
            if started.elapsed() > PATIENCE {
                return Err(format!("a fleet with listen.steering = {steering} did not start").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // Boot is over; the first heartbeats too.
        std::thread::sleep(Duration::from_millis(500));
        Ok(fleet)
    }

    /// Processes it has forked, less the private Redis.
    fn workers(&self) -> usize {
        let pid = self.child.id();
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().count().saturating_sub(1)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw);
        if pid.is_ok_and(|pid| signal::kill(pid, Signal::SIGTERM).is_err()) {
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}
