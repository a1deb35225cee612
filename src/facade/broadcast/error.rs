//! Why a message was not published, or a subscription rejected.

use axum::BoxError;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::broadcasts;
use crate::facade::redis_error::RedisError;
use crate::http::error::RequestError;
use crate::http::problem::Problem;

/// Why a message was not published, or a subscription rejected; answers as a problem document.
///
/// ```
/// use regatta::broadcast::{Error, Topic};
///
/// async fn say(topic: &Topic, text: &str) -> Result<(), Error> {
///     match topic.publish(text).await {
///         Err(Error::TooLarge { limit }) => topic.publish(&text[..text.floor_char_boundary(limit)]).await?,
///         other => other?,
///     };
///     Ok(())
/// }
/// # let _ = say;
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The message is longer than `broadcast.max_message_size`: 413.
    #[error("a message has at most {limit} bytes")]
    TooLarge {
        /// The longest that is allowed, bytes.
        limit: usize,
    },
    /// As many clients or topics are subscribed as this worker takes: 503.
    #[error("as many are subscribed as this worker takes")]
    TooManySubscribers,
    /// A message has no form as JSON, or is not what is expected of it: 500.
    #[error("the message is not the JSON that is expected of it")]
    Json(#[source] BoxError),
    /// Redis did not do it: 503.
    #[error("broadcasts are not reachable")]
    Redis(#[source] RedisError),
}

impl Error {
    pub(crate) fn status(&self) -> StatusCode {
        self.as_problem().status()
    }

    /// As the client sees it; a mistake of the program is logged.
    fn to_problem(&self) -> Problem {
        if let Self::Json(error) = self {
            tracing::error!(%error, "a message is not the JSON that is expected of it: {error}");
        }
        self.as_problem()
    }

    fn as_problem(&self) -> Problem {
        match self {
            Self::TooLarge { limit } => RequestError::MessageTooLarge { limit: *limit }.to_problem(),
            Self::TooManySubscribers => RequestError::TooManySubscribers.to_problem(),
            Self::Redis(error) => error.to_request_error().to_problem(),
            Self::Json(_) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, ""),
        }
    }
}

#[doc(hidden)]
impl From<broadcasts::BroadcastError> for Error {
    fn from(error: broadcasts::BroadcastError) -> Self {
        match error {
            broadcasts::BroadcastError::TooLarge { limit, .. } => Self::TooLarge { limit },
            broadcasts::BroadcastError::TooManySubscribers { .. }
            | broadcasts::BroadcastError::TooManyTopics { .. } => Self::TooManySubscribers,
            broadcasts::BroadcastError::Redis(error) => Self::Redis(RedisError::new(&error)),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.to_problem().into_response()
    }
}

/// A topic's name is not allowed: 400.
///
/// ```
/// use regatta::broadcast::{Broadcast, InvalidTopic, Topic};
///
/// fn room(broadcast: &Broadcast, name: &str) -> Result<Topic, InvalidTopic> {
///     broadcast.topic(&format!("room:{name}"))
/// }
/// # let _ = room;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a topic's name has 1 to 64 of A-Z a-z 0-9 - _ . : /")]
pub struct InvalidTopic(());

impl InvalidTopic {
    #[allow(clippy::unused_self, reason = "as the other errors")]
    pub(crate) fn to_request_error(self) -> RequestError {
        RequestError::InvalidTopicName
    }
}

#[doc(hidden)]
impl From<broadcasts::InvalidTopicName> for InvalidTopic {
    fn from(_: broadcasts::InvalidTopicName) -> Self {
        Self(())
    }
}

impl IntoResponse for InvalidTopic {
    fn into_response(self) -> Response {
        self.to_request_error().into_response()
    }
}
