//! Why a message is not published, or a subscription rejected.

use crate::redis;

/// Why a broadcast failed; a rejection names the setting that decides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BroadcastError {
    /// The message is too long: a mistake of the caller.
    #[error("a message has at most {limit} bytes (broadcast.max_message_size), and this one has {len}")]
    TooLarge {
        /// Its length, bytes.
        len: usize,
        /// The longest, bytes.
        limit: usize,
    },
    /// This worker has the most subscribers it may have; another worker may have room.
    #[error("this worker has {limit} subscribers already (broadcast.max_subscribers)")]
    TooManySubscribers {
        /// The most it may have.
        limit: usize,
    },
    /// This worker has the most topics it may have; another worker may have room.
    #[error(
        "{limit} topics are subscribed to on this worker already (broadcast.max_topics; fewer where broadcast.max_message_size is large)"
    )]
    TooManyTopics {
        /// The most it may have.
        limit: usize,
    },
    /// Redis failed. After [`redis::RedisError::Timeout`] and [`redis::RedisError::ConnectionLost`] a message may
    /// have been published.
    #[error("broadcasts are not reachable")]
    Redis(#[source] redis::RedisError),
}

impl From<redis::RedisError> for BroadcastError {
    fn from(error: redis::RedisError) -> Self {
        Self::Redis(error)
    }
}
