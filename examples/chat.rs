//! A room that everybody hears, and a word count that any worker of any machine does.
//!
//! `cargo run --example chat`, then in one terminal `curl -N localhost:3000/hear` and in another
//! `curl -d 'to be or not to be' localhost:3000/say`. The second one prints the URL of a task, which says how many
//! words there were.

use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use regatta::broadcast::Broadcast;
use regatta::task::{Task, TaskContext, TaskId, TaskQueue};
use regatta::{App, Context, Error, Fleet, LastEventId};
use serde::{Deserialize, Serialize};

fn main() -> std::process::ExitCode {
    Fleet::new(app).run()
}

async fn app(_: Context) -> App {
    let routes =
        Router::new().route("/hear", get(hear)).route("/say", post(say)).route("/words/{id}", get(words));
    App::new(routes).blocking_task(|task: Words, cx: TaskContext| {
        cx.percent(50);
        Ok::<_, &str>(task.text.split_whitespace().count())
    })
}

/// A count of the words of a text.
#[derive(Serialize, Deserialize)]
struct Words {
    text: String,
}

impl Task for Words {
    const NAME: &'static str = "words";
    type Output = usize;
}

/// Server-sent events; a client that was cut off comes again with its last id and has missed nothing.
async fn hear(
    broadcast: Broadcast,
    resume: LastEventId,
    Query(room): Query<Room>,
) -> Result<Response, Error> {
    Ok(broadcast.topic(&room.room)?.sse(resume).await?)
}

async fn say(
    broadcast: Broadcast,
    tasks: TaskQueue,
    Query(room): Query<Room>,
    text: String,
) -> Result<String, Error> {
    broadcast.topic(&room.room)?.publish(&text).await?;
    Ok(format!("/words/{}\n", tasks.enqueue(Words { text }).await?.id()))
}

async fn words(tasks: TaskQueue, Path(id): Path<String>) -> Result<Response, Error> {
    let task = match id.parse::<TaskId>() {
        Ok(id) => tasks.status(id).await?,
        Err(_) => None,
    };
    Ok(task.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |task| Json(task).into_response()))
}

#[derive(Deserialize)]
#[serde(default)]
struct Room {
    room: String,
}

impl Default for Room {
    fn default() -> Self {
        Self { room: "lobby".to_owned() }
    }
}
