//! Settings that are one word of a few.

use crate::config::value::basic::{InvalidValue, choice, size_or_none};
use crate::config::value::bounds::slot_count;

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

/// How much memory the private Redis may use for its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxMemory {
    /// A part of what the machine or the container has.
    Auto,
    /// So many bytes; none: any.
    Bytes(Option<u64>),
}

/// What a visitor's session is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionCreation {
    /// By the first visit's cookie, when it comes back: until then nothing is stored.
    Return,
    /// By the first data: until then there is no cookie, and each visit is a first one.
    Write,
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

/// How new connections are spread over the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SteeringMode {
    /// By the kernel's hash of each connection; at random over the others while a slot takes none.
    Kernel,
    /// One client address always meets the same slot, except while that slot takes none.
    ClientIp,
}

/// What is done with the autoscaler's decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoscaleMode {
    /// They are carried out.
    On,
    /// They are logged.
    DryRun,
}

/// A number of workers as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerCount {
    /// One per core that affinity and the cgroup's quota allow.
    Auto,
    /// Exactly this many, 1 to 1024, more than there are cores if wanted.
    Fixed(usize),
}

/// The header in which a trusted proxy names the client.
///
/// ```
/// use regatta::{ForwardedHeader, TrustedProxies};
///
/// let proxies = TrustedProxies::loopback().header(ForwardedHeader::Forwarded);
/// # let _ = proxies;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardedHeader {
    /// `X-Forwarded-For` and `X-Forwarded-Proto`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Pretty,
    /// For machines: one JSON object a line.
    Json,
}

pub(in crate::config) fn maxmemory(text: &str) -> Result<MaxMemory, InvalidValue> {
    match text {
        "auto" => Ok(MaxMemory::Auto),
        text => size_or_none(text).map(MaxMemory::Bytes),
    }
}

pub(in crate::config) fn session_creation(text: &str) -> Result<SessionCreation, InvalidValue> {
    choice(text, &[("return", SessionCreation::Return), ("write", SessionCreation::Write)])
}

pub(in crate::config) fn scripting_mode(text: &str) -> Result<ScriptingMode, InvalidValue> {
    let choices = [
        ("auto", ScriptingMode::Auto),
        ("fcall", ScriptingMode::Fcall),
        ("evalsha", ScriptingMode::Evalsha),
        ("plain", ScriptingMode::Plain),
    ];
    choice(text, &choices)
}

pub(in crate::config) fn cookie_security(text: &str) -> Result<CookieSecurity, InvalidValue> {
    choice(
        text,
        &[
            ("auto", CookieSecurity::Auto),
            ("always", CookieSecurity::Always),
            ("never", CookieSecurity::Never),
        ],
    )
}

pub(in crate::config) fn autoscale_mode(text: &str) -> Result<AutoscaleMode, InvalidValue> {
    choice(text, &[("on", AutoscaleMode::On), ("dry-run", AutoscaleMode::DryRun)])
}

pub(in crate::config) fn worker_count(text: &str) -> Result<WorkerCount, InvalidValue> {
    if text == "auto" {
        return Ok(WorkerCount::Auto);
    }
    slot_count(text).map(WorkerCount::Fixed)
}

pub(in crate::config) fn forwarded_header(text: &str) -> Result<ForwardedHeader, InvalidValue> {
    let choices =
        [("x-forwarded-for", ForwardedHeader::XForwardedFor), ("forwarded", ForwardedHeader::Forwarded)];
    choice(text, &choices)
}

pub(in crate::config) fn steering_mode(text: &str) -> Result<SteeringMode, InvalidValue> {
    choice(text, &[("kernel", SteeringMode::Kernel), ("client-ip", SteeringMode::ClientIp)])
}

pub(in crate::config) fn log_format(text: &str) -> Result<LogFormat, InvalidValue> {
    choice(text, &[("auto", LogFormat::Auto), ("pretty", LogFormat::Pretty), ("json", LogFormat::Json)])
}
