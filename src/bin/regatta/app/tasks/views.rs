//! Pages of tasks: the form that starts one, and one task.

use std::time::SystemTime;

use askama::Template;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use regatta::task::{TaskState, TaskStatus};
use serde::Deserialize;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::app::assets;
use crate::app::auth::render_page;
use crate::app::content::grouped;
use crate::app::tasks::{StartParams, TASK_KINDS, TaskKind};

/// The proposed number: it takes a second or two, so that progress can be seen.
const PROPOSED: u64 = 500_000;

/// Characters of the longest result that is shown whole.
const SHORT: usize = 60;

/// Characters that are shown of both ends of a longer one.
const END: usize = 16;

/// The form that starts a task.
#[derive(Debug, Template)]
#[template(path = "task_form.html")]
pub(crate) struct TaskForm<'a> {
    kinds: &'static [TaskKind],
    kind: &'a str,
    n: u64,
    max: u32,
    error: Option<&'a str>,
}

impl Default for TaskForm<'_> {
    fn default() -> Self {
        let max = TASK_KINDS.iter().map(|kind| kind.max).max().unwrap_or(0);
        Self { kinds: &TASK_KINDS, kind: TASK_KINDS[0].name, n: PROPOSED, max, error: None }
    }
}

#[derive(Template)]
#[template(path = "task_form_page.html")]
struct TaskFormPage<'a> {
    style: String,
    task_form: TaskForm<'a>,
}

/// The form; a rejected one has the values that were sent.
pub(crate) fn form(params: &StartParams, error: Option<&str>) -> Response {
    let task_form = match error {
        None => TaskForm::default(),
        Some(_) => TaskForm { kind: &params.kind, n: params.n, error, ..TaskForm::default() },
    };
    render_page(&TaskFormPage { style: assets::style_path(), task_form }, StatusCode::OK)
}

/// A task on a page; the script fills an empty one.
#[derive(Debug, Default, Template)]
#[template(path = "card.html")]
pub(crate) struct TaskCard {
    id: String,
    title: String,
    state: &'static str,
    /// State, worker and attempt in words.
    status_text: String,
    percent: u8,
    outcome: String,
    finished: bool,
}

#[derive(Template)]
#[template(path = "task.html")]
struct TaskPage {
    style: String,
    script: String,
    card: TaskCard,
    /// A result that is too long for the card.
    whole: Option<String>,
    when: String,
}

/// A result of any kind.
#[derive(Debug, Default, Deserialize)]
struct TaskResultView {
    n: Option<u64>,
    value: Option<String>,
    count: Option<u64>,
}

/// A task's page.
pub(crate) fn task_page(task: &TaskStatus) -> Response {
    let outcome: TaskResultView = task.output().ok().flatten().unwrap_or_default();
    let card = card(task, &outcome);
    let whole = outcome.value.filter(|value| value.len() >= SHORT);
    let (style, script) = (assets::style_path(), assets::script_path());
    let page = TaskPage { style, script, card, whole, when: timing(task) };
    let mut response = render_page(&page, StatusCode::OK);
    let headers = response.headers_mut();
    let policy = HeaderValue::from_static(assets::LIVE_POLICY);
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn card(task: &TaskStatus, outcome: &TaskResultView) -> TaskCard {
    let kind = TASK_KINDS.iter().find(|kind| kind.name == task.name());
    let mut title = kind.map_or(task.name(), |kind| kind.title).to_owned();
    if let Some(n) = outcome.n {
        title = format!("{title} {}", grouped(n));
    }
    let mut status_text = task.state().name().to_owned();
    if let Some(worker) =
        task.worker().filter(|_| !matches!(task.state(), TaskState::Waiting | TaskState::Scheduled))
    {
        status_text = format!("{status_text} in worker {worker}");
    }
    if task.attempts() > 1 {
        status_text = format!("{status_text}, attempt {}", task.attempts());
    }
    TaskCard {
        id: task.id().to_string(),
        title,
        state: task.state().name(),
        status_text,
        percent: task.percent(),
        outcome: task.error().map(str::to_owned).unwrap_or_else(|| outcome.short()),
        finished: task.state().is_final(),
    }
}

impl TaskResultView {
    fn short(&self) -> String {
        match (&self.value, self.count) {
            // Digits are one byte each; other text is shown whole, so no character is cut.
            (Some(value), _) if value.len() >= SHORT && value.is_ascii() => {
                let (first, last) = (&value[..END], &value[value.len() - END..]);
                format!("{first}…{last} ({} digits)", grouped(value.len() as u64))
            }
            (Some(value), _) => value.clone(),
            (None, Some(count)) => format!("{} primes", grouped(count)),
            (None, None) => String::new(),
        }
    }
}

fn timing(task: &TaskStatus) -> String {
    let took = |started: SystemTime, finished: SystemTime| {
        let ms = finished.duration_since(started).unwrap_or_default().as_millis();
        format!(", and took {} ms", grouped(u64::try_from(ms).unwrap_or(u64::MAX)))
    };
    let at = OffsetDateTime::from(task.created_at());
    let written = at.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC"));
    let took =
        task.started_at().zip(task.finished_at()).map_or_else(String::new, |(from, to)| took(from, to));
    format!("Started at {}{took}.", written.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_results_are_shown_by_their_ends() {
        let outcome =
            |value: &str| TaskResultView { value: Some(value.to_owned()), ..TaskResultView::default() };
        assert_eq!(outcome("55").short(), "55");
        let long = format!("{}{}", "1".repeat(40), "2".repeat(1200));
        let expected = format!("{}…{} (1\u{202f}240 digits)", "1".repeat(16), "2".repeat(16));
        assert_eq!(outcome(&long).short(), expected);
        assert_eq!(
            TaskResultView { count: Some(1229), ..TaskResultView::default() }.short(),
            "1\u{202f}229 primes"
        );
        assert_eq!(TaskResultView::default().short(), "");
    }
}
