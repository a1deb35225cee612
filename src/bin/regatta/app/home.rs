//! The front page: for browsers a document, for everyone else one line.

use std::convert::Infallible;

use askama::Template;
use axum::extract::{FromRequestParts, OptionalFromRequestParts, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use regatta::{AuthSession, FleetHandle, PageView, RequestError, SlotSnapshot, Worker};

use crate::app::assets;
use crate::app::tasks::views::{TaskCard, TaskForm};

/// Most lanes that are drawn; a page is no dashboard.
const LANES: usize = 12;

/// Length of a boat and its flag, pixels.
const BOAT_WIDTH: i64 = 124;

pub(super) async fn home(worker: Worker, front: PageReader, Shared(state): Shared<FleetHandle>) -> Response {
    let (view, account) = match front {
        PageReader::Client(view) => {
            let line = format!("PID: {} | Views: {}\n", worker.pid(), view.count());
            return ([(header::VARY, "Accept")], line).into_response();
        }
        PageReader::Browser(view, account) => (view, account),
    };
    // Without one, as while Redis is away, the form is refused with the reason, and the rest of the page is right.
    let token = match account {
        Some(account) => account.csrf_token().await.unwrap_or_default(),
        None => String::new(),
    };
    let slots = state.snapshot().slots;
    let lanes = slot_lanes(&slots, worker.slot());
    let more = slots.iter().filter(|slot| is_in_use(slot)).count().saturating_sub(lanes.len());
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
        trial: TaskForm::default(),
        card: TaskCard::default(),
    };
    match page.render() {
        Ok(page) => {
            let head = [
                (header::VARY, "Accept"),
                // A browser keeps its connection, and with it the worker: closing it lets the next visit meet another.
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
    /// What was counted; `None`: nothing can be counted now, and the page says so.
    figures: Option<ViewFigures>,
    lanes: Vec<SlotLane>,
    more: usize,
    trial: TaskForm<'a>,
    /// What the script copies for each task.
    card: TaskCard,
}

/// The numbers of a counted view.
struct ViewFigures {
    views: String,
    total: String,
    new: bool,
}

/// One slot as a lane of the course.
struct SlotLane {
    number: usize,
    pid: u32,
    /// Who sits in it: a worker, and what keeps it from serving.
    crew: String,
    ready: bool,
    requests: String,
    /// Where its boat is, percent of the lane.
    at: i64,
    /// How much of the boat lies before that, pixels: none at the start, all of it at the finish.
    back: i64,
    yours: bool,
}

/// The first lanes in use, the one that serves in any case; the busiest boat is furthest.
fn slot_lanes(slots: &[SlotSnapshot], serving: usize) -> Vec<SlotLane> {
    let shown = |slot: &&SlotSnapshot| is_in_use(slot) || slot.slot == serving;
    let most = slots.iter().filter(shown).map(SlotSnapshot::requests).max().unwrap_or(0).max(1);
    let lane = |slot: &SlotSnapshot| {
        let at = i64::try_from(slot.requests().saturating_mul(100) / most).unwrap_or(100).min(100);
        SlotLane {
            number: slot.slot,
            pid: slot.pid(),
            crew: match (slot.pid(), slot.state.name()) {
                (0, _) => "no crew".to_owned(),
                (pid, "ready") => pid.to_string(),
                (pid, state) => format!("{pid} {state}"),
            },
            ready: slot.state.name() == "ready",
            requests: grouped(slot.requests()),
            at,
            back: at * BOAT_WIDTH / 100,
            yours: slot.slot == serving,
        }
    };
    let mut drawn: Vec<SlotLane> =
        slots.iter().filter(shown).filter(|slot| slot.slot != serving).take(LANES - 1).map(lane).collect();
    drawn.extend(slots.iter().find(|slot| slot.slot == serving).map(lane));
    drawn.sort_by_key(|lane| lane.number);
    drawn
}

/// Whether a slot has a worker or waits for one; one that was given up has totals only.
pub(super) fn is_in_use(slot: &SlotSnapshot) -> bool {
    slot.pid() != 0 || slot.state.name() != "empty"
}

/// A number with narrow spaces between its thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 2);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            // Narrow, and no line breaks at it.
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// What the front page shows; one use of state, and the visit comes first: all that follows makes use of it.
pub(super) enum PageReader {
    /// For a visitor at a browser, whose forms need a text of their session. Without what Redis does not say now.
    Browser(Option<PageView>, Option<AuthSession>),
    /// For a client that is content with a line, which is nothing but the number: without it there is none.
    Client(PageView),
}

impl<S: Send + Sync> FromRequestParts<S> for PageReader {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, RequestError> {
        if !prefers_html(&parts.headers) {
            return Ok(Self::Client(
                <PageView as FromRequestParts<S>>::from_request_parts(parts, state).await?,
            ));
        }
        let view = <PageView as OptionalFromRequestParts<S>>::from_request_parts(parts, state).await?;
        match AuthSession::from_request_parts(parts, state).await {
            Ok(account) => Ok(Self::Browser(view, Some(account))),
            Err(RequestError::Unavailable { .. }) if view.is_none() => Ok(Self::Browser(None, None)),
            Err(error) => Err(error),
        }
    }
}

/// What the client asks for; an extractor, so that the headers need not be copied for the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepts {
    /// The page.
    Html,
    /// One line of text.
    Text,
}

impl<S: Sync> FromRequestParts<S> for Accepts {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(if prefers_html(&parts.headers) { Self::Html } else { Self::Text })
    }
}

/// Whether the client asks for HTML by name and likes nothing plainer better (RFC 9110 §12.5.1).
///
/// `*/*` is what programs send, so it gets the line.
fn prefers_html(headers: &HeaderMap) -> bool {
    let ranges = || {
        headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
    };
    let quality = |media_type: &str| {
        ranges()
            .filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let named = parts.next()?.eq_ignore_ascii_case(media_type);
                let q = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
                named.then(|| q.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0)))
            })
            .fold(0.0, f32::max)
    };
    let html = quality("text/html").max(quality("application/xhtml+xml"));
    html > 0.0 && html >= quality("text/plain")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_the_page_and_programs_the_line() {
        let cases = [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", true),
            ("text/html", true),
            ("TEXT/HTML; q=0.5", true),
            ("*/*", false),
            ("", false),
            ("text/*", false),
            ("application/json", false),
            ("text/plain, text/html;q=0.5", false),
            ("text/html;q=0", false),
            ("text/html;q=nonsense", false),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(prefers_html(&headers), expected, "{accept}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
    }
}
