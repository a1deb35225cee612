//! The fleet that is counted: one worker, its Redis, and nothing that happens by itself as far as it can be switched off.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use tempfile::TempDir;

use crate::client::Client;
use crate::process::Running;
use crate::profile::Profile;
use crate::redis::{Counts, Server};
use crate::scenarios::Scenario;
use crate::valgrind::{Dumps, callgrind};
use crate::{Outcome, process};

/// Tells the program that is started that it is the fleet.
pub(crate) const SERVES: &str = "GATE_SERVES";

/// What is set. Whatever acts by itself is off or far away, because when it acts is not the same in two runs.
const SETTINGS: [(&str, &str); 21] = [
    ("WORKERS__COUNT", "1"),
    ("WORKERS__HANG_TIMEOUT", "0"),
    ("WORKERS__HANG_KILL", "0"),
    ("FLEET__HEARTBEAT_INTERVAL", "0"),
    ("SESSION__SECRETS", "a-secret-of-the-gate-the-same-in-every-run"),
    ("SESSION__CREATE_RATE", "off"),
    // On, and never reached.
    ("LIMITS__DEFAULT__RATE", "1000000/s"),
    ("LIMITS__DEFAULT__BURST", "1000000"),
    // How often a leased limit is drawn from depends on the time that the requests take, which is not what is counted.
    ("LIMITS__DEFAULT__PREFETCH", "0"),
    ("LIMITS__DEFAULT__ROUTES", "state"),
    // Reached at once, and for longer than a run takes.
    ("LIMITS__DENIED__RATE", "1/h"),
    ("LIMITS__DENIED__BURST", "1"),
    ("LIMITS__DENIED__ROUTES", "/denied"),
    ("REDIS__SILENCE_TIMEOUT", "20s"),
    ("REDIS__PATIENCE", "1m"),
    ("BROADCAST__KEEP_ALIVE_INTERVAL", "10m"),
    ("HTTP__KEEP_ALIVE_TIMEOUT", "20m"),
    ("TASKS__LEASE", "1m"),
    ("TASKS__CONCURRENCY", "1"),
    ("LOG__FORMAT", "json"),
    ("LOG__FILTER", "info"),
];

/// What was counted since the last mark.
#[derive(Debug, Default)]
pub(crate) struct Stretch {
    pub(crate) worker: Profile,
    pub(crate) server: Profile,
    pub(crate) counts: Counts,
    /// Bytes that the scenario's clients have received so far.
    pub(crate) received: f64,
}

/// A running fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) address: SocketAddr,
    worker: u32,
    marker: Client,
    dumps: Dumps,
    // Fields are dropped in this order: the program leaves while its Redis still answers.
    _running: Running,
    redis: Server,
    _folder: TempDir,
}

impl Fleet {
    pub(crate) fn start() -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("regatta-gate").tempdir()?;
        let redis = Server::start(folder.path())?;
        let address = free_address()?;
        let dumps = Dumps::new(folder.path().join("worker.callgrind"));
        let mut command = callgrind(&dumps.pattern(), "*gate_mark*");
        command.arg(std::env::current_exe()?);
        // A setting of the caller's must not change what is counted.
        command.env_clear().current_dir(folder.path()).env(SERVES, "1");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (name, value) in SETTINGS {
            command.env(format!("REGATTA_{name}"), value);
        }
        command.env("REGATTA_LISTEN", address.to_string());
        command.env("REGATTA_ADMIN__LISTEN", free_address()?.to_string());
        command.env("REGATTA_REDIS__URL", redis.url());
        command.env("REGATTA_RUN_DIR", folder.path().join("run"));
        command.env("REGATTA_DATA_DIR", folder.path().join("data"));
        let log = folder.path().join("log");
        let running = Running::start(command, &log)?;
        let mut worker = None;
        process::wait_until("it serves", || {
            worker = ready(&log);
            worker.is_some()
        })
        .map_err(|error| format!("{error}; it wrote:\n{}", fs::read_to_string(&log).unwrap_or_default()))?;
        let worker = worker.ok_or("no worker")?;
        let mut marker = Client::connect(address)?;
        marker.ask("GET", "/hello", 200)?;
        Ok(Self { address, worker, marker, dumps, _running: running, redis, _folder: folder })
    }

    /// The process that answers.
    pub(crate) fn worker(&self) -> u32 {
        self.worker
    }

    /// Ends a stretch: what was counted in it. Counts of Redis are those since its start.
    pub(crate) fn mark(&mut self, scenario: &Scenario) -> Outcome<Stretch> {
        self.marker.ask("GET", "/mark", 200)?;
        self.redis.mark()?;
        Ok(Stretch {
            worker: self.dumps.take(self.worker)?,
            server: self.redis.dumps.take(self.redis.pid())?,
            counts: self.redis.counts()?,
            received: scenario.received() as f64,
        })
    }
}

/// The worker's process, once it serves.
fn ready(log: &Path) -> Option<u32> {
    let log = fs::read_to_string(log).ok()?;
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let line = lines.find(|line| line["message"] == "worker ready")?;
    u32::try_from(line["pid"].as_u64()?).ok()
}

/// An address on which no process listens: taken from the kernel and given back.
fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
