//! The shared state's settings: Redis and sessions.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::config::limits::Rate;
use crate::config::redis_url::RedisAddress;

/// Where the shared state lives and how long requests wait for it.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// Where it is, in one of the forms of [`crate::config::redis_url`]; `None` means a private server, started by the supervisor.
    pub url: Option<RedisUrl>,
    /// First part of every key; two fleets with the same prefix share everything, with different ones nothing.
    pub prefix: String,
    /// How server-side code is called.
    pub scripting: ScriptingMode,
    /// A connection on which calls wait and nothing is answered for this long is given up.
    pub command_timeout: Duration,
    /// Longest absence that requests wait for; they wait for the connection and fail when it takes longer.
    pub reconnect_wait: Duration,
    /// Files with what proves who we are, and who the server is.
    pub credentials: RedisCredentials,
}

/// How much memory the private Redis may use for its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxMemory {
    /// A part of what the machine or the container has.
    Auto,
    /// So many bytes; none: any.
    Bytes(Option<u64>),
}

/// Files that are read at every attempt to connect, so that whatever renews them needs no restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisCredentials {
    /// The password, instead of one in the URL.
    pub password_file: Option<PathBuf>,
    /// Certificates of the authorities that are trusted; none: those of the system.
    pub tls_ca: Option<PathBuf>,
    /// Our certificate, if the server wants one.
    pub tls_cert: Option<PathBuf>,
    /// Its private key.
    pub tls_key: Option<PathBuf>,
}

/// The address of a Redis, which may hold a password: `Debug` and `Display` hide it.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(pub(in crate::config) String);

impl RedisUrl {
    /// A server's Unix socket.
    pub fn from_socket_path(path: &std::path::Path) -> Self {
        let path = percent_encode(path.as_os_str().as_bytes(), ESCAPED_IN_PATH).to_string();
        // `@/` behind a first / would be taken for the end of a password that begins with it.
        let path = if path.starts_with('/') { path.replace("@/", "%40/") } else { path };
        Self(format!("unix://{path}"))
    }

    /// A text that may be such an address, as it may be shown.
    pub fn redact(text: &str) -> String {
        Self(text.to_owned()).to_string()
    }

    /// The URL with its password, for the client only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What would end a path, or begin an escape.
const ESCAPED_IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(place) = RedisAddress::parse(&self.0) {
            return place.fmt(f);
        }
        // What cannot be taken apart may have its password anywhere.
        let scheme = self.0.split_once("://").map(|(scheme, _)| scheme);
        let is_scheme = |text: &&str| {
            text.len() < 20 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        };
        match scheme.filter(is_scheme) {
            Some(scheme) => write!(f, "{scheme}://***"),
            None => f.write_str("***"),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

/// How server-side code is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScriptingMode {
    /// Functions where they are allowed, else scripts, else plain commands; found out at connect.
    Auto,
    /// Redis functions (Redis ≥ 7, Valkey).
    Fcall,
    /// Scripts by digest (Dragonfly, `KeyDB`, Redis 6).
    Evalsha,
    /// Plain commands only, with fewer promises (where neither is allowed).
    Plain,
}

/// The visitor's cookie and how long a session lives.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// Name of the cookie, without the `__Host-` that is put before it when it is secure.
    pub cookie: String,
    /// Signing keys: the first signs, all are accepted. Empty: one is generated and kept in Redis.
    pub secrets: Vec<Secret>,
    /// What a visitor's session is made by.
    pub create: SessionCreation,
    /// New sessions that one client may have made; `None`: any number.
    pub create_rate: Option<Rate>,
    /// As many of them at once.
    pub create_burst: u64,
    /// A session nobody used for this long is gone.
    pub idle: Duration,
    /// A session this old is gone, however much it is used.
    pub absolute: Duration,
    /// Whether the cookie carries `Secure`.
    pub secure: CookieSecurity,
    /// Oldest copy of a session, by the time Redis was last heard, that is shown while Redis is away; 0: none is.
    pub stale_if_error: Duration,
    /// Sessions one user may have; 0: any number.
    pub max_per_user: u64,
    /// Fields of which no change is ever lost.
    pub strict_fields: Vec<String>,
    /// Keys that encrypt fields at rest: the first encrypts, all decrypt. Empty: fields are stored as they are.
    pub encryption_keys: Vec<Secret>,
}

/// What a visitor's session is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionCreation {
    /// By the first visit's cookie, when it comes back: until then nothing is stored.
    Return,
    /// By the first data: until then there is no cookie, and each visit is a first one.
    Write,
}

/// A signing key of at least 32 bytes; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(in crate::config) Vec<u8>);

impl Secret {
    /// The key's bytes, for the keyring only.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(***, {} bytes)", self.0.len())
    }
}

/// Whether the session cookie is sent over TLS only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CookieSecurity {
    /// Secure when the request came over TLS, as a trusted proxy's `X-Forwarded-Proto` says.
    Auto,
    /// Always, with the `__Host-` prefix.
    Always,
    /// Never.
    Never,
}

/// Requests that are carried out once.
#[derive(Debug, Clone)]
pub struct IdempotencyConfig {
    /// Responses to requests with `Idempotency-Key` are kept this long; zero: the header means nothing.
    pub ttl: Duration,
}
