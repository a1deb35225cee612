//! Messages to all subscribers of a topic, on every worker of every instance.
//!
//! A topic is a capped stream in Redis, which is the truth; notifications only wake workers up. Guarantees each
//! subscriber every message after the one it starts with, once and in the order of ids, or reports a gap, whatever
//! happens to connections, workers and Redis; and that a slow subscriber neither delays another nor takes memory without
//! bound. A topic without subscribers costs a worker nothing: each has a channel of its own, to which only workers with
//! subscribers listen, and only texts with the fleet's mark are believed. The room must not know HTTP: streams and
//! sockets are made in `http`.

pub mod commands;
mod error;
mod hub;
mod hub_state;
pub mod keys;
mod message;
mod presence;
mod presence_reporter;
mod reconciler;
mod replay_buffer;
mod sequencer;
mod subscription;
mod topic;
mod topic_feed;

pub use error::BroadcastError;
pub use hub::{BroadcastHub, BroadcastTotals};
pub use message::{BroadcastMessage, InvalidMessageId, MessageId};
pub use presence::Presence;
pub use subscription::{Subscription, SubscriptionEvent};
pub use topic::{InvalidTopicName, TopicName};
