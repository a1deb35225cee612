//! A running fleet, and what its workers have used.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::process::Running;
use crate::{Outcome, process};

/// Tells the program that is started that it is the fleet.
pub(crate) const SERVES: &str = "FAIRNESS_SERVES";

/// A fleet, running; told to stop when dropped.
pub(crate) struct Fleet {
    running: Running,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    workers: Vec<u32>,
}

impl Fleet {
    /// Starts so many workers of this program with these settings beyond what every fleet here has.
    pub(crate) fn start(
        mut command: Command,
        folder: &Path,
        workers: usize,
        settings: &[(&str, &str)],
    ) -> Outcome<Self> {
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
        let (address, admin) = (free()?, free()?);
        // A setting of the shell that runs the benchmark must not change what is measured.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(folder);
        command.env("REGATTA_LISTEN", address.to_string());
        command.env("REGATTA_ADMIN__LISTEN", admin.to_string());
        command.env("REGATTA_WORKERS__COUNT", workers.to_string());
        command.env("REGATTA_RUN_DIR", folder.join("run")).env("REGATTA_DATA_DIR", folder.join("data"));
        settings.iter().for_each(|(name, value)| _ = command.env(name, value));
        let running = Running::start(command, &folder.join("log"))?;
        let mut fleet = Self { running, address, admin, workers: Vec::new() };
        process::wait_until(&format!("a fleet with {settings:?} serves"), || {
            TcpStream::connect(address).is_ok() && fleet.children().len() >= workers
        })?;
        // Boot is over; the first heartbeats too.
        std::thread::sleep(Duration::from_secs(1));
        fleet.workers = fleet.children();
        Ok(fleet)
    }

    /// Processes it has forked that are the same program: all but the private Redis.
    fn children(&self) -> Vec<u32> {
        let pid = self.running.pid();
        let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
        process::descendants(pid).into_iter().filter(|child| program(*child) == program(pid)).collect()
    }

    /// CPU time that the threads of its workers have used so far.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        let mut all = Duration::ZERO;
        for worker in &self.workers {
            for task in fs::read_dir(format!("/proc/{worker}/task"))? {
                let times = fs::read_to_string(task?.path().join("schedstat"))?;
                let used = times.split(' ').next().unwrap_or_default().parse()?;
                all += Duration::from_nanos(used);
            }
        }
        Ok(all)
    }

    /// Connections that went from one worker to another so far.
    pub(crate) fn passed(&self) -> Outcome<f64> {
        let mut stream = TcpStream::connect(self.admin)?;
        let host = self.admin;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let lines = answer.lines().filter(|line| line.starts_with("regatta_connections_transferred_total"));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}
