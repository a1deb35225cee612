//! Progress of a task, whichever worker does it.
//!
//! `cargo run --example thumbnails`, then `curl -X POST localhost:3000/albums/holidays`, which prints the path of the task's
//! events: `curl -N localhost:3000/tasks/…/events`.

use std::process::ExitCode;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use regatta::task::{self, Task, TaskContext, TaskId, TaskQueue};
use regatta::{App, Context, Fleet, LastEventId};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Thumbnails {
    album: String,
}

impl Task for Thumbnails {
    const NAME: &'static str = "thumbnails";
    type Output = u8;
}

fn main() -> ExitCode {
    Fleet::new(app).run()
}

pub(crate) async fn app(_: Context) -> App {
    let routes =
        Router::new().route("/albums/{album}", post(start)).route("/tasks/{id}/events", get(progress));
    App::new(routes).blocking_task(draw)
}

#[allow(clippy::needless_pass_by_value, reason = "a handler has its task and its context")]
fn draw(task: Thumbnails, cx: TaskContext) -> Result<u8, String> {
    for done in 1..=100 {
        if cx.is_cancelled() {
            return Err(format!("{} is not needed any more", task.album));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        cx.percent(done);
    }
    Ok(100)
}

async fn start(tasks: TaskQueue, Path(album): Path<String>) -> Result<(StatusCode, String), task::Error> {
    let task = tasks.enqueue(Thumbnails { album }).await?;
    Ok((StatusCode::ACCEPTED, format!("/tasks/{}/events\n", task.id())))
}

async fn progress(
    tasks: TaskQueue,
    Path(id): Path<TaskId>,
    last: LastEventId,
) -> Result<Response, task::Error> {
    tasks.sse(id, last).await
}
