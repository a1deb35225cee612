//! Background tasks: started by a visitor, done by any worker of any machine, looked at and cancelled by their id.
//!
//! An id cannot be guessed: the one who has it may look at the task and cancel it, as with a secret link.

use std::ops::ControlFlow;

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::Request;
use axum::extract::State as Shared;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use regatta::Cancelled;
use regatta::Error;
use regatta::Limit;
use regatta::Progress;
use regatta::State;
use regatta::TaskId;
use regatta::TaskState;
use regatta::Tasks;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;

use crate::app::forms::Sent;
use crate::app::home::Wanted;
use crate::app::task_pages;
use crate::app::work;

/// What can be asked for.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Kind {
    #[serde(rename = "kind")]
    pub(super) name: &'static str,
    #[serde(skip)]
    pub(super) label: &'static str,
    /// In front of the number.
    #[serde(skip)]
    pub(super) title: &'static str,
    /// Largest number.
    pub(super) max: u32,
}

/// Bounded by what a result takes of everybody's Redis, 21 KB, and by what a task takes of a core.
pub(super) const KINDS: [Kind; 2] = [
    Kind { name: "fibonacci", label: "Fibonacci", title: "Fibonacci number", max: 100_000 },
    Kind { name: "primes", label: "Primes", title: "Primes below", max: 20_000_000 },
];

/// What a job is told.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
struct Input {
    n: u32,
}

#[derive(Debug, Serialize)]
struct Fibonacci {
    n: u32,
    digits: usize,
    /// Every digit: as a number, readers of JSON would round it.
    value: String,
}

#[derive(Debug, Serialize)]
struct Primes {
    n: u32,
    count: u32,
}

/// Tells the fleet's workers how each kind is done.
pub(super) fn register(tasks: &Tasks) {
    let [fibonacci, primes] = &KINDS;
    tasks.register(fibonacci.name, |Input { n }, progress: &Progress| {
        let value = work::fibonacci(n, |percent| watch(progress, percent)).ok_or(STOPPED)?.to_string();
        Ok::<_, &str>(Fibonacci { n, digits: value.len(), value })
    });
    tasks.register(primes.name, |Input { n }, progress: &Progress| {
        let count = work::primes(n, |percent| watch(progress, percent)).ok_or(STOPPED)?;
        Ok::<_, &str>(Primes { n, count })
    });
}

/// The reason of a job that no one needs any more, and that no one reads.
const STOPPED: &str = "it was stopped";

fn watch(progress: &Progress, percent: u8) -> ControlFlow<()> {
    progress.percent(percent);
    if progress.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// What a start sends.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wish {
    pub(super) kind: String,
    pub(super) n: u64,
}

impl Wish {
    /// What it asks for, or what is wrong with it.
    fn read(&self) -> Result<(&'static Kind, Input), String> {
        let Some(kind) = KINDS.iter().find(|kind| kind.name == self.kind) else {
            let names = KINDS.map(|kind| kind.name).join(", ");
            return Err(format!("there is no such kind of task; there are {names}"));
        };
        match u32::try_from(self.n) {
            Ok(n) if n <= kind.max => Ok((kind, Input { n })),
            _ => Err(format!("n is {}; {} allows 0 to {}", self.n, kind.name, kind.max)),
        }
    }
}

/// What may be asked for.
pub(super) async fn page(wanted: Wanted) -> Response {
    match wanted {
        Wanted::Document => task_pages::form(&Wish::default(), None),
        Wanted::Line => ([(header::VARY, "Accept")], Json(&KINDS)).into_response(),
    }
}

pub(super) async fn start(
    _limit: Limit,
    tasks: Tasks,
    wanted: Wanted,
    request: Request<Body>,
) -> Result<Response, Response> {
    let (wish, by_form) = match Sent::<Wish>::read(request).await? {
        Sent::Form(wish) => (wish, true),
        Sent::Json(wish) => (wish, false),
        Sent::Nothing => return Err((StatusCode::BAD_REQUEST, "say a kind and n").into_response()),
    };
    let begun = match wish.read() {
        Ok((kind, input)) => tasks.enqueue(kind.name, &input).await.map_err(|error| {
            let error = Error::from(error);
            (error.to_string(), error.into_response())
        }),
        Err(fault) => Err((fault.clone(), (StatusCode::BAD_REQUEST, fault).into_response())),
    };
    let id = begun.map_err(|(why, plain)| refused(&wish, wanted, &why, plain))?;
    let place = format!("/tasks/{id}");
    Ok(match (wanted, by_form) {
        (Wanted::Document, true) => Redirect::to(&place).into_response(),
        _ => {
            let task = json!({"id": id, "kind": wish.kind, "n": wish.n, "state": "queued"});
            (StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(task)).into_response()
        }
    })
}

/// A refusal; for a browser the form once more, with the reason in it.
fn refused(wish: &Wish, wanted: Wanted, why: &str, plain: Response) -> Response {
    if wanted == Wanted::Line {
        return plain;
    }
    let mut page = task_pages::form(wish, Some(why));
    *page.status_mut() = plain.status();
    if let Some(wait) = plain.headers().get(header::RETRY_AFTER) {
        page.headers_mut().insert(header::RETRY_AFTER, wait.clone());
    }
    page
}

pub(super) async fn look(
    _limit: Limit,
    tasks: Tasks,
    Path(id): Path<String>,
    wanted: Wanted,
) -> Result<Response, Response> {
    let id = id.parse::<TaskId>().map_err(|_| unknown())?;
    let task = tasks.look(&id).await.map_err(|error| Error::from(error).into_response())?;
    let task = task.ok_or_else(unknown)?;
    Ok(match wanted {
        Wanted::Document => task_pages::task(&task),
        Wanted::Line => {
            // It changes, and is for the one who knows its id.
            let head = [(header::VARY, "Accept"), (header::CACHE_CONTROL, "no-store")];
            (head, Json(task)).into_response()
        }
    })
}

fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "there is no such task, or it ended too long ago").into_response()
}

pub(super) async fn events(
    _limit: Limit,
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let id = id.parse::<TaskId>().map_err(|_| unknown())?;
    let events = state.task_events(&id, &headers).await.map_err(IntoResponse::into_response)?;
    events.ok_or_else(unknown)
}

pub(super) async fn cancel(
    _limit: Limit,
    tasks: Tasks,
    Path(id): Path<String>,
) -> Result<StatusCode, Response> {
    let id = id.parse::<TaskId>().map_err(|_| unknown())?;
    let failed = |error| Error::from(error).into_response();
    match tasks.cancel(&id).await.map_err(failed)? {
        Some(Cancelled::Queued | Cancelled::Running) => Ok(StatusCode::NO_CONTENT),
        None => Err(unknown()),
        // Saying it twice is no mistake.
        Some(Cancelled::Late) => match tasks.look(&id).await.map_err(failed)? {
            Some(task) if task.state != TaskState::Cancelled => {
                Err((StatusCode::CONFLICT, format!("the task is {} already", task.state.name()))
                    .into_response())
            }
            _ => Ok(StatusCode::NO_CONTENT),
        },
    }
}

/// The same for a form, which cannot send DELETE; its page shows what came of it.
pub(super) async fn cancel_form(
    limit: Limit,
    tasks: Tasks,
    Path(id): Path<String>,
) -> Result<Redirect, Response> {
    match cancel(limit, tasks, Path(id.clone())).await {
        Err(response) if response.status() != StatusCode::CONFLICT => Err(response),
        _ => Ok(Redirect::to(&format!("/tasks/{id}"))),
    }
}
