//! A stack under measurement: its processes, its Redis, where it answers and what it can do.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::load::Route;
use crate::options::Options;
use crate::peers::Peer;
use crate::process::Running;
use crate::redis::Server;
use crate::{Outcome, client, peers, process};

/// The program under test, built by cargo with the release profile.
const REGATTA: &str = env!("CARGO_BIN_EXE_regatta");

/// Limits on, but never reached: a denied request would be cheaper than an answered one.
const LIMIT: (&str, &str) = ("1000000/s", "1000000");

/// Where the shipped program keeps the views of all visitors.
const TOTAL: &str = "regatta:c:@views";

/// The metric of answers that were no successes although their status was 200, by slot.
const STALE: &str = "regatta_requests_stale_total{";

/// Longest time that each worker may add to the boot of a fleet.
const A_WORKER: Duration = Duration::from_secs(1);

/// Lines of a log that are shown with a failure.
const LAST_WORDS: usize = 10;

/// What a contender's processes are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A supervisor that serves nothing, and workers.
    Supervised,
    /// A first process that hands out connections, and workers.
    Cluster,
    /// One process with threads.
    Threads,
}

/// One stack, running.
#[derive(Debug)]
pub(crate) struct Contender {
    /// Its name in the tables.
    pub(crate) name: &'static str,
    /// What its processes are to each other.
    pub(crate) shape: Shape,
    /// Where it answers.
    pub(crate) address: SocketAddr,
    /// Where it tells its metrics, if it does.
    admin: Option<SocketAddr>,
    /// What it wrote to its standard output and error.
    log: PathBuf,
    // Fields are dropped in this order: the program leaves while its Redis still answers.
    running: Running,
    redis: Server,
}

impl Contender {
    /// Starts the shipped program, everything on.
    pub(crate) fn regatta(folder: &Path, options: &Options) -> Outcome<Self> {
        Self::build("regatta", Path::new(REGATTA), folder, options)
    }

    /// Starts one build of the program.
    pub(crate) fn build(
        name: &'static str,
        program: &Path,
        folder: &Path,
        options: &Options,
    ) -> Outcome<Self> {
        let folder = folder.join(name);
        let redis = start_redis(&folder, options)?;
        let (address, admin) = (free_address()?, free_address()?);
        let mut command = Command::new(program);
        // A setting of the shell that runs the benchmark must not change what is measured.
        command.env_clear().current_dir(&folder);
        command.env("REGATTA_LISTEN", address.to_string());
        command.env("REGATTA_ADMIN__LISTEN", admin.to_string());
        command.env("REGATTA_WORKERS__COUNT", options.workers.to_string());
        command.env("REGATTA_REDIS__URL", redis.url());
        command.env("REGATTA_LIMITS__DEFAULT__RATE", LIMIT.0);
        command.env("REGATTA_LIMITS__DEFAULT__BURST", LIMIT.1);
        command.env("REGATTA_LIMITS__DEFAULT__ROUTES", "state");
        // Its clients are many and have one address.
        command.env("REGATTA_LIMITS__COUNTERS__ENABLED", "false");
        command.env("REGATTA_RUN_DIR", folder.join("run"));
        command.env("REGATTA_DATA_DIR", folder.join("data"));
        let log = folder.join("log");
        let running = Running::start(command, &log)?;
        let contender =
            Self { name, shape: Shape::Supervised, address, admin: Some(admin), log, running, redis };
        contender.wait_for_answers(options)?;
        Ok(contender)
    }

    /// Starts another stack.
    pub(crate) fn peer(peer: Peer, folder: &Path, options: &Options) -> Outcome<Self> {
        let folder = folder.join(peer.name);
        let redis = start_redis(&folder, options)?;
        let address = free_address()?;
        let mut command = peer.command;
        command.arg(address.to_string()).arg(redis.place()).arg(options.workers.to_string());
        command.args(peer.flavour);
        command.env("NODE_ENV", "production");
        let log = folder.join("log");
        let running = Running::start(command, &log)?;
        let contender =
            Self { name: peer.name, shape: peer.shape, address, admin: None, log, running, redis };
        contender.wait_for_answers(options)?;
        Ok(contender)
    }

    /// Waits until all its processes are there and both routes answer.
    fn wait_for_answers(&self, options: &Options) -> Outcome<()> {
        let complete = || self.shape == Shape::Threads || self.workers().len() == options.workers;
        let answers = |path| client::ask_once(self.address, path).is_ok_and(|answer| answer.status == 200);
        let holds = || complete() && answers("/hello") && answers("/");
        // Workers boot one after the other where there are fewer cores than workers.
        let patience = process::PATIENCE + A_WORKER * u32::try_from(options.workers)?;
        let waited = process::wait_for("it answers", patience, holds);
        waited.map_err(|error| format!("{}: {error}; it wrote:\n{}", self.name, self.last_words()).into())
    }

    /// Answers so far that showed a session as last known; 0 for a stack that has no such state.
    pub(crate) fn stale(&self) -> Outcome<u64> {
        let Some(admin) = self.admin else { return Ok(0) };
        let metrics = client::ask_once(admin, "/metrics")?;
        let slots = metrics.body.lines().filter(|line| line.starts_with(STALE));
        let number = |line: &str| line.rsplit_once(' ').and_then(|(_, number)| number.parse::<u64>().ok());
        let numbers: Vec<_> = slots.filter_map(number).collect();
        if numbers.is_empty() {
            return Err(format!("{} does not tell {STALE}", self.name).into());
        }
        Ok(numbers.iter().sum())
    }

    /// The end of what it wrote, to explain a failure.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }

    /// Whether it is asked for this route.
    pub(crate) fn has(&self, route: Route) -> bool {
        match route {
            Route::Hello => true,
            // Of a second form of a stack only what differs is asked.
            Route::Visit => self.name != peers::AXUM_CURRENT,
            // Only the shipped program has a page for browsers.
            Route::Page => self.shape == Shape::Supervised,
            Route::Bare => self.name == peers::ACTIX,
        }
    }

    /// What its Redis says the visits of all clients are together; none for a stack of which it is not known.
    pub(crate) fn total(&self) -> Outcome<Option<u64>> {
        if self.shape != Shape::Supervised {
            return Ok(None);
        }
        Ok(Some(self.redis.connect()?.ask(&format!("GET {TOTAL}"))?.parse()?))
    }

    /// Its Redis.
    pub(crate) fn redis(&self) -> &Server {
        &self.redis
    }

    /// The process that only supervises, if there is one.
    pub(crate) fn supervisor(&self) -> Option<u32> {
        (self.shape == Shape::Supervised).then(|| self.running.pid())
    }

    /// The processes that may be killed and come back; none for a single process.
    pub(crate) fn workers(&self) -> Vec<u32> {
        process::descendants(self.running.pid())
    }

    /// Every process whose CPU time goes into answers.
    pub(crate) fn serving(&self) -> Vec<u32> {
        let mut pids = self.workers();
        if self.shape != Shape::Supervised {
            pids.push(self.running.pid());
        }
        pids
    }
}

fn start_redis(folder: &Path, options: &Options) -> Outcome<Server> {
    let tcp = if options.tcp { Some(free_address()?) } else { None };
    Server::start(&options.server, &folder.join("redis"), options.appendonly, tcp)
}

/// An address no one listens on: taken from the kernel and given back.
fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
