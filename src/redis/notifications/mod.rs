//! Notifications between workers: one connection that only receives, subscribed to the channels that have subscribers
//! in this worker.
//!
//! Guarantees that a worker receives what it subscribed to and nothing else, that a channel is subscribed when
//! [`RedisClient::wait_until_subscribed`](crate::redis::RedisClient::wait_until_subscribed) returns true, and that a
//! handler can tell whether notifications may have been missed: `notifications_complete_since` is set only while the
//! connection answers. The connection is opened for the first subscriber and reopened for ever. Messages that arrive
//! faster than they are handled are missed too. Anyone may publish on a channel, so each handler verifies what it acts
//! on.

mod bus;
mod channels;
mod connection;
mod earlier_releases;
mod operations;
mod subscriptions;

pub(super) use bus::{NO_WORKER, NotificationBus};
pub use channels::NotificationChannel;
pub(super) use earlier_releases::EarlierReleaseTracker;
pub use operations::ChannelSubscriptionGuard;
pub use subscriptions::NotificationHandler;
