//! A Redis of the benchmark's own for each contender, and what it says about itself.

use std::collections::BTreeMap;
use std::io;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::process::{Running, wait_until};

/// Longest wait for a reply.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server, stopped when dropped; the benchmark itself always asks it through its Unix socket.
#[derive(Debug)]
pub(crate) struct Server {
    running: Running,
    socket: PathBuf,
    tcp: Option<SocketAddr>,
}

impl Server {
    /// Starts one that keeps its data in this folder, without snapshots; append-only file and TCP are optional.
    pub(crate) fn start(
        program: &Path,
        folder: &Path,
        appendonly: bool,
        tcp: Option<SocketAddr>,
    ) -> Outcome<Self> {
        std::fs::create_dir_all(folder)?;
        let socket = folder.join("redis.sock");
        let mut command = Command::new(program);
        command.arg("--port").arg(tcp.map_or(0, |tcp| tcp.port()).to_string());
        command.args(["--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no"]);
        command.args(["--appendonly", if appendonly { "yes" } else { "no" }, "--appendfsync", "everysec"]);
        command.arg("--unixsocket").arg(&socket).arg("--dir").arg(folder);
        let running = Running::start(command, &folder.join("redis.log"))?;
        let server = Self { running, socket, tcp };
        wait_until("redis-server answers", || {
            server.connect().is_ok_and(|mut link| link.ask("PING").is_ok())
        })?;
        Ok(server)
    }

    /// Where a contender reaches it, as a URL for Regatta.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tcp.is_some() { "redis" } else { "unix" };
        format!("{scheme}://{}", self.place())
    }

    /// Where a contender reaches it: the path of a socket, or host and port.
    pub(crate) fn place(&self) -> String {
        self.tcp.map_or_else(|| self.socket.display().to_string(), |tcp| tcp.to_string())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// A connection to it.
    pub(crate) fn connect(&self) -> io::Result<Link> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Link { stream: BufReader::new(stream) })
    }
}

/// A connection that can ask and read lines: RESP2, bulk and simple replies only.
#[derive(Debug)]
pub(crate) struct Link {
    stream: BufReader<UnixStream>,
}

impl Link {
    /// Sends an inline command and returns its reply as text.
    pub(crate) fn ask(&mut self, command: &str) -> io::Result<String> {
        self.stream.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let line = self.line()?;
        match line.split_at_checked(1) {
            Some(("$", length)) => {
                let length: usize = length.parse().map_err(io::Error::other)?;
                let mut text = vec![0; length + 2];
                self.stream.read_exact(&mut text)?;
                text.truncate(length);
                String::from_utf8(text).map_err(io::Error::other)
            }
            Some(("+" | ":", text)) => Ok(text.to_owned()),
            _ => Err(io::Error::other(format!("Redis answered {line} to {command}"))),
        }
    }

    /// One line of what a `MONITOR` connection receives.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    /// Name and version, as `redis 7.0.15` or `valkey 8.1.1`.
    pub(crate) fn version(&mut self) -> io::Result<String> {
        let text = self.ask("INFO server")?;
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let valkey = value("valkey_version:").map(|version| format!("valkey {version}"));
        let other = || format!("redis {}", value("redis_version:").unwrap_or("of unknown version"));
        Ok(valkey.unwrap_or_else(other))
    }

    /// Memory of its data set, bytes (`used_memory`).
    pub(crate) fn memory(&mut self) -> io::Result<u64> {
        let text = self.ask("INFO memory")?;
        let value = text.lines().find_map(|line| line.strip_prefix("used_memory:"));
        value
            .and_then(|value| value.trim().parse().ok())
            .ok_or_else(|| io::Error::other("it tells no memory"))
    }

    /// Sends all of these commands at once, and waits for as many replies of one line.
    pub(crate) fn pipeline(&mut self, commands: &[u8], replies: usize) -> io::Result<()> {
        self.stream.get_mut().write_all(commands)?;
        for _ in 0..replies {
            let line = self.line()?;
            if !line.starts_with(':') {
                return Err(io::Error::other(format!("Redis answered {line} to a pipeline")));
            }
        }
        Ok(())
    }

    /// Calls so far by command, those made inside scripts included (`INFO commandstats`), without `INFO` itself.
    pub(crate) fn calls(&mut self) -> io::Result<BTreeMap<String, u64>> {
        let text = self.ask("INFO commandstats")?;
        let entry = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let calls = rest.split(',').next()?.parse().ok()?;
            Some((name.to_owned(), calls))
        };
        Ok(text.lines().filter_map(entry).filter(|(name, _)| name != "info").collect())
    }

    /// Times the server read from a socket so far, this question included (`total_reads_processed`).
    pub(crate) fn reads(&mut self) -> io::Result<u64> {
        let text = self.ask("INFO stats")?;
        let value = text.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
        value
            .and_then(|value| value.trim().parse().ok())
            .ok_or_else(|| io::Error::other("this Redis does not count its reads"))
    }
}
