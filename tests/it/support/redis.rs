//! A real Redis of a test's own, on a Unix socket in a temporary folder; it ends with the value.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use regatta::__internals::config::settings;
use regatta::__internals::config::settings::{RedisUrl, ScriptingMode};
use regatta::__internals::redis::begin::{ProvisionalSessionQuery, SessionAccess, SessionQuery};
use regatta::__internals::redis::{RedisClient, RedisStatus, functions};
use tempfile::TempDir;

use crate::support::clock::Clock;
use crate::support::server;

/// Longest wait for a server to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// A `redis-server` process.
#[derive(Debug)]
pub(crate) struct TestRedis {
    folder: TempDir,
    process: Option<Child>,
    extra: Vec<String>,
    env: Vec<(String, String)>,
}

impl TestRedis {
    /// A server that answers, without persistence.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with more arguments, e.g. `["--appendonly", "yes"]`.
    pub(crate) fn start_with(extra: &[&str]) -> Self {
        let mut server = Self::absent(extra);
        server.restart();
        server
    }

    /// A server that is not running yet; its socket's path is known.
    pub(crate) fn absent(extra: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        let extra = extra.iter().map(ToString::to_string).collect();
        Self { folder, process: None, extra, env: Vec::new() }
    }

    /// A server with this wall clock.
    pub(crate) fn with_clock(clock: &Clock) -> Self {
        let mut server = Self::absent(&[]);
        server.env.extend(clock.env());
        server.restart();
        server
    }

    /// Path of its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// Its URL for the configuration.
    pub(crate) fn url(&self) -> RedisUrl {
        RedisUrl::from_socket_path(&self.socket())
    }

    /// Settings for it.
    pub(crate) fn settings(&self, prefix: &str, mode: ScriptingMode) -> settings::RedisConfig {
        settings::RedisConfig {
            url: Some(self.url()),
            prefix: prefix.to_owned(),
            scripting: mode,
            silence_timeout: Duration::from_millis(250),
            maxmemory: settings::MaxMemory::Auto,
            reconnect_wait: Duration::from_secs(2),
            credentials: settings::RedisCredentials::default(),
        }
    }

    /// Kills it if it runs, starts it and waits until it answers.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let process = server::program()
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.extra)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start redis-server");
        self.process = Some(process);
        let deadline = Instant::now() + DEADLINE;
        while !self
            .try_cli(&["PING"])
            .is_some_and(|answer| answer.contains("PONG") || answer.contains("NOAUTH"))
        {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub(crate) fn cont(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().expect("the server runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("run kill").success());
    }

    /// What `redis-cli` prints for a command.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        self.try_cli(args).expect("run redis-cli")
    }

    /// Loads these libraries of ours.
    #[track_caller]
    pub(crate) fn load(&self, names: &[&str]) {
        for name in names {
            assert_eq!(
                self.cli(&["FUNCTION", "LOAD", functions::library_by_name(name).unwrap().text]),
                *name
            );
        }
    }

    fn try_cli(&self, args: &[&str]) -> Option<String> {
        let output = Command::new("redis-cli").arg("-s").arg(self.socket()).args(args).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Calls by command since the last `CONFIG RESETSTAT`, those within scripts included.
    pub(crate) fn commands(&self) -> BTreeMap<String, u64> {
        let info = self.cli(&["INFO", "commandstats"]);
        let entry = |line: &str| {
            let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let calls = figures.strip_prefix("calls=")?.split(',').next()?.parse().ok()?;
            Some((name.to_owned(), calls))
        };
        info.lines().filter_map(entry).collect()
    }

    /// Processor time spent on commands since the last `CONFIG RESETSTAT`, what scripts call not counted twice, µs.
    pub(crate) fn busy_us(&self) -> u64 {
        let info = self.cli(&["INFO", "commandstats"]);
        let entry = |line: &str| {
            let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let us = figures.split("usec=").nth(1)?.split(',').next()?.parse::<u64>().ok()?;
            matches!(name, "fcall" | "evalsha" | "ping").then_some(us)
        };
        info.lines().filter_map(entry).sum()
    }

    /// Every key.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.cli(&["--scan"]).lines().map(str::to_owned).collect();
        keys.sort();
        keys
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A worker's connection to a server, ready.
pub(crate) async fn connect(server: &TestRedis, prefix: &str, mode: ScriptingMode) -> RedisClient {
    let redis =
        RedisClient::new(&server.settings(prefix, mode), &server.url(), "test").expect("a usable URL");
    redis.start();
    assert_eq!(redis.wait_for_first_attempt().await, RedisStatus::Up);
    redis
}

/// A ticket that makes a session with a view: what a first visit leaves behind.
pub(crate) fn new_session() -> ProvisionalSessionQuery {
    let issued_ms = u64::try_from(regatta::__internals::sys::clock::wall_clock().as_millis()).unwrap();
    ProvisionalSessionQuery { issued_ms, view_counted: true, ttl_ms: 600_000, creates: true, limit: None }
}

/// A query for a session that lives a day without a request; `create` makes it where there is none.
pub(crate) fn session_query(key: &str, create: bool) -> SessionQuery {
    const DAY_MS: u64 = 86_400_000;
    SessionQuery {
        key: key.into(),
        generation: None,
        // A session that is made has the view of its provisional cookie.
        access: if create { SessionAccess::Read } else { SessionAccess::CountView },
        provisional: create.then(new_session),
        idle_ms: DAY_MS,
        absolute_ms: 30 * DAY_MS,
    }
}

/// Waits until something is true; panics with `what` after the deadline.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn calls(server: &TestRedis, command: &str) -> u64 {
    server.commands().get(command).copied().unwrap_or(0)
}
