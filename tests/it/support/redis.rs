//! A real Redis on a Unix socket: one of a test's own, which ends with the value, or the one that many tests share.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use regatta::__internals::config::settings;
use regatta::__internals::config::settings::{RedisUrl, ScriptingMode};
use regatta::__internals::redis::{RedisClient, RedisStatus, functions};
use regatta::__internals::sessions::query::{ProvisionalSessionQuery, SessionAccess, SessionQuery};
use tempfile::TempDir;

use crate::support::clock::Clock;
use crate::support::server;
use regatta::__internals::request_state::StateClient;

/// Its socket in its folder.
const SOCKET: &str = "redis.sock";

/// Longest wait for a server to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where its socket is.
#[derive(Debug)]
enum Folder {
    Own(TempDir),
    /// Of all tests of this run; the server in it belongs to none of them.
    Shared {
        path: PathBuf,
        _users: File,
    },
}

/// A `redis-server` process.
#[derive(Debug)]
pub(crate) struct TestRedis {
    folder: Folder,
    process: Option<Child>,
    extra: Vec<String>,
    env: Vec<(String, String)>,
}

impl TestRedis {
    /// A server that answers, without persistence.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The server that tests share which need no more of it than keys under a prefix of their own, as
    /// `TestFleetBuilder::on` gives each fleet one. It starts with the first of them and ends soon after the last. What
    /// would harm the others is refused here: no command is sent, nothing is counted, and it is neither stopped nor killed.
    pub(crate) fn shared() -> Self {
        let folder = shared_folder();
        let users = loop {
            fs::create_dir_all(&folder).expect("make the folder of the shared server");
            let lock = open(&folder.join("lock"));
            lock.lock().expect("lock the folder of the shared server");
            // Of a server that has just ended for want of tests: its folder is no longer there.
            if !fs::metadata(folder.join("lock")).is_ok_and(|now| is_same(&now, &lock)) {
                continue;
            }
            if !answers(&folder.join(SOCKET)) {
                serve_all(&folder);
            }
            let users = open(&folder.join("users"));
            users.lock_shared().expect("say that the shared server is used");
            break users;
        };
        let folder = Folder::Shared { path: folder, _users: users };
        Self { folder, process: None, extra: Vec::new(), env: Vec::new() }
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
        Self { folder: Folder::Own(folder), process: None, extra, env: Vec::new() }
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
        self.folder().join(SOCKET)
    }

    fn folder(&self) -> &Path {
        match &self.folder {
            Folder::Own(folder) => folder.path(),
            Folder::Shared { path, .. } => path,
        }
    }

    #[track_caller]
    fn must_be_own(&self) {
        assert!(
            matches!(self.folder, Folder::Own(_)),
            "other tests use this server: take `TestRedis::start()`"
        );
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
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.must_be_own();
        self.kill();
        let process = server::program()
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(self.folder())
            .args(&self.extra)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start redis-server");
        self.process = Some(process);
        let deadline = Instant::now() + DEADLINE;
        while !answers(&self.socket()) {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        self.must_be_own();
        self.end();
    }

    fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = fs::remove_file(self.socket());
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub(crate) fn cont(&self) {
        self.signal("-CONT");
    }

    #[track_caller]
    fn signal(&self, signal: &str) {
        self.must_be_own();
        let pid = self.process.as_ref().expect("the server runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("run kill").success());
    }

    /// What `redis-cli` prints for a command.
    #[track_caller]
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        self.must_be_own();
        self.try_cli(args).expect("run redis-cli")
    }

    /// Sends commands that are answered with a number, one after the other over one connection: for thousands of them.
    #[track_caller]
    pub(crate) fn send<const N: usize>(&self, commands: &[[String; N]]) {
        self.must_be_own();
        let mut stream = UnixStream::connect(self.socket()).expect("connect to the server");
        let mut answers = BufReader::new(stream.try_clone().expect("share the connection"));
        let mut answer = String::new();
        for command in commands {
            let mut text = format!("*{N}\r\n");
            command.iter().for_each(|word| text.push_str(&format!("${}\r\n{word}\r\n", word.len())));
            stream.write_all(text.as_bytes()).expect("send a command");
            answer.clear();
            answers.read_line(&mut answer).expect("read its answer");
            assert!(answer.starts_with(':'), "{command:?}: {answer}");
        }
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

/// Where the shared server of this run is: nextest runs each test as a process of its own.
fn shared_folder() -> PathBuf {
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    std::env::temp_dir().join(format!("regatta-tests-{run}"))
}

fn open(path: &Path) -> File {
    File::options().create(true).append(true).open(path).expect("open a lock")
}

fn is_same(now: &fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|opened| opened.ino() == now.ino())
}

/// What ends the shared server and removes its folder: no test has used it for ten seconds. Arguments: the server, the
/// folder.
const WATCH: &str = r#"
"$1" --port 0 --save '' --unixsocket "$2/redis.sock" --dir "$2" &
redis=$! idle=0
while kill -0 $redis; do
  sleep 1
  idle=$((idle + 1))
  flock -n "$2/users" true || idle=0
  if [ $idle -ge 10 ]; then
    exec 9>>"$2/lock"
    flock 9
    if flock -n "$2/users" true; then kill $redis; wait $redis; rm -r "$2"; exit; fi
    exec 9>&-
  fi
done
"#;

/// Starts the shared server, in a process group of its own so that it outlives the test, and waits until it answers.
fn serve_all(folder: &Path) {
    let redis = server::program();
    let mut shell = Command::new("sh");
    shell.args(["-c", WATCH, "sh"]).arg(redis.get_program()).arg(folder);
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    drop(shell.spawn().expect("start a shell"));
    let deadline = Instant::now() + DEADLINE;
    while !answers(&folder.join(SOCKET)) {
        assert!(Instant::now() < deadline, "the shared redis-server does not answer");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a server answers on its socket, be it that a password is missing.
fn answers(socket: &Path) -> bool {
    let ask = || -> std::io::Result<[u8; 5]> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer == *b"+PONG" || answer == *b"-NOAU")
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        if matches!(self.folder, Folder::Own(_)) {
            self.end();
        }
    }
}

/// A worker's connection to a server, ready.
pub(crate) async fn connect(server: &TestRedis, prefix: &str, mode: ScriptingMode) -> StateClient {
    let redis = StateClient::new(
        RedisClient::new(&server.settings(prefix, mode), &server.url(), "test").expect("a usable URL"),
    );
    redis.start();
    // On a busy machine the first attempt may be given up as silent.
    eventually("the connection is up", async || redis.status() == RedisStatus::Up).await;
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

/// How often a command was executed, within functions too.
pub(crate) fn calls(server: &TestRedis, command: &str) -> u64 {
    server.commands().get(command).copied().unwrap_or(0)
}

/// How often server-side code was called.
pub(crate) fn function_calls(server: &TestRedis) -> u64 {
    calls(server, "fcall")
}
