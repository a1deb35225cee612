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
//! round trip a request does it all. [`Fleet`] is where a program begins; [`Visit`], [`Account`], [`Fields`],
//! [`Counters`], [`Limit`], [`Worker`], [`ClientAddr`] and [`Session`] are what its handlers ask for.
//!
//! The rooms stand on six floors, and a room names only rooms of lower floors:
//!
//! 6 [`cli`] · 5 [`supervisor`] [`worker`] · 4 [`http`] · 3 [`session`] [`counter`] [`limiter`] [`broadcast`] [`task`] [`control`] [`telemetry`] ·
//! 2 [`redis`] [`listener`] [`scoreboard`] · 1 [`config`] [`breaker`] [`sys`]

pub mod breaker;
pub mod broadcast;
pub mod cli;
pub mod config;
pub mod control;
pub mod counter;
pub mod http;
pub mod limiter;
pub mod listener;
pub mod redis;
pub mod scoreboard;
pub mod session;
pub mod supervisor;
pub mod sys;
pub mod task;
pub mod telemetry;
pub mod worker;

// The names an application is written with: one import each, whatever room they live in.
pub use broadcast::Here;
pub use cli::Fleet;
pub use counter::batched::Reading;
pub use http::error::Error;
pub use http::extract::Account;
pub use http::extract::Batched;
pub use http::extract::Bounded;
pub use http::extract::ClientAddr;
pub use http::extract::Counters;
pub use http::extract::Fields;
pub use http::extract::Idempotency;
pub use http::extract::Limit;
pub use http::extract::Seen;
pub use http::extract::Taken;
pub use http::extract::Unique;
pub use http::extract::Visit;
pub use http::layer::LimitLayer;
pub use http::live::broadcast::Broadcast;
pub use http::live::handshake::Upgrade;
pub use http::live::resume::Resume;
pub use http::live::sse::Source as EventSource;
pub use http::live::sse::event;
pub use http::origin::SameOrigin;
pub use http::state::State;
pub use http::state::Worker;
pub use http::timeout::RequestTimeout;
pub use redis::Health as RedisHealth;
pub use redis::task::Cancelled;
pub use redis::task::Task;
pub use redis::task::TaskId;
pub use redis::task::TaskState;
pub use scoreboard::snapshot::SlotSnapshot;
pub use session::account::Listed as ListedSession;
#[cfg(feature = "app")]
pub use sys::allocator::Allocator;
pub use task::Failure as TaskFailure;
pub use task::Progress;
pub use task::Tasks;
pub use tower_sessions::Session;
