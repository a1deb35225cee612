//! `/fleet`: the operators' page, live, with buttons for whoever has the token.
//!
//! Guarantees that nothing is computed while nobody watches and once a second however many do; that the page is whole
//! without a script; and that nothing is changed but by somebody who has shown the token, from a page of this fleet.

mod actions;
mod assets;
mod auth;
mod collector;
mod feed;
mod flash;
mod formatting;
mod metric_history;
mod presenter;
mod queue_view;
mod slot_view;
mod supervisor_client;
mod view_model;

use std::sync::Arc;

use askama::Template;
use assets::ASSET_PATHS;
use auth::{DashboardAuth, OperatorSession};
use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use feed::{DashboardFeed, DashboardFrame};
use flash::FlashMessage;
use http::request::Parts;
use http::{HeaderValue, Request, StatusCode, header};
use tokio::sync::Semaphore;
use view_model::{DashboardView, DeadTaskView, InstanceView, SlotView, TaskView};

use crate::config::settings::DashboardConfig as Settings;
use crate::http::real_ip::{ClientInfo, ClientTransport};
use crate::http::request_state::RequestState;
use crate::http::service::ListenerRole;
use crate::http::service::context::{FleetHandle, WorkerContext};
use crate::sys::clock;

/// The page's own files and nothing else: no style or script in the document, nothing from elsewhere.
const PAGE_CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A worker's operators' page; clones are the same one.
#[derive(Debug, Clone)]
pub struct Dashboard(Arc<DashboardServices>);

#[derive(Debug)]
struct DashboardServices {
    auth: DashboardAuth,
    feed: DashboardFeed,
    /// Verdicts that are waited for at once.
    command_permits: Arc<Semaphore>,
}

/// Verdicts that are waited for at once: each holds a thread for as long.
const PENDING_COMMANDS_MAX: usize = 4;

impl Dashboard {
    /// With the token as it is now, where a file has it.
    pub fn new(settings: &Settings) -> Self {
        Self(Arc::new(DashboardServices {
            auth: DashboardAuth::new(settings),
            feed: DashboardFeed::new(),
            command_permits: Arc::new(Semaphore::new(PENDING_COMMANDS_MAX)),
        }))
    }
}

/// The page's routes.
pub(super) fn routes() -> Router<FleetHandle> {
    Router::new()
        .route("/fleet", get(page))
        .route("/fleet/events", get(events))
        .route("/fleet/sign-in", post(actions::sign_in))
        .route("/fleet/sign-out", post(actions::sign_out))
        .route("/fleet/reload", post(actions::reload))
        .route("/fleet/scale", post(actions::scale))
        .route("/fleet/restart", post(actions::restart))
        .merge(assets::routes())
}

/// Who asks, and by which listener.
#[derive(Debug, Clone)]
struct DashboardRequest {
    /// As limits know him.
    subject: String,
    /// Whether he came over TLS, as far as somebody trusted says so.
    secure: bool,
    client: Option<ClientInfo>,
    role: ListenerRole,
}

/// Who sent a request at the operators' listener, put there by whoever took it.
#[derive(Debug, Clone)]
pub(super) struct AdminPeer(pub(super) ClientInfo);

impl DashboardRequest {
    fn from_parts(core: &WorkerContext, parts: &Parts) -> Self {
        let (client, role) =
            match (parts.extensions.get::<AdminPeer>(), RequestState::from_extensions(&parts.extensions)) {
                (Some(AdminPeer(client)), _) => (Some(*client), ListenerRole::Admin),
                (None, state) => (state.map(|exchange| exchange.client), ListenerRole::Public),
            };
        Self {
            subject: client.map(|client| client.limit_subject(core.config.ipv6_prefix)).unwrap_or_default(),
            secure: client.is_some_and(|client| client.transport == ClientTransport::Tls),
            client,
            role,
        }
    }
}

/// What the page is about to say to whom.
struct PageContext<'a> {
    operator: Option<&'a OperatorSession>,
    flash: Option<FlashMessage>,
    /// What is wrong with the token that was shown.
    sign_in_error: &'a str,
    role: ListenerRole,
}

async fn page(Shared(FleetHandle(core)): Shared<FleetHandle>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let dashboard_request = DashboardRequest::from_parts(&core, &parts);
    let auth = &core.dashboard.0.auth;
    let session = auth.authenticate(&parts.headers, clock::wall_clock());
    let flash = session
        .as_ref()
        .and_then(|operator| auth.take_flash(operator, &parts.headers, dashboard_request.secure));
    let (flash, removal_cookie) = flash.unzip();
    let context =
        PageContext { operator: session.as_ref(), flash, sign_in_error: "", role: dashboard_request.role };
    let mut response = render_page(&core, &context).await;
    if let Some(removal_cookie) = removal_cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        response.headers_mut().append(header::SET_COOKIE, removal_cookie);
    }
    response
}

async fn events(Shared(FleetHandle(core)): Shared<FleetHandle>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let dashboard_request = DashboardRequest::from_parts(&core, &parts);
    core.dashboard.0.feed.stream(&core, dashboard_request.role).await
}

/// The whole document.
async fn render_page(core: &WorkerContext, context: &PageContext<'_>) -> Response {
    let dashboard = &core.dashboard.0;
    let frame: Arc<DashboardFrame> = dashboard.feed.current_frame(core).await;
    let (slot, instance) = (SlotView::default(), InstanceView::default());
    let form_token = context.operator.map(|operator| dashboard.auth.csrf_token(operator)).unwrap_or_default();
    let page = DashboardPage {
        style: &ASSET_PATHS.style,
        script: &ASSET_PATHS.script,
        icon: &ASSET_PATHS.icon,
        host: &core.instance.host,
        workers: core.scoreboard.slots(),
        view: &frame.view,
        // What a script makes copies of.
        blank_slots: std::slice::from_ref(&slot),
        blank_instances: std::slice::from_ref(&instance),
        blank_task: &TaskView::default(),
        blank_dead: &DeadTaskView::default(),
        signed_in: context.operator.is_some(),
        form_token: &form_token,
        advice: dashboard.auth.advice(),
        flash: context.flash.as_ref(),
        sign_in_error: context.sign_in_error,
        has_more: context.role == ListenerRole::Admin,
    };
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::CONTENT_SECURITY_POLICY, PAGE_CSP)];
    match page.render() {
        Ok(text) => (headers, Html(text)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The document's contents.
#[derive(Template)]
#[template(path = "fleet.html")]
struct DashboardPage<'a> {
    style: &'a str,
    script: &'a str,
    icon: &'a str,
    host: &'a str,
    /// Slots that are wanted now.
    workers: usize,
    view: &'a DashboardView,
    blank_slots: &'a [SlotView],
    blank_instances: &'a [InstanceView],
    blank_task: &'a TaskView,
    blank_dead: &'a DeadTaskView,
    signed_in: bool,
    form_token: &'a str,
    /// Why nobody can sign in.
    advice: Option<String>,
    flash: Option<&'a FlashMessage>,
    sign_in_error: &'a str,
    /// Whether the operators' other paths are here too.
    has_more: bool,
}
