//! The fleet under test on a Redis of its own, at the defaults but for limits that are never reached.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::options::Options;
use crate::process::Running;
use crate::redis::Server;
use crate::{Outcome, process};

/// A running fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: PathBuf,
    // Fields are dropped in this order: the program leaves while its Redis still answers.
    running: Running,
    redis: Option<Server>,
    folder: TempDir,
}

impl Fleet {
    /// Starts a program; its Redis keeps an append-only file.
    pub(crate) fn start(program: &Path, options: &Options) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("regatta-overload").tempdir()?;
        let redis = Server::start(Path::new("redis-server"), &folder.path().join("redis"), true, None)?;
        let (address, admin) = (free_address()?, free_address()?);
        let log = folder.path().join("log");
        let mut command = Command::new(program);
        // A setting of the caller's must not change what is measured.
        command.env_clear().current_dir(folder.path());
        command.env("REGATTA_LISTEN", address.to_string());
        command.env("REGATTA_ADMIN__LISTEN", admin.to_string());
        command.env("REGATTA_WORKERS__COUNT", options.workers.to_string());
        command.env("REGATTA_REDIS__URL", redis.url());
        command.env("REGATTA_LIMITS__DEFAULT__RATE", "1000000/s");
        command.env("REGATTA_LIMITS__DEFAULT__BURST", "1000000");
        command.env("REGATTA_LIMITS__DEFAULT__ROUTES", "state");
        command.env("REGATTA_RUN_DIR", folder.path().join("run"));
        command.env("REGATTA_DATA_DIR", folder.path().join("data"));
        command.env("REGATTA_LOG__FORMAT", "json");
        let running = Running::start(command, &log)?;
        let fleet = Self { address, admin, log, running, redis: Some(redis), folder };
        let waited = process::wait_until("it serves", || fleet.said("serving on").is_some());
        waited.map_err(|error| format!("{error}; it wrote:\n{}", fleet.log()))?;
        Ok(fleet)
    }

    /// Its workers now.
    pub(crate) fn workers(&self) -> Vec<u32> {
        process::descendants(self.running.pid())
    }

    /// Private memory of all workers, mebibytes.
    pub(crate) fn memory(&self) -> Outcome<f64> {
        let kib: u64 = self.workers().into_iter().map(process::private_kib).sum::<Outcome<_>>()?;
        Ok(kib as f64 / 1024.0)
    }

    /// Everything it wrote.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The first line of its log whose message contains this.
    pub(crate) fn said(&self, text: &str) -> Option<Value> {
        self.lines(text).into_iter().next()
    }

    /// All such lines.
    pub(crate) fn lines(&self, text: &str) -> Vec<Value> {
        let log = self.log();
        let parsed = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.filter(|line| line["message"].as_str().is_some_and(|message| message.contains(text))).collect()
    }

    /// Its Redis is killed.
    pub(crate) fn kill_redis(&mut self) -> Outcome<()> {
        if let Some(redis) = &self.redis {
            process::kill(redis.pid(), nix::sys::signal::Signal::SIGKILL)?;
        }
        self.redis = None;
        let socket = self.folder.path().join("redis/redis.sock");
        match fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// And started again on what it had written down.
    pub(crate) fn start_redis(&mut self) -> Outcome<()> {
        self.redis =
            Some(Server::start(Path::new("redis-server"), &self.folder.path().join("redis"), true, None)?);
        Ok(())
    }
}

/// An address on which no process listens: taken from the kernel and given back.
fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
