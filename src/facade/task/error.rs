//! Why a task was not queued, or is not known.

use axum::BoxError;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::facade::redis_error::RedisError;
use crate::http::error::RequestError;
use crate::http::problem::Problem;
use crate::tasks;

/// Why a task was not queued, or is not known; answers as a problem document.
///
/// ```
/// use regatta::task::{Error, Task, TaskQueue};
///
/// async fn start<T: Task>(tasks: TaskQueue, task: T) -> Result<String, Error> {
///     match tasks.enqueue(task).await {
///         Ok(task) => Ok(format!("/tasks/{}", task.id())),
///         Err(Error::Full) => Ok("come back in a minute".to_owned()),
///         Err(error) => Err(error),
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// As many tasks wait as `tasks.max_queued` allows: 503.
    #[error("as many tasks wait as are allowed")]
    Full,
    /// There is no such task, or its record has expired: 404.
    #[error("there is no such task, or it ended too long ago")]
    NotFound,
    /// No job was registered for this kind of task: 400.
    #[error("there is no task of the kind {0:?}")]
    UnknownKind(String),
    /// A task's input is too large, or cannot be written as JSON: 400.
    #[error("the task's input cannot be taken: {0}")]
    Input(#[source] BoxError),
    /// A task's result is not what is expected of it: 500.
    #[error("the task's result is not what is expected of it")]
    Output(#[source] BoxError),
    /// The task has ended without a result, for this reason: 500.
    #[error("the task has no result: {reason}")]
    Failed {
        /// As its record says: it failed, was cancelled, or its attempts are used up.
        reason: String,
    },
    /// A kind has two handlers, or its name is none: 500.
    #[error("the program's tasks are not as they should be")]
    Handlers(#[source] BoxError),
    /// The operating system has no random bytes for an id: 500.
    #[error("the operating system has no random bytes")]
    RandomSource,
    /// Redis did not do it: 503.
    #[error("the tasks are not reachable")]
    Redis(#[source] RedisError),
}

impl Error {
    pub(crate) fn status(&self) -> StatusCode {
        self.as_problem().status()
    }

    /// As the client sees it; a mistake of the program is logged.
    fn to_problem(&self) -> Problem {
        if matches!(self, Self::Output(_) | Self::Handlers(_) | Self::Failed { .. } | Self::RandomSource) {
            tracing::error!(error = %self, "a handler could not do its work: {self}");
        }
        self.as_problem()
    }

    fn as_problem(&self) -> Problem {
        match self {
            Self::Full => RequestError::TooManyTasks.to_problem(),
            Self::NotFound => Problem::new(StatusCode::NOT_FOUND, self.to_string()),
            Self::UnknownKind(kind) => RequestError::UnknownTaskKind(kind.clone()).to_problem(),
            Self::Input(error) => RequestError::InvalidTaskInput(error.to_string()).to_problem(),
            Self::Redis(error) => error.to_request_error().to_problem(),
            Self::Output(_) | Self::Handlers(_) | Self::Failed { .. } | Self::RandomSource => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "")
            }
        }
    }
}

#[doc(hidden)]
impl From<tasks::TaskError> for Error {
    fn from(error: tasks::TaskError) -> Self {
        match error {
            tasks::TaskError::QueueFull => Self::Full,
            tasks::TaskError::UnknownKind(kind) => Self::UnknownKind(kind),
            tasks::TaskError::InvalidInput(reason) => Self::Input(reason.into()),
            tasks::TaskError::NoRandomness(_) => Self::RandomSource,
            tasks::TaskError::Redis(error) => Self::Redis(RedisError::new(&error)),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.to_problem().into_response()
    }
}
