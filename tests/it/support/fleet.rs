//! The real program on ports of the kernel's choice, in a folder of its own, with its log kept.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::fault_proxy::FaultProxy;
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

/// A fleet that is told to stop and holds no request is gone long before this.
const STOPPED: Duration = Duration::from_secs(15);

/// Limits of the shipped application: tests hammer its routes, all of them from one address.
const SHIPPED_LIMITS: &[&str] = &["LOGIN", "LOGOUT", "MESSAGES", "COUNTERS", "TASKS", "ALLTASKS"];

fn switch(policy: &str) -> String {
    format!("REGATTA_LIMITS__{policy}__ENABLED")
}

/// How a fleet is to be started.
#[derive(Debug, Clone)]
pub(crate) struct TestFleetBuilder {
    program: PathBuf,
    args: Vec<String>,
    /// A program that becomes this one, and its words.
    wrapper: Vec<String>,
    settings: BTreeMap<String, String>,
    folder: Arc<TempDir>,
    /// Where it is started, if not there.
    begins: Option<PathBuf>,
    /// Sockets handed over as a service manager does, with their names; at most two.
    lent: Vec<(String, Arc<OwnedFd>)>,
    /// What its standard error is, if it is not kept as its log.
    errors: Option<Arc<OwnedFd>>,
    /// What its standard input is, if it has any.
    input: Option<Arc<OwnedFd>>,
}

impl TestFleetBuilder {
    /// Two workers and a private Redis, everything else out of the way.
    pub(crate) fn new() -> Self {
        let folder = Arc::new(TempDir::with_prefix("fleet").unwrap());
        let below = |name: &str| folder.path().join(name).display().to_string();
        let settings = [
            ("REGATTA_LISTEN", "127.0.0.1:0".to_owned()),
            ("REGATTA_ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
            ("REGATTA_RUN_DIR", below("run")),
            ("REGATTA_DATA_DIR", below("data")),
            ("REGATTA_LOG__FORMAT", "json".to_owned()),
            ("REGATTA_LIMITS__DEFAULT__RATE", "1000000/s".to_owned()),
            ("REGATTA_LIMITS__DEFAULT__BURST", "1000000".to_owned()),
            ("REGATTA_LIMITS__DEFAULT__ROUTES", "state".to_owned()),
            ("REGATTA_DRAIN__TIMEOUT", "10s".to_owned()),
            // Tests count what Redis is asked; those about heartbeats and tasks have them.
            ("REGATTA_FLEET__HEARTBEAT_INTERVAL", "0".to_owned()),
            ("REGATTA_TASKS__CONCURRENCY", "0".to_owned()),
            ("WEB_CONCURRENCY", "2".to_owned()),
            ("PATH", std::env::var("PATH").unwrap_or_default()),
        ];
        let mut settings: BTreeMap<String, String> =
            settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        settings.extend(SHIPPED_LIMITS.iter().map(|name| (switch(name), "false".to_owned())));
        Self {
            program: env!("CARGO_BIN_EXE_regatta").into(),
            args: Vec::new(),
            wrapper: Vec::new(),
            settings,
            folder,
            begins: None,
            lent: Vec::new(),
            errors: None,
            input: None,
        }
    }

    /// The same on a Redis that the test holds, under a prefix of its own.
    pub(crate) fn on(redis: &TestRedis) -> Self {
        let plan = Self::new();
        let prefix = plan.folder.path().file_name().unwrap().to_str().unwrap().replace('.', "-");
        plan.set("REGATTA_REDIS__URL", redis.url().expose()).set("REGATTA_REDIS__PREFIX", &prefix)
    }

    /// On a Redis behind a proxy, under a prefix of its own.
    pub(crate) fn through(proxy: &FaultProxy) -> Self {
        let plan = Self::new();
        let prefix = plan.folder.path().file_name().unwrap().to_str().unwrap().replace('.', "-");
        plan.set("REGATTA_REDIS__URL", &proxy.url()).set("REGATTA_REDIS__PREFIX", &prefix)
    }

    pub(crate) fn workers(self, count: usize) -> Self {
        self.set("WEB_CONCURRENCY", &count.to_string())
    }

    /// One variable of the environment.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        // A test that says what a shipped limit is wants it.
        let policy = name.strip_prefix("REGATTA_LIMITS__").and_then(|rest| rest.split_once("__"));
        if let Some((policy, _)) = policy.filter(|(policy, _)| SHIPPED_LIMITS.contains(policy)) {
            self.settings.remove(&switch(policy));
        }
        self.settings.insert(name.into(), value.into());
        self
    }

    /// With the limits of the shipped application as they are shipped.
    pub(crate) fn shipped_limits(mut self) -> Self {
        SHIPPED_LIMITS.iter().for_each(|name| _ = self.settings.remove(&switch(name)));
        self
    }

    /// A variable that was set.
    #[track_caller]
    pub(crate) fn setting(&self, name: &str) -> &str {
        self.settings.get(name).unwrap_or_else(|| panic!("{name} is not set"))
    }

    /// Without a variable.
    pub(crate) fn unset(mut self, name: &str) -> Self {
        self.settings.remove(name);
        self
    }

    /// Words of the command line.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    /// Another program: an example, which cargo builds beside the tests.
    pub(crate) fn example(mut self, name: &str) -> Self {
        let path = Path::new(env!("CARGO_BIN_EXE_regatta")).with_file_name("examples").join(name);
        assert!(
            path.exists(),
            "{} is missing: `cargo test` builds it, `cargo build --examples` too",
            path.display()
        );
        self.program = path;
        // It has none of them.
        self.shipped_limits()
    }

    /// Hands a socket over, as a service manager does.
    pub(crate) fn lend(mut self, name: &str, socket: OwnedFd) -> Self {
        self.lent.push((name.to_owned(), Arc::new(socket)));
        self
    }

    /// Has its standard error go there; its log is not kept then.
    pub(crate) fn errors_to(mut self, end: OwnedFd) -> Self {
        self.errors = Some(Arc::new(end));
        self
    }

    /// Started by a program that becomes it, as `nohup` and `env` do.
    pub(crate) fn wrapped(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Has its standard input come from there.
    pub(crate) fn input_from(mut self, end: OwnedFd) -> Self {
        self.input = Some(Arc::new(end));
        self
    }

    /// The command, started by a shell that puts the lent sockets where they belong: they come as its standard input
    /// and output, because nothing else can be handed to a child without unsafe code.
    fn activated(&self) -> Command {
        let mut command = Command::new("sh");
        let moves = ["exec 3<&0 0</dev/null", "exec 3<&0 4<&1 0</dev/null 1>&2"][self.lent.len() - 1];
        command.args(["-c", &format!("{moves}; export LISTEN_PID=$$; exec \"$@\""), "sh"]);
        command.arg(&self.program).args(&self.args).env_clear().envs(&self.settings);
        let names: Vec<_> = self.lent.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let socket = |nth: usize| Stdio::from(self.lent[nth].1.try_clone().unwrap());
        command.stdin(socket(0));
        command.stdout(if names.len() > 1 { socket(1) } else { Stdio::piped() }).stderr(Stdio::piped());
        command
    }

    /// The command, on its own.
    fn direct(&self) -> Command {
        let mut words = self.wrapper.iter().map(Path::new).chain([self.program.as_path()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(&self.args).env_clear().envs(&self.settings);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Any other program.
    pub(crate) fn program(mut self, path: &Path) -> Self {
        self.program = path.into();
        self
    }

    /// Starts it in another folder.
    pub(crate) fn begins_in(mut self, folder: &Path) -> Self {
        self.begins = Some(folder.into());
        self
    }

    /// Its file.
    pub(crate) fn file(&self) -> &Path {
        &self.program
    }

    /// First part of its keys.
    pub(crate) fn prefix(&self) -> &str {
        self.settings.get("REGATTA_REDIS__PREFIX").map_or("regatta", String::as_str)
    }

    /// Where it runs and keeps its files; gone with the last plan or fleet that knows it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it, and goes on as soon as the process exists.
    pub(crate) fn spawn(&self) -> TestFleet {
        let mut command = if self.lent.is_empty() { self.direct() } else { self.activated() };
        if let Some(end) = &self.errors {
            command.stderr(Stdio::from(end.try_clone().unwrap()));
        }
        if let Some(end) = &self.input {
            command.stdin(Stdio::from(end.try_clone().unwrap()));
        }
        let mut child =
            command.current_dir(self.begins.as_deref().unwrap_or(self.folder.path())).spawn().unwrap();
        // The command keeps copies of what it gave away.
        drop(command);
        let log = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.stdout.take().map(|stream| follow(stream, Arc::clone(&log)));
        let stderr = child.stderr.take().map(|stream| follow(stream, Arc::clone(&log)));
        let readers = stdout.into_iter().chain(stderr).collect();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let also = Vec::new();
        TestFleet {
            plan: self.clone(),
            child,
            log,
            readers,
            listen: nowhere,
            also,
            admin: nowhere,
            exit_code: None,
        }
    }

    /// Starts it and waits until its addresses are bound, whatever the workers do.
    #[track_caller]
    pub(crate) fn bind(&self) -> TestFleet {
        self.spawn().after("listening")
    }

    /// Starts it and waits until all workers are READY.
    #[track_caller]
    pub(crate) fn start(&self) -> TestFleet {
        self.spawn().after("serving on")
    }

    /// Runs it to its end: exit code and everything it printed.
    #[track_caller]
    pub(crate) fn run(&self) -> (i32, String) {
        let mut fleet = self.spawn();
        let code = fleet.exit_code(STOPPED);
        (code, fleet.log())
    }
}

fn follow(stream: impl Read + Send + 'static, log: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            log.lock().unwrap().push(line);
        }
    })
}

/// A fleet that runs; it is stopped, and has to stop cleanly, when it goes out of scope.
#[derive(Debug)]
pub(crate) struct TestFleet {
    plan: TestFleetBuilder,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    /// Where visitors are served.
    pub(crate) listen: SocketAddr,
    /// The other addresses where visitors are served.
    pub(crate) also: Vec<SocketAddr>,
    /// Where operators are.
    pub(crate) admin: SocketAddr,
    exit_code: Option<i32>,
}

impl TestFleet {
    /// Waits until its log says this with the addresses; panics when it ends before.
    #[track_caller]
    pub(crate) fn after(mut self, message: &str) -> Self {
        let line = wait::until_some(&format!("the log says {message:?}"), wait::LONG, || {
            let exited = self.child.try_wait().unwrap();
            assert!(exited.is_none(), "it ended with {exited:?} before it was {message}");
            self.log_lines(message).into_iter().next()
        });
        self.also = addresses(&field(&line, "listen"));
        // One that is found at Unix sockets alone has none.
        if !self.also.is_empty() {
            self.listen = self.also.remove(0);
        }
        self.admin = addresses(&field(&line, "admin")).first().copied().unwrap_or(self.admin);
        self
    }

    /// The supervisor.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it was started with.
    pub(crate) fn plan(&self) -> &TestFleetBuilder {
        &self.plan
    }

    /// The workers alive now.
    pub(crate) fn workers(&self) -> Vec<u32> {
        let own = process::program(self.pid());
        let worker = |pid: &u32| process::alive(*pid) && process::program(*pid) == own;
        process::children(self.pid()).into_iter().filter(worker).collect()
    }

    /// Children that are no workers: the private Redis.
    pub(crate) fn others(&self) -> Vec<u32> {
        let own = process::program(self.pid());
        let other = |pid: &u32| process::alive(*pid) && process::program(*pid) != own;
        process::children(self.pid()).into_iter().filter(other).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    /// Everything printed so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Log lines whose message begins like this.
    pub(crate) fn log_lines(&self, message: &str) -> Vec<Value> {
        // Most lines are told apart without being parsed; a message that JSON writes differently is looked for in all.
        let is_plain = message.chars().all(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\'));
        let lines: Vec<_> = {
            let log = self.log.lock().unwrap();
            log.iter().filter(|line| !is_plain || line.contains(message)).cloned().collect()
        };
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed
            .filter(|line| field(line, "message").as_str().is_some_and(|text| text.starts_with(message)))
            .collect()
    }

    /// READY workers in the order in which they got there, as (slot, pid).
    pub(crate) fn ready(&self) -> Vec<(u64, u32)> {
        let slot_and_pid = |line: &Value| {
            let pid = u32::try_from(field(line, "pid").as_u64()?).ok()?;
            Some((field(line, "slot").as_u64()?, pid))
        };
        self.log_lines("worker ready").iter().filter_map(slot_and_pid).collect()
    }

    /// The slot in which a worker became READY.
    #[track_caller]
    pub(crate) fn slot_of(&self, pid: u32) -> u64 {
        wait::until_some("the log says which slot the worker has", wait::LONG, || {
            self.ready().into_iter().find(|(_, ready)| *ready == pid).map(|(slot, _)| slot)
        })
    }

    /// Kills a worker and waits for the READY of the next one in its slot.
    #[track_caller]
    pub(crate) fn crash(&self, pid: u32) -> u32 {
        let slot = self.slot_of(pid);
        let before = self.ready().len();
        process::signal(pid, Signal::SIGKILL);
        wait::until_some("the slot has a new worker", wait::LONG, || {
            self.ready()[before..].iter().find(|(ready_slot, _)| *ready_slot == slot).map(|(_, pid)| *pid)
        })
    }

    /// A path of the operators' listener.
    #[track_caller]
    pub(crate) fn operator(&self, target: &str) -> client::Response {
        client::get(self.admin, target)
    }

    /// A path of the public listener, over a connection of its own and without cookies.
    #[track_caller]
    pub(crate) fn get(&self, target: &str) -> client::Response {
        client::get(self.listen, target)
    }

    /// Waits for the end; the exit code, negative for the signal that ended it.
    #[track_caller]
    pub(crate) fn exit_code(&mut self, within: Duration) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        if let Some(code) = self.exit_code {
            return code;
        }
        let status = wait::until_some("the fleet ends", within, || self.child.try_wait().unwrap());
        let code = status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
        self.exit_code = Some(code);
        wait::until("the log ends with the fleet", within, || {
            self.readers.iter().all(JoinHandle::is_finished)
        });
        code
    }

    /// Stops it gracefully; the exit code.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.exit_code(STOPPED)
    }

    fn end(&mut self) -> Result<(), String> {
        let workers = self.workers();
        self.signal(Signal::SIGTERM);
        let deadline = std::time::Instant::now() + STOPPED;
        while self.child.try_wait().map_err(|error| error.to_string())?.is_none() {
            if std::time::Instant::now() > deadline {
                return Err(format!("the fleet did not stop in {STOPPED:?}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        // What the kernel ends with the supervisor (a copy that tells where a worker stands) needs a moment for it.
        let deadline = std::time::Instant::now() + Duration::from_secs(1);
        while let Some(pid) = workers.iter().find(|pid| process::alive(**pid)) {
            if std::time::Instant::now() > deadline {
                return Err(format!("worker {pid} outlived its fleet"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for TestFleet {
    fn drop(&mut self) {
        let failed = thread::panicking();
        let result =
            match self.exit_code.is_some() || self.child.try_wait().is_ok_and(|status| status.is_some()) {
                true => Ok(()),
                false => self.end(),
            };
        if result.is_err() {
            for pid in self.workers() {
                process::signal(pid, Signal::SIGKILL);
            }
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if failed || result.is_err() {
            eprintln!("--- log of the fleet {} ---\n{}\n---", self.pid(), self.log());
        }
        if let (false, Err(reason)) = (failed, result) {
            panic!("{reason}");
        }
    }
}

/// A field of a log line, wherever the formatter puts fields.
pub(crate) fn field(line: &Value, name: &str) -> Value {
    line.get(name).or_else(|| line.get("fields")?.get(name)).cloned().unwrap_or(Value::Null)
}

/// Socket addresses in a field, be it one text, a list of texts, or a list printed as text.
#[track_caller]
fn addresses(value: &Value) -> Vec<SocketAddr> {
    let text = match value {
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    let bare = |part: &str| part.trim_matches(|c: char| c.is_whitespace() || c == '"').parse().ok();
    let list = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(&text);
    let found: Vec<_> = list.split(',').filter_map(bare).collect();
    assert!(!found.is_empty() || list.contains("unix:"), "no address in {value}");
    found
}
