//! Background tasks: started by a visitor, run by any worker of any instance, shown and cancelled by their id.
//!
//! An id cannot be guessed: a client that has it may see and cancel the task, as with a secret link.

pub(in crate::app) mod views;

use std::ops::ControlFlow;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use regatta::rate_limit::RateLimit;
use regatta::task::{Cancelled, Error, Task, TaskContext, TaskId, TaskQueue, TaskState};
use regatta::{App, LastEventId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::app::content::{Accepts, RequestBody};
use crate::app::cpu;

/// A kind of task that can be started.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct TaskKind {
    #[serde(rename = "kind")]
    pub(super) name: &'static str,
    #[serde(skip)]
    pub(super) label: &'static str,
    /// The title, before the number.
    #[serde(skip)]
    pub(super) title: &'static str,
    /// Largest number.
    pub(super) max: u32,
}

/// Bounded by the memory of a result in Redis, 21 KB, and by the CPU time of a task.
pub(super) const TASK_KINDS: [TaskKind; 2] = [
    TaskKind { name: "fibonacci", label: "Fibonacci", title: "Fibonacci number", max: 100_000 },
    TaskKind { name: "primes", label: "Primes", title: "Primes below", max: 20_000_000 },
];

/// A Fibonacci number to compute.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
struct FibonacciTask {
    n: u32,
}

/// Primes to count.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
struct PrimesTask {
    n: u32,
}

#[derive(Debug, Deserialize, Serialize)]
struct Fibonacci {
    n: u32,
    digits: usize,
    /// Every digit: as a number, readers of JSON would round it.
    value: String,
}

#[derive(Debug, Deserialize, Serialize)]
struct Primes {
    n: u32,
    count: u32,
}

impl Task for FibonacciTask {
    const NAME: &'static str = TASK_KINDS[0].name;
    type Output = Fibonacci;
}

impl Task for PrimesTask {
    const NAME: &'static str = TASK_KINDS[1].name;
    type Output = Primes;
}

/// Registers the handler of each kind.
pub(super) fn register(app: App) -> App {
    app.blocking_task(|task: FibonacciTask, cx: TaskContext| fibonacci(task, &cx))
        .blocking_task(|task: PrimesTask, cx: TaskContext| primes(task, &cx))
}

fn fibonacci(FibonacciTask { n }: FibonacciTask, cx: &TaskContext) -> Result<Fibonacci, &'static str> {
    let value = cpu::fibonacci(n, |percent| report_progress(cx, percent)).ok_or(STOPPED)?.to_string();
    Ok(Fibonacci { n, digits: value.len(), value })
}

fn primes(PrimesTask { n }: PrimesTask, cx: &TaskContext) -> Result<Primes, &'static str> {
    let count = cpu::primes(n, |percent| report_progress(cx, percent)).ok_or(STOPPED)?;
    Ok(Primes { n, count })
}

/// The error of a cancelled job; it is shown nowhere.
const STOPPED: &str = "it was stopped";

fn report_progress(progress: &TaskContext, percent: u8) -> ControlFlow<()> {
    progress.percent(percent);
    if progress.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// What the start of a task sends.
#[derive(Debug, Default, Deserialize)]
pub(super) struct StartParams {
    pub(super) kind: String,
    pub(super) n: u64,
}

impl StartParams {
    /// The kind and input, or what is wrong with them.
    fn validate(&self) -> Result<(&'static TaskKind, u32), String> {
        let Some(kind) = TASK_KINDS.iter().find(|kind| kind.name == self.kind) else {
            let names = TASK_KINDS.map(|kind| kind.name).join(", ");
            return Err(format!("there is no such kind of task; there are {names}"));
        };
        match u32::try_from(self.n) {
            Ok(n) if n <= kind.max => Ok((kind, n)),
            _ => Err(format!("n is {}; {} allows 0 to {}", self.n, kind.name, kind.max)),
        }
    }
}

/// The kinds, as a form or as JSON.
pub(super) async fn page(accepts: Accepts) -> Response {
    match accepts {
        Accepts::Html => views::form(&StartParams::default(), None),
        Accepts::Text => ([(header::VARY, "Accept")], Json(&TASK_KINDS)).into_response(),
    }
}

pub(super) async fn start(
    _limit: RateLimit,
    tasks: TaskQueue,
    accepts: Accepts,
    request: Request<Body>,
) -> Result<Response, Response> {
    let (params, by_form) = match RequestBody::<StartParams>::read(request).await? {
        RequestBody::Form(params) => (params, true),
        RequestBody::Json(params) => (params, false),
        RequestBody::Nothing => {
            return Err((StatusCode::BAD_REQUEST, "a kind and n are required").into_response());
        }
    };
    let queued = match params.validate() {
        Ok((kind, n)) => {
            let id = match kind.name {
                FibonacciTask::NAME => tasks.enqueue(FibonacciTask { n }).await.map(|task| task.id()),
                _ => tasks.enqueue(PrimesTask { n }).await.map(|task| task.id()),
            };
            id.map_err(|error| (error.to_string(), error.into_response()))
        }
        Err(fault) => Err((fault.clone(), (StatusCode::BAD_REQUEST, fault).into_response())),
    };
    let id = queued.map_err(|(why, plain)| rejected(&params, accepts, &why, plain))?;
    let location = format!("/tasks/{id}");
    Ok(match (accepts, by_form) {
        (Accepts::Html, true) => Redirect::to(&location).into_response(),
        _ => {
            let task = json!({"id": id, "kind": params.kind, "n": params.n, "state": "waiting"});
            (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(task)).into_response()
        }
    })
}

/// A rejection; for a browser the form again, with the reason.
fn rejected(params: &StartParams, accepts: Accepts, why: &str, plain: Response) -> Response {
    if accepts == Accepts::Text {
        return plain;
    }
    let mut page = views::form(params, Some(why));
    *page.status_mut() = plain.status();
    if let Some(wait) = plain.headers().get(header::RETRY_AFTER) {
        page.headers_mut().insert(header::RETRY_AFTER, wait.clone());
    }
    page
}

pub(super) async fn show(
    _limit: RateLimit,
    tasks: TaskQueue,
    Path(id): Path<String>,
    accepts: Accepts,
) -> Result<Response, Response> {
    let id = id.parse::<TaskId>().map_err(|_| unknown())?;
    let task = tasks.status(id).await.map_err(IntoResponse::into_response)?;
    let task = task.ok_or_else(unknown)?;
    Ok(match accepts {
        Accepts::Html => views::task_page(&task),
        Accepts::Text => {
            // It changes, and its URL is a secret.
            let head = [(header::VARY, "Accept"), (header::CACHE_CONTROL, "no-store")];
            (head, Json(task)).into_response()
        }
    })
}

fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "there is no such task, or it ended too long ago").into_response()
}

pub(super) async fn events(
    _limit: RateLimit,
    tasks: TaskQueue,
    Path(id): Path<String>,
    last_event_id: LastEventId,
) -> Result<Response, Response> {
    let id = id.parse::<TaskId>().map_err(|_| unknown())?;
    tasks.sse(id, last_event_id).await.map_err(|error| match error {
        Error::NotFound => unknown(),
        other => other.into_response(),
    })
}

pub(super) async fn cancel(
    _limit: RateLimit,
    tasks: TaskQueue,
    Path(id): Path<String>,
) -> Result<StatusCode, Response> {
    let id = id.parse::<TaskId>().map_err(|_| unknown())?;
    match tasks.cancel(id).await.map_err(IntoResponse::into_response)? {
        None => Err(unknown()),
        // Cancelling twice is no error.
        Some(Cancelled::Late) => match tasks.status(id).await.map_err(IntoResponse::into_response)? {
            Some(task) if task.state() != TaskState::Cancelled => {
                Err((StatusCode::CONFLICT, format!("the task is {} already", task.state().name()))
                    .into_response())
            }
            _ => Ok(StatusCode::NO_CONTENT),
        },
        Some(_) => Ok(StatusCode::NO_CONTENT),
    }
}

/// The same for a form, which cannot send DELETE; the task's page shows the result.
pub(super) async fn cancel_form(
    limit: RateLimit,
    tasks: TaskQueue,
    Path(id): Path<String>,
) -> Result<Redirect, Response> {
    match cancel(limit, tasks, Path(id.clone())).await {
        Err(response) if response.status() != StatusCode::CONFLICT => Err(response),
        _ => Ok(Redirect::to(&format!("/tasks/{id}"))),
    }
}
