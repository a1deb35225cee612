//! A Redis under callgrind, and what it counts itself.

use std::collections::BTreeMap;
use std::io;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Outcome;
use crate::process::{Running, wait_until};
use crate::valgrind::{Dumps, callgrind};

/// Longest wait for a reply: a server that is counted takes fifty times as long as it would.
const PATIENCE: Duration = Duration::from_secs(30);

/// Commands that only the gate sends.
const OURS: [&str; 4] = ["info", "debug", "ping", "config|resetstat"];

/// Commands by which a worker calls server-side code.
const CALLS: [&str; 4] = ["fcall", "fcall_ro", "evalsha", "evalsha_ro"];

/// Commands that a worker sends beside those, and no server-side code.
const BESIDE: [&str; 10] = [
    "hello",
    "auth",
    "select",
    "publish",
    "subscribe",
    "psubscribe",
    "unsubscribe",
    "client|setname",
    "client|setinfo",
    "multi",
];

/// A server, stopped when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    running: Running,
    socket: PathBuf,
    pub(crate) dumps: Dumps,
}

/// What Redis has counted so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Calls of server-side code.
    pub(crate) calls: f64,
    /// Commands that such code ran: `redis.call`.
    pub(crate) commands: f64,
    /// Times the server read from a socket: round trips.
    pub(crate) reads: f64,
    pub(crate) bytes_in: f64,
    pub(crate) bytes_out: f64,
}

impl Server {
    /// Starts one that does as little as it can by itself.
    pub(crate) fn start(folder: &Path) -> Outcome<Self> {
        let socket = folder.join("redis.sock");
        let dumps = Dumps::new(folder.join("redis.callgrind"));
        // `DEBUG SLEEP 0` is the mark: no other command sleeps.
        let mut command = callgrind(&dumps.pattern(), "*nanosleep*");
        command.arg("redis-server").args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ]);
        command.args(["--hz", "1", "--dynamic-hz", "no", "--activerehashing", "no"]);
        command.args(["--maxmemory-policy", "noeviction", "--enable-debug-command", "yes"]);
        command.arg("--unixsocket").arg(&socket).arg("--dir").arg(folder);
        let running = Running::start(command, &folder.join("redis.log"))?;
        let server = Self { running, socket, dumps };
        wait_until("redis-server answers", || server.ask("PING").is_ok())?;
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Has valgrind write down what it counted, and begin anew.
    pub(crate) fn mark(&self) -> io::Result<()> {
        self.ask("DEBUG SLEEP 0.000001").map(drop)
    }

    /// Sends an inline command over a connection of its own and returns its reply as text.
    fn ask(&self, command: &str) -> io::Result<String> {
        let mut stream = BufReader::new(UnixStream::connect(&self.socket)?);
        stream.get_ref().set_read_timeout(Some(PATIENCE))?;
        stream.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("$", length)) => {
                let mut text = vec![0; length.parse().map_err(io::Error::other)?];
                stream.read_exact(&mut text)?;
                String::from_utf8(text).map_err(io::Error::other)
            }
            Some(("+" | ":", text)) => Ok(text.to_owned()),
            _ => Err(io::Error::other(format!("Redis answered {line:?} to {command}"))),
        }
    }

    /// All counts so far.
    pub(crate) fn counts(&self) -> Outcome<Counts> {
        let stats = fields(&self.ask("INFO stats")?);
        let stat =
            |name: &str| stats.get(name).and_then(|value| value.parse::<f64>().ok()).unwrap_or_default();
        let mut counts = Counts {
            reads: stat("total_reads_processed"),
            bytes_in: stat("total_net_input_bytes"),
            bytes_out: stat("total_net_output_bytes"),
            ..Counts::default()
        };
        for (name, value) in fields(&self.ask("INFO commandstats")?) {
            let name = name.trim_start_matches("cmdstat_");
            let calls =
                value.strip_prefix("calls=").and_then(|value| value.split(',').next()?.parse::<f64>().ok());
            if CALLS.contains(&name) {
                counts.calls += calls.unwrap_or_default();
            } else if !OURS.contains(&name) && !BESIDE.contains(&name) {
                counts.commands += calls.unwrap_or_default();
            }
        }
        Ok(counts)
    }
}

fn fields(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.trim_end().split_once(':'))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}
