//! How the cost of a visit grows: with sessions, workers and connections, and what it is on other servers.
//!
//! Cost is CPU and Redis commands a visit. Answers a second say little here, because clients, workers and Redis share
//! the machine's cores, of which there may be fewer than workers.

use std::path::Path;
use std::path::PathBuf;

use crate::Outcome;
use crate::contender::Contender;
use crate::exact;
use crate::load;
use crate::load::Route;
use crate::load::Run;
use crate::load::float;
use crate::options::Options;
use crate::reference;

/// Sizes of the pool.
const SESSIONS: [usize; 4] = [1, 100, 10_000, 1_000_000];

/// Numbers of workers.
const WORKERS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Connections of each worker while their number grows; there are never fewer in all than elsewhere.
const EACH: usize = 8;

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
        Ok(Self {
            sessions: sessions(&folder.join("sessions"), options)?,
            workers: workers(&folder.join("workers"), options)?,
            connections: connections(&folder.join("connections"), options)?,
            servers: servers(&folder.join("servers"), options)?,
        })
    }

    /// Requests that failed, or were answered with a stale session, over all points.
    pub(crate) fn failed(&self) -> f64 {
        let all = [&self.sessions, &self.workers, &self.connections, &self.servers];
        all.into_iter()
            .flatten()
            .map(|point| point.run.seen.refused + point.run.stale + point.run.seen.broken)
            .sum()
    }
}

/// A fleet with its pool.
struct Stand<'a> {
    contender: Contender,
    folder: PathBuf,
    options: &'a Options,
}

impl<'a> Stand<'a> {
    fn start(folder: &Path, options: &'a Options) -> Outcome<Self> {
        std::fs::create_dir_all(folder)?;
        let contender = Contender::regatta(folder, options)?;
        Ok(Self { contender, folder: folder.to_owned(), options })
    }

    /// Puts another pool in place of the one before.
    fn pool(&self, size: usize) -> Outcome<()> {
        let cookies = exact::pool(&self.contender, size)?;
        Ok(std::fs::write(self.folder.join("cookies"), cookies.join("\n"))?)
    }

    fn visits(&self, at: String, connections: usize) -> Outcome<Point> {
        let options = Options { connections, ..self.options.clone() };
        let cookies = self.folder.join("cookies");
        if options.warm_up > 0 {
            load::drive(&self.contender, Route::Visit, &cookies, options.warm_up, &options)?;
        }
        let run = load::measure(&self.contender, Route::Visit, &cookies, &options)?;
        println!(
            "{at:<24} {:>8.0} req/s  app {:>6.1} us  redis {:>5.2} us  {:>5.1} visits a call",
            run.rate(),
            run.app_us / run.seen.requests,
            run.redis_us / run.seen.requests,
            run.seen.requests / run.calls,
        );
        Ok(Point { at, run, session_bytes: None, hincrby_us: None })
    }
}

fn sessions(folder: &Path, options: &Options) -> Outcome<Vec<Point>> {
    println!("growth of sessions");
    let stand = Stand::start(folder, options)?;
    let mut points = Vec::new();
    for size in SESSIONS.into_iter().filter(|size| *size <= options.most_sessions) {
        let mut link = stand.contender.redis().connect()?;
        let before = link.memory()?;
        stand.pool(size)?;
        let bytes = float(link.memory()?.saturating_sub(before)) / float(size as u64);
        let point = stand.visits(format!("{size} sessions"), options.connections)?;
        // Of a hundred, what the server has besides would be most of it.
        points.push(Point { session_bytes: (size >= 10_000).then_some(bytes), ..point });
    }
    Ok(points)
}

fn workers(folder: &Path, options: &Options) -> Outcome<Vec<Point>> {
    println!("growth of workers");
    let point = |workers: usize| {
        let options = Options { workers, ..options.clone() };
        let stand = Stand::start(&folder.join(workers.to_string()), &options)?;
        stand.pool(options.sessions)?;
        let connections = options.connections.max(EACH * workers);
        stand.visits(format!("{workers} workers, {connections} connections"), connections)
    };
    WORKERS.into_iter().map(point).collect()
}

fn connections(folder: &Path, options: &Options) -> Outcome<Vec<Point>> {
    println!("growth of connections");
    let stand = Stand::start(folder, options)?;
    stand.pool(options.sessions)?;
    CONNECTIONS.into_iter().map(|count| stand.visits(format!("{count} connections"), count)).collect()
}

fn servers(folder: &Path, options: &Options) -> Outcome<Vec<Point>> {
    println!("other servers");
    let point = |(number, server): (usize, &PathBuf)| {
        let folder = folder.join(number.to_string());
        let options = Options { server: server.clone(), ..options.clone() };
        let hincrby_us = Some(reference::hincrby_us(server, &folder.join("reference"))?);
        let stand = Stand::start(&folder, &options)?;
        stand.pool(options.sessions)?;
        let version = stand.contender.redis().connect()?.version()?;
        Ok(Point { hincrby_us, ..stand.visits(version, options.connections)? })
    };
    options.servers.iter().enumerate().map(point).collect()
}
