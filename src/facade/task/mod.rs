//! Work that is queued in Redis and done once, by any worker of any machine.
//!
//! ```no_run
//! use axum::Router;
//! use axum::extract::Path;
//! use axum::response::Response;
//! use axum::routing::{get, post};
//! use regatta::task::{Error, Task, TaskContext, TaskId, TaskQueue};
//! use regatta::{App, Context, LastEventId};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Words {
//!     text: String,
//! }
//!
//! impl Task for Words {
//!     const NAME: &'static str = "words";
//!     type Output = usize;
//! }
//!
//! async fn start(tasks: TaskQueue, text: String) -> Result<String, Error> {
//!     Ok(format!("/words/{}\n", tasks.enqueue(Words { text }).await?.id()))
//! }
//!
//! async fn progress(tasks: TaskQueue, Path(id): Path<TaskId>, last: LastEventId) -> Result<Response, Error> {
//!     tasks.sse(id, last).await
//! }
//!
//! async fn app(_: Context) -> App {
//!     let routes = Router::new().route("/words", post(start)).route("/words/{id}", get(progress));
//!     App::new(routes).blocking_task(count)
//! }
//!
//! fn count(task: Words, cx: TaskContext) -> Result<usize, String> {
//!     cx.percent(50);
//!     Ok(task.text.split_whitespace().count())
//! }
//! ```

mod enqueue;
pub(super) mod error;
mod events;
mod handle;
mod lookup;
mod queue;
mod runner;
mod status;
mod watch;

pub use enqueue::Enqueue;
pub use error::Error;
pub use handle::TaskHandle;
pub use queue::TaskQueue;
pub use runner::TaskRunner;
pub use status::TaskStatus;
pub use watch::TaskWatch;

pub use crate::tasks::{Cancelled, TaskId, TaskState};
pub use crate::tasks::{Task, TaskContext, TaskFailure, TaskOptions};
