//! Rate limits: what the configuration's policies decided of a request, and policies on routes of one's own.
//!
//! ```no_run
//! use axum::Router;
//! use axum::routing::post;
//! use regatta::Context;
//! use regatta::rate_limit::{Error, RateLimit, UnknownPolicy};
//!
//! // [limits.login]: rate = "20/min", routes = "layer"
//! async fn login(limit: RateLimit, password: String) -> Result<&'static str, Error> {
//!     if password == "right" {
//!         // What succeeds does not count.
//!         limit.refund().await?;
//!         return Ok("welcome\n");
//!     }
//!     Ok("wrong\n")
//! }
//!
//! async fn app(cx: Context) -> Result<Router, UnknownPolicy> {
//!     Ok(Router::new().route("/login", post(login).layer(cx.rate_limit("login")?.cost(5))))
//! }
//! ```

mod decision;
pub(super) mod error;
pub(super) mod layer;
mod limiter;

pub use decision::RateLimit;
pub use error::{Error, UnknownPolicy};
pub use layer::{ProblemOnDenied, RateLimitLayer, RateLimitService};
pub use limiter::RateLimiter;

pub use crate::config::limits::OnRedisDown;
pub use crate::http::error::Denied;
pub use crate::http::standalone::{Key, LimitQuota as Quota};
