//! Why a session could not be read or changed.

use std::time::Duration;

use crate::redis;

/// Why a session could not be read or changed; nothing was changed, except where a variant allows for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A rate limit refused the request.
    #[error("a rate limit refused the request")]
    Denied,
    /// It expired, was deleted or never was.
    #[error("the session is gone")]
    Gone,
    /// It has another id now, which this request does not know.
    #[error("the session has another id now")]
    Rotated,
    /// It would have too many fields or bytes.
    #[error("the session would be too large")]
    TooLarge,
    /// Another request changed the same field meanwhile.
    #[error("another request changed the same field of the session")]
    Conflict,
    /// A field to add to is no integer, or the sum would not fit into 64 bits.
    #[error("the field is no integer, or would leave the range of 64-bit integers")]
    NotANumber,
    /// A value has no form as JSON, or not the requested type.
    #[error("the field does not hold what is expected of it")]
    InvalidField,
    /// The operating system gave no random bytes.
    #[error("the operating system has no random bytes")]
    RandomSource,
    /// The client has made as many sessions as it may, and this one may not hold data before that has changed.
    #[error("more new sessions were made from this client than is allowed")]
    TooManySessions {
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// Redis did not do it; after a timeout it is unknown whether it did.
    #[error("the session is not reachable")]
    Redis(#[from] redis::RedisError),
}

impl From<crate::sessions::cookie::RandomSourceError> for SessionError {
    fn from(_: crate::sessions::cookie::RandomSourceError) -> Self {
        Self::RandomSource
    }
}
