//! The front page: a document for browsers, one line for other clients.

use askama::Template;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use regatta::{FleetHandle, SlotSnapshot, Worker, WorkerState};

use crate::app::assets;
use crate::app::content::{PageReader, grouped};
use crate::app::tasks::views::{TaskCard, TaskForm};

/// Most lanes of a page.
const LANES: usize = 12;

/// Length of a boat and its flag, pixels.
const BOAT_WIDTH: i64 = 124;

pub(super) async fn home(worker: Worker, reader: PageReader, Shared(state): Shared<FleetHandle>) -> Response {
    let (view, session) = match reader {
        PageReader::Client(view) => {
            let line = format!("PID: {} | Views: {}\n", worker.pid(), view.count());
            return ([(header::VARY, "Accept")], line).into_response();
        }
        PageReader::Browser(view, session) => (view, session),
    };
    // Without a token, as while Redis is unavailable, the form is rejected with the reason; the rest of the page works.
    let token = match session {
        Some(session) => session.csrf_token().await.unwrap_or_default(),
        None => String::new(),
    };
    let snapshot = state.snapshot();
    let slots: Vec<&SlotSnapshot> = snapshot.workers().collect();
    let lanes = slot_lanes(&slots, worker.slot());
    let more = slots.len().saturating_sub(lanes.len());
    let page = HomePage {
        style: assets::style_path(),
        script: assets::script_path(),
        token,
        pid: worker.pid(),
        slot: worker.slot(),
        host: worker.host(),
        figures: view.map(|view| ViewFigures {
            // In the digits that the line has, so that both say the same.
            views: view.count().to_string(),
            total: grouped(u64::try_from(view.total()).unwrap_or(0)),
            new: view.is_new(),
        }),
        lanes,
        more,
        task_form: TaskForm::default(),
        card: TaskCard::default(),
    };
    match page.render() {
        Ok(page) => {
            let head = [
                (header::VARY, "Accept"),
                // A kept connection stays with its worker; without it the next request may reach another one.
                (header::CONNECTION, "close"),
                (header::CONTENT_SECURITY_POLICY, assets::LIVE_POLICY),
            ];
            (head, Html(page)).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The document's contents.
#[derive(Template)]
#[template(path = "home.html")]
struct HomePage<'a> {
    style: String,
    script: String,
    token: String,
    pid: u32,
    slot: usize,
    host: &'a str,
    /// `None` while Redis is unavailable: nothing is counted, and the page says so.
    figures: Option<ViewFigures>,
    lanes: Vec<SlotLane>,
    more: usize,
    task_form: TaskForm<'a>,
    /// The script clones it for each task.
    card: TaskCard,
}

/// The numbers of a counted view.
struct ViewFigures {
    views: String,
    total: String,
    new: bool,
}

/// One slot as a lane of the picture.
struct SlotLane {
    number: usize,
    pid: u32,
    /// The slot's worker, and its state unless it is ready.
    worker: String,
    ready: bool,
    requests: String,
    /// Position of its boat, percent of the lane.
    at: i64,
    /// How much of the boat is left of that position, pixels: none at the start, all of it at the finish.
    back: i64,
    yours: bool,
}

/// The first slots in use and the serving one; the boat of the slot with most requests is furthest.
fn slot_lanes(slots: &[&SlotSnapshot], serving: usize) -> Vec<SlotLane> {
    let most = slots.iter().map(|slot| slot.requests()).max().unwrap_or(0).max(1);
    let lane = |slot: &&SlotSnapshot| {
        let at = i64::try_from(slot.requests().saturating_mul(100) / most).unwrap_or(100).min(100);
        SlotLane {
            number: slot.slot(),
            pid: slot.pid().unwrap_or(0),
            worker: match (slot.pid(), slot.state()) {
                (None, _) => "no worker".to_owned(),
                (Some(pid), WorkerState::Ready) => pid.to_string(),
                (Some(pid), state) => format!("{pid} {}", state.name()),
            },
            ready: slot.state() == WorkerState::Ready,
            requests: grouped(slot.requests()),
            at,
            back: at * BOAT_WIDTH / 100,
            yours: slot.slot() == serving,
        }
    };
    let mut drawn: Vec<SlotLane> =
        slots.iter().filter(|slot| slot.slot() != serving).take(LANES - 1).map(lane).collect();
    drawn.extend(slots.iter().find(|slot| slot.slot() == serving).map(lane));
    drawn.sort_by_key(|lane| lane.number);
    drawn
}
