//! Work that is queued in Redis and done once, by any worker of any machine.
//!
//! ```no_run
//! use axum::Router;
//! use axum::extract::Path;
//! use axum::response::Response;
//! use axum::routing::{get, post};
//! use regatta::task::{Error, TaskContext, TaskId, TaskQueue};
//! use regatta::{App, Context, LastEventId};
//!
//! async fn start(tasks: TaskQueue, text: String) -> Result<String, Error> {
//!     Ok(format!("/words/{}\n", tasks.enqueue("words", &text).await?))
//! }
//!
//! async fn progress(tasks: TaskQueue, Path(id): Path<TaskId>, last: LastEventId) -> Result<Response, Error> {
//!     tasks.sse(id, last).await
//! }
//!
//! async fn app(_: Context) -> App {
//!     let routes = Router::new().route("/words", post(start)).route("/words/{id}", get(progress));
//!     App::new(routes).register_task("words", |text: String, task: &TaskContext| {
//!         task.percent(50);
//!         Ok::<_, &str>(text.split_whitespace().count())
//!     })
//! }
//! ```

pub(super) mod error;
mod events;
mod queue;
mod status;
mod watch;

pub use error::Error;
pub use queue::TaskQueue;
pub use status::TaskStatus;
pub use watch::TaskWatch;

pub use crate::tasks::{Cancelled, TaskId, TaskState};
pub use crate::tasks::{TaskContext, TaskFailure};
