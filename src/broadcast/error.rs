//! Why a message is not published, or a topic not subscribed to.

use crate::redis;

/// Why a broadcast failed; each refusal names the setting that decides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BroadcastError {
    /// The message is too long; the caller's mistake.
    #[error("a message has at most {limit} bytes (broadcast.max_message_size), and this one has {len}")]
    TooLarge {
        /// Its length, bytes.
        len: usize,
        /// The longest, bytes.
        limit: usize,
    },
    /// This worker has as many subscribers as it may; another one may have room.
    #[error("this worker has {limit} subscribers already (broadcast.max_subscribers)")]
    TooManySubscribers {
        /// As many as there may be.
        limit: usize,
    },
    /// This worker has as many topics as it may; another one may have room.
    #[error(
        "{limit} topics are subscribed to on this worker already (broadcast.max_topics; fewer where broadcast.max_message_size is large)"
    )]
    TooManyTopics {
        /// As many as there may be.
        limit: usize,
    },
    /// Redis did not do it. After [`redis::Error::Timeout`] and [`redis::Error::Lost`] a message may have been published.
    #[error("broadcasts are not reachable")]
    Redis(#[source] redis::RedisError),
}

impl From<redis::RedisError> for BroadcastError {
    fn from(error: redis::RedisError) -> Self {
        Self::Redis(error)
    }
}
