//! The document, and its stream of updates.

use std::sync::Arc;

use askama::Template;
use axum::body::Body;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::{HeaderValue, Request, StatusCode, header};

use crate::http::dashboard::assets::ASSET_PATHS;
use crate::http::dashboard::auth::OperatorSession;
use crate::http::dashboard::feed::DashboardFrame;
use crate::http::dashboard::flash::FlashMessage;
use crate::http::dashboard::request::DashboardRequest;
use crate::http::dashboard::services::DashboardState;
use crate::http::dashboard::view_model::{DashboardView, DeadTaskView, InstanceView, SlotView, TaskView};
use crate::sys::clock;

/// The page's own files and nothing else: no inline style or script, nothing of another origin.
const PAGE_CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What a page depends on beside the fleet.
pub(super) struct PageContext<'a> {
    pub(super) operator: Option<&'a OperatorSession>,
    pub(super) flash: Option<FlashMessage>,
    /// Why the sign-in before this page failed; empty if there was none.
    pub(super) sign_in_error: &'a str,
    pub(super) from_admin_listener: bool,
}

pub(super) async fn page(State(state): State<DashboardState>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let dashboard_request = DashboardRequest::from_parts(&state.sources, &parts);
    let auth = &state.services.auth;
    let session = auth.authenticate(&parts.headers, clock::wall_clock());
    let flash = session
        .as_ref()
        .and_then(|operator| auth.take_flash(operator, &parts.headers, dashboard_request.secure));
    let (flash, removal_cookie) = flash.unzip();
    let context = PageContext {
        operator: session.as_ref(),
        flash,
        sign_in_error: "",
        from_admin_listener: dashboard_request.from_admin_listener,
    };
    let mut response = render_page(&state, &context).await;
    if let Some(removal_cookie) = removal_cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        response.headers_mut().append(header::SET_COOKIE, removal_cookie);
    }
    response
}

pub(super) async fn events(State(state): State<DashboardState>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let from_admin_listener = DashboardRequest::from_parts(&state.sources, &parts).from_admin_listener;
    state.services.feed.stream(&state.sources, from_admin_listener).await
}

/// The whole document.
pub(super) async fn render_page(state: &DashboardState, context: &PageContext<'_>) -> Response {
    let DashboardState { services, sources } = state;
    let frame: Arc<DashboardFrame> = services.feed.current_frame(sources).await;
    let (slot, instance) = (SlotView::default(), InstanceView::default());
    let form_token = context.operator.map(|operator| services.auth.csrf_token(operator)).unwrap_or_default();
    let page = DashboardPage {
        style: &ASSET_PATHS.style,
        script: &ASSET_PATHS.script,
        icon: &ASSET_PATHS.icon,
        host: &sources.admin.instance.host,
        workers: sources.admin.scoreboard.slots(),
        view: &frame.view,
        blank_slots: std::slice::from_ref(&slot),
        blank_instances: std::slice::from_ref(&instance),
        blank_task: &TaskView::default(),
        blank_dead: &DeadTaskView::default(),
        signed_in: context.operator.is_some(),
        form_token: &form_token,
        advice: services.auth.advice(),
        flash: context.flash.as_ref(),
        sign_in_error: context.sign_in_error,
        has_admin_routes: context.from_admin_listener,
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
    /// The desired number of slots.
    workers: usize,
    view: &'a DashboardView,
    // Empty rows, which the script clones.
    blank_slots: &'a [SlotView],
    blank_instances: &'a [InstanceView],
    blank_task: &'a TaskView,
    blank_dead: &'a DeadTaskView,
    signed_in: bool,
    form_token: &'a str,
    /// What to change so that operators can sign in; `None` if they can.
    advice: Option<String>,
    flash: Option<&'a FlashMessage>,
    sign_in_error: &'a str,
    /// Whether `/fleet.json`, `/metrics` and `/readyz` are at this listener too.
    has_admin_routes: bool,
}
