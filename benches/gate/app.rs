//! The fleet that is counted: the gate's own program, started again under valgrind.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::{get, post};
use regatta::broadcast::Broadcast;
use regatta::session::{PageView, Session};
use regatta::task::{Task, TaskContext, TaskQueue};
use regatta::{App, Context, Error, Fleet, FleetHandle, LastEventId, Worker};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// As the shipped program: what an allocation costs is part of what a request costs.
#[global_allocator]
static ALLOCATOR: regatta::Allocator = regatta::Allocator;

/// The smallest task.
#[derive(Serialize, Deserialize)]
struct Small(u64);

impl Task for Small {
    const NAME: &'static str = "small";
    type Output = u64;
}

/// Serves until it is told to stop.
pub(crate) fn serve() -> ExitCode {
    Fleet::new(|_: Context| {
        let done = Arc::new(Notify::new());
        let job = Arc::clone(&done);
        let routes = Router::new()
            .route("/hello", get(hello))
            .route("/", get(visit))
            .route("/fill/{count}", post(fill))
            .route("/commit/{value}", post(commit))
            .route("/denied", get(hello))
            .route("/hear", get(hear))
            .route("/say", post(say))
            .route("/task", post(move |tasks| task(tasks, Arc::clone(&done))))
            .route("/mark", get(mark));
        let app = App::new(routes).blocking_task(move |Small(number): Small, _: TaskContext| {
            job.notify_one();
            Ok::<_, &str>(number)
        });
        std::future::ready(app)
    })
    .run()
}

pub(crate) async fn hello(worker: Worker) -> String {
    format!("Handled by worker {}\n", worker.pid())
}

pub(crate) async fn visit(worker: Worker, visit: PageView) -> String {
    format!("PID: {} | Views: {}\n", worker.pid(), visit.count())
}

/// So many fields in the session.
async fn fill(session: Session, Path(count): Path<u32>) -> Result<&'static str, Error> {
    for number in 0..count {
        session.insert(&format!("field{number}"), number).await?;
    }
    Ok("filled\n")
}

/// Another value in one field: `begin` reads, `commit` writes.
async fn commit(session: Session, Path(value): Path<u64>) -> Result<&'static str, Error> {
    session.insert("value", value).await?;
    Ok("kept\n")
}

async fn hear(broadcast: Broadcast, resume: LastEventId) -> Result<Response, Error> {
    Ok(broadcast.topic("gate")?.sse(resume).await?)
}

async fn say(broadcast: Broadcast) -> Result<&'static str, Error> {
    broadcast.topic("gate")?.publish("a message of forty characters, no more.").await?;
    Ok("said\n")
}

/// Enqueues a task, and answers when it has run: there is one worker, so it runs here.
async fn task(tasks: TaskQueue, done: Arc<Notify>) -> Result<&'static str, Error> {
    tasks.enqueue(Small(7)).await?;
    done.notified().await;
    Ok("done\n")
}

async fn mark(_: FleetHandle) -> &'static str {
    gate_mark(black_box(1));
    "marked\n"
}

/// Valgrind writes down what it counted when this is called, and begins anew.
#[inline(never)]
fn gate_mark(number: u64) {
    black_box(number);
}
