//! How the cost of a visit grows: with sessions, workers and connections, and what it is on other servers.
//!
//! Cost is CPU and Redis commands a visit. Answers a second say little here, because clients, workers and Redis share
//! the machine's cores, of which there may be fewer than workers.
//!
//! Every load is checked: what the visits of all clients add up to in Redis, against the answers, and so are the views of
//! the pool's sessions where they are not too many to ask.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::contender::Contender;
use crate::load::{Run, Seen, float};
use crate::options::Options;
use crate::rounds::mib;
use crate::{Outcome, exact, load, process, reference};

/// Sizes of the pool.
const SESSIONS: [usize; 4] = [1, 100, 10_000, 1_000_000];

/// Numbers of workers.
const WORKERS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Connections of each worker while their number grows; there are never fewer in all than elsewhere.
const EACH: usize = 8;

/// The smallest pool whose memory is told.
const WEIGHED: usize = 10_000;

/// Redis gives the buffers of busy connections back after two seconds of rest.
const BUFFERS: Duration = Duration::from_secs(3);

/// Sessions whose views are added up after the load: more would take longer than the load.
const ADDED_UP: usize = 10_000;

/// How long a fleet at rest is looked at: its workers tell of themselves once in a few seconds.
const IDLE: Duration = Duration::from_secs(6);

/// Longest time that all of it may take.
const LONGEST: Duration = Duration::from_secs(900);

/// Numbers of connections.
const CONNECTIONS: [usize; 6] = [1, 8, 64, 256, 1024, 4096];

/// A point of a growth table.
#[derive(Debug)]
pub(crate) struct Point {
    /// What was varied.
    pub(crate) at: String,
    /// The load, and what it cost.
    pub(crate) run: Run,
    /// Memory of Redis for one session, bytes; where that was asked.
    pub(crate) session_bytes: Option<f64>,
    /// CPU of a plain HINCRBY on the same server, microseconds; where that was asked.
    pub(crate) hincrby_us: Option<f64>,
    /// The fleet before its first session; where that was asked.
    pub(crate) rest: Option<Rest>,
}

/// A fleet at rest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rest {
    /// Redis commands a second, those inside scripts included.
    pub(crate) commands: f64,
    /// Private memory of a worker, mebibytes; the median of all.
    pub(crate) worker_mib: f64,
}

/// All growth tables.
#[derive(Debug)]
pub(crate) struct Growth {
    pub(crate) sessions: Vec<Point>,
    pub(crate) workers: Vec<Point>,
    pub(crate) connections: Vec<Point>,
    pub(crate) servers: Vec<Point>,
}

impl Growth {
    /// Measures all of it, each point once.
    pub(crate) fn measure(folder: &Path, options: &Options) -> Outcome<Self> {
        let clock = &Clock(Instant::now());
        println!("growth: at most {} s", LONGEST.as_secs());
        Ok(Self {
            sessions: sessions(&folder.join("sessions"), options, clock)?,
            workers: workers(&folder.join("workers"), options, clock)?,
            connections: connections(&folder.join("connections"), options, clock)?,
            servers: servers(&folder.join("servers"), options, clock)?,
        })
    }

    /// Requests that failed, or were answered with a stale session, over all points.
    pub(crate) fn failed(&self) -> f64 {
        let all = [&self.sessions, &self.workers, &self.connections, &self.servers];
        all.into_iter().flatten().map(|point| failures(&point.run)).sum()
    }
}

fn failures(run: &Run) -> f64 {
    run.seen.refused + run.stale + run.seen.broken
}

/// When it began.
struct Clock(Instant);

impl Clock {
    /// Seconds so far; an error when they are too many.
    fn look(&self) -> Outcome<u64> {
        let elapsed = self.0.elapsed();
        if elapsed > LONGEST {
            return Err(format!("growth took longer than {} s", LONGEST.as_secs()).into());
        }
        Ok(elapsed.as_secs())
    }
}

/// A fleet with its pool, and what its clients were answered.
struct Stand<'a> {
    contender: Contender,
    folder: PathBuf,
    options: &'a Options,
    clock: &'a Clock,
    /// The pool.
    cookies: Vec<String>,
    /// Visits answered to the pool's sessions.
    answered: u64,
    /// Visits that may have been counted besides: wrk cuts what is under way at its end.
    cut: u64,
    /// What the visits of all clients were before the pool's first.
    total: u64,
}

impl<'a> Stand<'a> {
    fn start(folder: &Path, options: &'a Options, clock: &'a Clock) -> Outcome<Self> {
        std::fs::create_dir_all(folder)?;
        let contender = Contender::regatta(folder, options)?;
        let (folder, cookies) = (folder.to_owned(), Vec::new());
        Ok(Self { contender, folder, options, clock, cookies, answered: 0, cut: 0, total: 0 })
    }

    /// Puts another pool in place of the one before.
    fn pool(&mut self, size: usize) -> Outcome<()> {
        self.total = self.all_views()?;
        self.cookies = exact::pool(&self.contender, size)?;
        (self.answered, self.cut) = (size as u64 * exact::POOL_VISITS, 0);
        self.check("the pool")?;
        Ok(std::fs::write(self.folder.join("cookies"), self.cookies.join("\n"))?)
    }

    fn all_views(&self) -> Outcome<u64> {
        Ok(self.contender.total()?.ok_or("the fleet's total is not known")?)
    }

    fn visits(&mut self, at: String, connections: usize) -> Outcome<Point> {
        let options = Options { connections, ..self.options.clone() };
        let (run, whole) = load::measure_within(&self.contender, &self.folder.join("cookies"), &options)?;
        self.note(&whole, connections);
        println!(
            "{:>4} s  {at:<24} {:>8.0} req/s  app {:>6.1} us  redis {:>5.2} us  {:>5.1} visits a call",
            self.clock.look()?,
            run.rate(),
            run.app_us / run.seen.requests,
            run.redis_us / run.seen.requests,
            run.seen.requests / run.calls,
        );
        if failures(&run) > 0.0 {
            let Run { seen, stale, .. } = &run;
            println!("4xx/5xx {}  stale {stale}  broken {}", seen.refused, seen.broken);
            println!("{}", self.contender.last_words());
        }
        self.check(&at)?;
        Ok(Point { at, run, session_bytes: None, hincrby_us: None, rest: None })
    }

    /// Memory of the data set of Redis; none for so few sessions that what the server has besides would be most of it.
    fn memory(&self, sessions: usize) -> Outcome<Option<u64>> {
        if sessions < WEIGHED {
            return Ok(None);
        }
        std::thread::sleep(BUFFERS);
        Ok(Some(self.contender.redis().connect()?.memory()?))
    }

    /// What the fleet does and has while no one asks it for anything.
    fn rest(&self) -> Outcome<Rest> {
        // Its last requests and what they had begun are over.
        std::thread::sleep(IDLE / 3);
        let mut link = self.contender.redis().connect()?;
        let (before, begun) = (link.calls()?.values().sum::<u64>(), Instant::now());
        std::thread::sleep(IDLE);
        let commands = link.calls()?.values().sum::<u64>() - before;
        let workers = self.contender.workers().into_iter().map(process::private_kib);
        let mut kib = workers.collect::<Outcome<Vec<_>>>()?;
        kib.sort_unstable();
        let commands = float(commands) / begun.elapsed().as_secs_f64();
        Ok(Rest { commands, worker_mib: kib.get(kib.len() / 2).map_or(0.0, |kib| mib(*kib)) })
    }

    fn note(&mut self, seen: &Seen, connections: usize) {
        // Whole numbers, as wrk printed them. A refusal after a deadline leaves open whether it was counted.
        self.answered += (seen.requests - seen.refused) as u64;
        self.cut += (connections as u64) + (seen.refused + seen.broken) as u64;
    }

    /// Whether the total grew by every answered visit, and by none that was not made.
    fn check(&self, at: &str) -> Outcome<()> {
        within(at, "the total grew by", self.all_views()? - self.total, self.answered, self.cut)
    }

    /// Whether the same holds for the views of the pool's sessions. Visits each of them once more, so it comes last.
    fn check_sessions(&mut self, at: &str) -> Outcome<()> {
        if self.cookies.len() > ADDED_UP {
            return Ok(());
        }
        let views = exact::sum(&self.contender, &self.cookies)?;
        self.answered += self.cookies.len() as u64;
        within(at, "the sessions' views are", views, self.answered, self.cut)?;
        self.check(at)
    }
}

fn within(at: &str, what: &str, counted: u64, answered: u64, cut: u64) -> Outcome<()> {
    if (answered..=answered + cut).contains(&counted) {
        return Ok(());
    }
    Err(format!("{at}: {what} {counted}, answered were {answered}, and at most {cut} more may be").into())
}

fn sessions(folder: &Path, options: &Options, clock: &Clock) -> Outcome<Vec<Point>> {
    println!("growth of sessions");
    let mut stand = Stand::start(folder, options, clock)?;
    let mut points = Vec::new();
    for size in SESSIONS.into_iter().filter(|size| *size <= options.most_sessions) {
        let before = stand.memory(size)?;
        stand.pool(size)?;
        let grown = |(before, after): (u64, u64)| float(after.saturating_sub(before)) / float(size as u64);
        let session_bytes = before.zip(stand.memory(size)?).map(grown);
        let point = stand.visits(size.to_string(), options.connections)?;
        stand.check_sessions(&point.at)?;
        points.push(Point { session_bytes, ..point });
    }
    Ok(points)
}

fn workers(folder: &Path, options: &Options, clock: &Clock) -> Outcome<Vec<Point>> {
    println!("growth of workers");
    let point = |workers: usize| {
        let options = Options { workers, ..options.clone() };
        let mut stand = Stand::start(&folder.join(workers.to_string()), &options, clock)?;
        let rest = Some(stand.rest()?);
        stand.pool(options.sessions)?;
        let connections = options.connections.max(EACH * workers);
        let point = stand.visits(format!("{workers} ({connections} connections)"), connections)?;
        stand.check_sessions(&point.at)?;
        Ok(Point { rest, ..point })
    };
    WORKERS.into_iter().map(point).collect()
}

fn connections(folder: &Path, options: &Options, clock: &Clock) -> Outcome<Vec<Point>> {
    println!("growth of connections");
    let mut stand = Stand::start(folder, options, clock)?;
    stand.pool(options.sessions)?;
    let points = CONNECTIONS.into_iter().map(|count| stand.visits(count.to_string(), count));
    let points = points.collect::<Outcome<_>>()?;
    stand.check_sessions("connections")?;
    Ok(points)
}

fn servers(folder: &Path, options: &Options, clock: &Clock) -> Outcome<Vec<Point>> {
    println!("other servers");
    let point = |(number, server): (usize, &PathBuf)| {
        let folder = folder.join(number.to_string());
        let options = Options { server: server.clone(), ..options.clone() };
        let hincrby_us = Some(reference::hincrby_us(server, &folder.join("reference"))?);
        let mut stand = Stand::start(&folder, &options, clock)?;
        stand.pool(options.sessions)?;
        let version = stand.contender.redis().connect()?.version()?;
        let point = stand.visits(version, options.connections)?;
        stand.check_sessions(&point.at)?;
        Ok(Point { hincrby_us, ..point })
    };
    options.servers.iter().enumerate().map(point).collect()
}
