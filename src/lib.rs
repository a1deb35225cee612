//! Regatta runs an axum application as a fleet of worker processes, one per core.
//!
//! ```text
//! supervisor      one thread: no tokio, no HTTP, no Redis protocol
//! ├── slot 0: worker   one thread: tokio, axum, one Redis client
//! ├── slot 1: worker
//! └── redis-server     only when no Redis is configured
//! ```
//!
//! Sessions, counters and rate limits live in Redis, so that any worker on any machine can answer any request, and one
//! round trip a request does it all. [`Fleet`] is where a program begins: each worker calls its function once, with a
//! [`Context`], and serves the router or [`App`] that it returns.
//!
//! ```no_run
//! use axum::Router;
//! use axum::routing::get;
//! use regatta::session::PageView;
//! use regatta::{Context, Fleet, Worker};
//!
//! fn main() -> std::process::ExitCode {
//!     Fleet::new(app).run()
//! }
//!
//! async fn app(_: Context) -> Router {
//!     Router::new().route("/", get(home))
//! }
//!
//! async fn home(worker: Worker, view: PageView) -> String {
//!     format!("PID: {} | Views: {}\n", worker.pid(), view.count())
//! }
//! ```
//!
//! Handlers ask for [`Worker`], [`ClientIp`], [`Idempotency`], and by subject for what is in [`session`],
//! [`rate_limit`], [`counter`], [`broadcast`], [`ws`] and [`task`]; the errors of all of these convert into [`Error`].
//! Programs without a fleet begin with [`Redis`].
//!
//! # Features
//!
//! - `fleet` (default): [`Fleet`], [`App`] and all that runs them; without it there is what needs a [`Redis`] only
//! - `cli` (default): `Fleet::run`, `Fleet::execute` and the commands; without it call [`Fleet::serve`]
//! - `tls` (default): TLS to Redis
//! - `top`: the live view of a fleet
//! - `dashboard`: the operators' page `/fleet`
//! - `test`: `regatta::test`, an application within a test, without a process
//! - `full`: all of these
//!
//! Inside are rooms on floors, and a room names only rooms of lower floors (`tests/it/layers.rs` lists them).

// Behind `__internals` the rooms' public items are public; without it they are the crate's own.
#![cfg_attr(
    not(feature = "__internals"),
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "the project's own tests reach these by __internals"
    )
)]

#[cfg(feature = "fleet")]
mod application;
mod backoff;
#[cfg(feature = "fleet")]
mod bootstrap;
mod breaker;
mod broadcasts;
#[cfg(feature = "cli")]
pub mod cli;
mod config;
#[cfg(feature = "fleet")]
mod control;
mod counters;
mod digest;
mod facade;
mod fixed_window;
mod http;
mod idempotency;
mod limiter;
#[cfg(feature = "fleet")]
mod listener;
#[cfg(feature = "fleet")]
mod logging;
mod panics;
mod redis;
mod registry;
mod request_state;
mod scoreboard;
mod sessions;
mod sse;
mod status;
#[cfg(feature = "fleet")]
mod supervisor;
mod sys;
mod tasks;
#[cfg(feature = "test")]
pub mod test;
mod units;
#[cfg(feature = "fleet")]
mod worker;

#[cfg(feature = "fleet")]
pub use application::{App, Context, IntoApp, NoSettings};
#[cfg(feature = "fleet")]
pub use bootstrap::fleet::{Fleet, ServeError};
#[cfg(feature = "fleet")]
pub use bootstrap::fleet_config::Config;
pub use config::settings::{ForwardedHeader, RedisUrl};
#[cfg(feature = "fleet")]
pub use facade::{Busy, FleetHandle, FleetSnapshot, SlotSnapshot, Worker, WorkerState};
pub use facade::{
    ClientIp, Error, ErrorKind, Idempotency, LastEventId, OnDrain, Problem, RedisError, RedisErrorKind,
    RedisStatus, Refusal, RequestTimeout, SameOrigin, broadcast, counter, rate_limit, session, task, ws,
};
#[cfg(feature = "fleet")]
pub use http::Shutdown;
pub use http::standalone::{
    InvalidNetwork, Redis, RedisBuilder, RedisMode, TrustedProxies, TrustedProxiesService,
};
#[cfg(feature = "demo")]
pub use sys::allocator::Allocator;

/// The rooms, for the project's own tests, benchmarks and fuzz targets. Not API: anything here changes without notice.
#[cfg(feature = "__internals")]
#[doc(hidden)]
#[allow(missing_docs, reason = "each room says what it is")]
pub mod __internals {
    pub mod application {
        pub use crate::application::*;
    }
    pub mod backoff {
        pub use crate::backoff::*;
    }
    pub mod bootstrap {
        pub use crate::bootstrap::*;
    }
    pub mod breaker {
        pub use crate::breaker::*;
    }
    pub mod broadcasts {
        pub use crate::broadcasts::*;
    }
    pub mod config {
        pub use crate::config::*;
    }
    pub mod control {
        pub use crate::control::*;
    }
    pub mod counters {
        pub use crate::counters::*;
    }
    pub mod digest {
        pub use crate::digest::*;
    }
    pub mod fixed_window {
        pub use crate::fixed_window::*;
    }
    pub mod http {
        pub use crate::http::*;
    }
    pub mod idempotency {
        pub use crate::idempotency::*;
    }
    pub mod limiter {
        pub use crate::limiter::*;
    }
    pub mod listener {
        pub use crate::listener::*;
    }
    pub mod panics {
        pub use crate::panics::*;
    }
    pub mod redis {
        pub use crate::redis::*;
    }
    pub mod registry {
        pub use crate::registry::*;
    }
    pub mod request_state {
        pub use crate::request_state::*;
    }
    pub mod scoreboard {
        pub use crate::scoreboard::*;
    }
    pub mod sessions {
        pub use crate::sessions::*;
    }
    pub mod sse {
        pub use crate::sse::*;
    }
    pub mod status {
        pub use crate::status::*;
    }
    pub mod supervisor {
        pub use crate::supervisor::*;
    }
    pub mod sys {
        pub use crate::sys::*;
    }
    pub mod tasks {
        pub use crate::tasks::*;
    }
    pub mod logging {
        pub use crate::logging::*;
    }
    pub mod units {
        pub use crate::units::*;
    }
    pub mod worker {
        pub use crate::worker::*;
    }
}
