//! Messages to all subscribers of a topic, on any worker of any machine.
//!
//! ```
//! use axum::response::Response;
//! use regatta::broadcast::Broadcast;
//! use regatta::{Error, LastEventId};
//!
//! /// Server-sent events; a client that was cut off comes again with its last id and has missed nothing.
//! async fn hear(broadcast: Broadcast, last: LastEventId) -> Result<Response, Error> {
//!     Ok(broadcast.topic("lobby")?.sse(last).await?)
//! }
//!
//! async fn say(broadcast: Broadcast, text: String) -> Result<(), Error> {
//!     broadcast.topic("lobby")?.publish(&text).await?;
//!     Ok(())
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(hear).post(say));
//! ```

pub(super) mod error;
mod presence;
mod subscription;
mod topic;

pub use error::{Error, InvalidTopic};
pub use presence::Presence;
pub use subscription::{Event, Message, Subscription};
pub use topic::{Broadcast, Topic};

pub use crate::broadcasts::MessageId;
