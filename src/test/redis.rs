//! Where an application under test has its state.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config;
use crate::config::settings::RedisUrl;
use crate::config::{ConfigFile, ConfigInputs};
use crate::supervisor::private_redis::server::REDIS_PROGRAMS;
use crate::sys::{process, random};

/// How long a private server may take to begin.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the server, and ends it when the test program has ended and with it this script's input.
const SCRIPT: &str = "\"$1\" --port 0 --unixsocket \"$2/redis.sock\" --dir \"$2\" --save '' --appendonly no \
     >\"$2/log\" 2>&1 & read -r _; kill $! 2>/dev/null; wait; rm -rf \"$2\"";

/// The server of this test program, once it has one.
static PRIVATE: Mutex<Option<PrivateServer>> = Mutex::new(None);

/// Where an application under test has its state.
///
/// ```
/// use regatta::test::TestRedis;
///
/// let shared = TestRedis::private();
/// let given = TestRedis::url("redis://127.0.0.1:6379");
/// let away = TestRedis::none();
/// # let _ = (shared, given, away);
/// ```
#[derive(Debug, Clone, Default)]
pub struct TestRedis(Address);

#[derive(Debug, Clone, Default)]
enum Address {
    #[default]
    Private,
    Url(String),
    None,
}

struct PrivateServer {
    socket: PathBuf,
    /// The script; its input is closed when the test program ends.
    _script: Child,
}

impl TestRedis {
    /// A server that this test program starts once and all its tests share, each application with a prefix of its own.
    ///
    /// `redis-server` or `valkey-server` has to be on PATH.
    pub fn private() -> Self {
        Self(Address::Private)
    }

    /// The Redis at this address. What the applications store there is left behind.
    pub fn url(url: &str) -> Self {
        Self(Address::Url(url.to_owned()))
    }

    /// No Redis: handlers without state work, and state answers as while Redis is away.
    pub fn none() -> Self {
        Self(Address::None)
    }

    pub(super) fn has_server(&self) -> bool {
        !matches!(self.0, Address::None)
    }

    /// Its address; a private server is started for it.
    pub(super) fn address(&self) -> RedisUrl {
        match &self.0 {
            Address::Private => RedisUrl::from_socket_path(&private_socket()),
            Address::Url(url) => parse(url),
            Address::None => RedisUrl::from_socket_path(Path::new("/nonexistent/redis.sock")),
        }
    }
}

fn parse(url: &str) -> RedisUrl {
    let flags = vec![("redis.url".to_owned(), url.to_owned(), "TestRedis::url".to_owned())];
    let inputs = ConfigInputs { content: ConfigFile::Missing, flags, ..ConfigInputs::default() };
    let config = config::load(&inputs).unwrap_or_else(|error| panic!("{error}"));
    config.redis.url.unwrap_or_else(|| panic!("the address of Redis is empty"))
}

fn private_socket() -> PathBuf {
    let mut server = PRIVATE.lock().unwrap_or_else(PoisonError::into_inner);
    server.get_or_insert_with(PrivateServer::start).socket.clone()
}

impl PrivateServer {
    fn start() -> Self {
        let search = ConfigInputs::from_process().environment.remove("PATH").unwrap_or_default();
        let program = process::find_program(REDIS_PROGRAMS, &OsString::from(format!("{search}:/usr/sbin")));
        let program = program.unwrap_or_else(|| {
            panic!(
                "no {} on PATH: install Redis 7 or later (apt install redis-server, brew install redis), or give \
                 TestRedis::url or TestRedis::none",
                REDIS_PROGRAMS.join(" or ")
            )
        });
        let name = format!("regatta-test-{}-{:x}", process::pid(), random::number().unwrap_or(0));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh"]).arg(&program).arg(&folder);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let script =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let server = Self { socket: folder.join("redis.sock"), _script: script };
        server.wait_until_it_answers(&folder);
        server
    }

    fn wait_until_it_answers(&self, folder: &Path) {
        let began = Instant::now();
        let answers = || -> std::io::Result<()> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.write_all(b"PING\r\n")
        };
        while answers().is_err() {
            let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(began.elapsed() < START_TIMEOUT, "the private Redis does not begin:\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
