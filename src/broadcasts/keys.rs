//! The names of topics in Redis: made here and nowhere else.

use crate::redis::keys::KeySpace;
use crate::redis::notifications::NotificationChannel;

/// First part of a topic's channel behind the prefix.
const CHANNELS: &str = "b";

/// A topic's latest messages: a stream.
///
/// All topics share a hash tag, so that one call may read several.
pub fn topic(prefix: &str, name: &str) -> String {
    KeySpace::new(prefix).key(["{b}", "topic", name])
}

/// How many subscribe to a topic: a hash, one field a worker.
pub fn presence(prefix: &str, name: &str) -> String {
    KeySpace::new(prefix).key(["{b}", "here", name])
}

/// The channel of a topic's messages, for workers that have subscribers to it. A reloaded page subscribes to its topic again within moments.
pub fn channel(topic: &str) -> NotificationChannel<'_> {
    NotificationChannel::lingering(CHANNELS, topic)
}
