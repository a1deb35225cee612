//! `/fleet`: the operators' page, live, with buttons for whoever has the token.
//!
//! Guarantees that nothing is computed while nobody watches and once a second however many do; that the page is whole
//! without a script; and that nothing is changed but by somebody who has shown the token, from a page of this fleet.

mod assets;
mod draw;
mod engine;
mod feed;
mod gate;
mod history;
mod operate;
mod rows;
mod said;
mod supervisor;
mod view;
mod words;
mod work;

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::response::Html;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use http::HeaderValue;
use http::Request;
use http::StatusCode;
use http::header;
use http::request::Parts;
use tokio::sync::Semaphore;

use crate::config::schema::Dashboard as Settings;
use crate::http::exchange::Exchange;
use crate::http::identity::Client;
use crate::http::identity::Transport;
use crate::http::router::Audience;
use crate::http::state::Core;
use crate::http::state::State;
use crate::sys::time;

use assets::PATHS;
use feed::Feed;
use feed::Frame;
use gate::Gate;
use gate::Operator;
use said::Said;
use view::DeadRow;
use view::MachineRow;
use view::SlotRow;
use view::TaskRow;
use view::View;

/// The page's own files and nothing else: no style or script in the document, nothing from elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A worker's operators' page; clones are the same one.
#[derive(Debug, Clone)]
pub struct Dashboard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gate: Gate,
    feed: Feed,
    /// Verdicts that are waited for at once.
    acting: Arc<Semaphore>,
}

/// Verdicts that are waited for at once: each holds a thread for as long.
const ACTING: usize = 4;

impl Dashboard {
    /// With the token as it is now, where a file has it.
    pub fn new(settings: &Settings) -> Self {
        Self(Arc::new(Inner {
            gate: Gate::new(settings),
            feed: Feed::new(),
            acting: Arc::new(Semaphore::new(ACTING)),
        }))
    }
}

/// The page's routes.
pub(super) fn routes() -> Router<State> {
    Router::new()
        .route("/fleet", get(page))
        .route("/fleet/events", get(events))
        .route("/fleet/sign-in", post(operate::sign_in))
        .route("/fleet/sign-out", post(operate::sign_out))
        .route("/fleet/reload", post(operate::reload))
        .route("/fleet/scale", post(operate::scale))
        .route("/fleet/restart", post(operate::restart))
        .merge(assets::routes())
}

/// Who asks, and by which listener.
#[derive(Debug, Clone)]
struct Asker {
    /// As limits know him.
    subject: String,
    /// Whether he came over TLS, as far as somebody trusted says so.
    secure: bool,
    client: Option<Client>,
    audience: Audience,
}

/// Who sent a request at the operators' listener, put there by whoever took it.
#[derive(Debug, Clone)]
pub(super) struct Peer(pub(super) Client);

impl Asker {
    fn of(core: &Core, parts: &Parts) -> Self {
        let (client, audience) = match (parts.extensions.get::<Peer>(), Exchange::of(&parts.extensions)) {
            (Some(Peer(client)), _) => (Some(*client), Audience::Operators),
            (None, exchange) => (exchange.map(|exchange| exchange.client), Audience::Public),
        };
        Self {
            subject: client.map(|client| client.subject(core.config.ipv6_prefix)).unwrap_or_default(),
            secure: client.is_some_and(|client| client.transport == Transport::Tls),
            client,
            audience,
        }
    }
}

/// What the page is about to say to whom.
struct Visit<'a> {
    operator: Option<&'a Operator>,
    said: Option<Said>,
    /// What is wrong with the token that was shown.
    refused: &'a str,
    audience: Audience,
}

async fn page(Shared(State(core)): Shared<State>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let asker = Asker::of(&core, &parts);
    let gate = &core.dashboard.0.gate;
    let operator = gate.operator(&parts.headers, time::unix());
    let told = operator.as_ref().and_then(|operator| gate.told(operator, &parts.headers, asker.secure));
    let (said, forget) = told.unzip();
    let visit = Visit { operator: operator.as_ref(), said, refused: "", audience: asker.audience };
    let mut response = show(&core, &visit).await;
    if let Some(forget) = forget.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        response.headers_mut().append(header::SET_COOKIE, forget);
    }
    response
}

async fn events(Shared(State(core)): Shared<State>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let asker = Asker::of(&core, &parts);
    core.dashboard.0.feed.stream(&core, asker.audience).await
}

/// The whole document.
async fn show(core: &Core, visit: &Visit<'_>) -> Response {
    let dashboard = &core.dashboard.0;
    let frame: Arc<Frame> = dashboard.feed.look(core).await;
    let (slot, machine) = (SlotRow::default(), MachineRow::default());
    let form_token = visit.operator.map(|operator| dashboard.gate.form_token(operator)).unwrap_or_default();
    let page = Page {
        style: &PATHS.style,
        script: &PATHS.script,
        icon: &PATHS.icon,
        host: &core.site.host,
        workers: core.scoreboard.slots(),
        view: &frame.view,
        // What a script makes copies of.
        blank_slots: std::slice::from_ref(&slot),
        blank_machines: std::slice::from_ref(&machine),
        blank_task: &TaskRow::default(),
        blank_dead: &DeadRow::default(),
        signed_in: visit.operator.is_some(),
        form_token: &form_token,
        advice: dashboard.gate.advice(),
        said: visit.said.as_ref(),
        refused: visit.refused,
        has_more: visit.audience == Audience::Operators,
    };
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    match page.render() {
        Ok(text) => (headers, Html(text)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The document's contents.
#[derive(Template)]
#[template(path = "fleet.html")]
struct Page<'a> {
    style: &'a str,
    script: &'a str,
    icon: &'a str,
    host: &'a str,
    /// Slots that are wanted now.
    workers: usize,
    view: &'a View,
    blank_slots: &'a [SlotRow],
    blank_machines: &'a [MachineRow],
    blank_task: &'a TaskRow,
    blank_dead: &'a DeadRow,
    signed_in: bool,
    form_token: &'a str,
    /// Why nobody can sign in.
    advice: Option<String>,
    said: Option<&'a Said>,
    refused: &'a str,
    /// Whether the operators' other paths are here too.
    has_more: bool,
}
