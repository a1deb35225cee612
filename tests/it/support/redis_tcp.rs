//! A real `redis-server` on TCP ports of its own, for what needs several of them or a network between; it ends with the value.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{process, server, wait};

/// A server on 127.0.0.1.
#[derive(Debug)]
pub(crate) struct TestRedisTcp {
    folder: TempDir,
    pub(crate) port: u16,
    args: Vec<String>,
    /// How `redis-cli` gets in: TLS, a password.
    key: Vec<String>,
    process: Option<Child>,
}

/// A port that no one has at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl TestRedisTcp {
    /// A server that answers, without persistence; `args` are made by the port and the folder.
    pub(crate) fn start(args: impl Fn(u16, &Path) -> Vec<String>) -> Self {
        Self::start_locked(args, &[])
    }

    /// The same, where `redis-cli` needs `key` to get in.
    pub(crate) fn start_locked(args: impl Fn(u16, &Path) -> Vec<String>, key: &[&str]) -> Self {
        let folder = TempDir::with_prefix("redis").unwrap();
        let port = free_port();
        let args = args(port, folder.path());
        let key = key.iter().map(ToString::to_string).collect();
        let mut server = Self { folder, port, args, key, process: None };
        server.restart();
        server
    }

    /// A server with nothing special.
    pub(crate) fn plain() -> Self {
        Self::start(|port, _| words(&["--port", &port.to_string()]))
    }

    /// Kills it if it runs, starts it and waits until it answers.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let process = server::program()
            .args(&self.args)
            .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
        wait::until("the server answers", wait::LONG, || {
            let reply = self.cli(&["PING"]);
            reply.contains("PONG") || reply.contains("NOAUTH")
        });
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Its process stands still: connections stay and no one answers.
    pub(crate) fn stop(&self) {
        process::stop(self.process.as_ref().unwrap().id());
    }

    /// It goes on.
    pub(crate) fn cont(&self) {
        process::signal(self.process.as_ref().unwrap().id(), Signal::SIGCONT);
    }

    /// What `redis-cli` prints.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string(), "--no-auth-warning"]).args(&self.key).args(args);
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// A number in an `INFO` section, e.g. `("stats", "total_connections_received")`.
    pub(crate) fn info(&self, section: &str, name: &str) -> String {
        let info = self.cli(&["INFO", section]);
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }
}

impl Drop for TestRedisTcp {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Owned words of a command line.
pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}
