//! Numbers that all workers of all instances share: exact, batched, bounded, and of different items.
//!
//! ```
//! use regatta::counter::{Counters, Error};
//!
//! async fn buy(counters: Counters) -> Result<String, Error> {
//!     let stock = counters.bounded("boats", 12);
//!     if !stock.try_take(1).await?.is_granted() {
//!         return Ok("sold out\n".to_owned());
//!     }
//!     Ok(format!("order number {}\n", counters.add("orders", 1).await?))
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(buy));
//! ```

mod counters;
pub(super) mod error;
pub(super) mod source;

pub use counters::{Approximate, BatchedCounter, BoundedCounter, Counters, DistinctCounter, Inserted, Taken};
pub use error::Error;
