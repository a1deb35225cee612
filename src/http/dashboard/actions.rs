//! The page's buttons: forms that become commands to the supervisor, over its control socket as on the command line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use http::request::Parts;
use http::{HeaderValue, Request as HttpRequest, StatusCode, header};
use tokio::time::timeout;
use url::form_urlencoded;

use crate::control::protocol::ControlRequest;
use crate::http::dashboard::auth::{DashboardAuth, OperatorSession, SignInError};
use crate::http::dashboard::flash::FlashMessage;
use crate::http::dashboard::page::PageContext;
use crate::http::dashboard::request::DashboardRequest;
use crate::http::dashboard::services::DashboardState;
use crate::http::dashboard::sources::DashboardSources;
use crate::http::dashboard::{page, supervisor_client};
use crate::http::origin_check;
use crate::http::problem::Problem;
use crate::sys::clock;

/// Largest form, bytes.
const FORM_MAX: usize = 4096;

/// Longest wait for a form.
const FORM_TIMEOUT: Duration = Duration::from_secs(5);

/// A form's fields by name.
type FormFields = BTreeMap<String, String>;

/// Signs in an operator who sends the token.
pub(super) async fn sign_in(State(state): State<DashboardState>, request: HttpRequest<Body>) -> Response {
    let (parts, fields) = match read_form(&state.sources, request).await {
        Ok(read) => read,
        Err(refusal) => return refusal,
    };
    let (dashboard_request, auth) =
        (DashboardRequest::from_parts(&state.sources, &parts), &state.services.auth);
    let presented = fields.get("operators-token").map_or("", String::as_str);
    match auth.sign_in(presented, &dashboard_request.subject, clock::monotonic(), clock::wall_clock()) {
        Ok(operator) => {
            tracing::info!(client = %dashboard_request.subject, "operator signed in at the dashboard");
            redirect_to_page(&[auth.session_cookie(&operator, dashboard_request.secure)])
        }
        Err(denied) => {
            tracing::warn!(client = %dashboard_request.subject, reason = ?denied, "dashboard sign-in rejected");
            sign_in_failed(&state, &denied, &dashboard_request).await
        }
    }
}

/// The page again, with the reason.
async fn sign_in_failed(
    state: &DashboardState,
    sign_in_error: &SignInError,
    dashboard_request: &DashboardRequest,
) -> Response {
    let (status, message) = match sign_in_error {
        SignInError::Disabled => (StatusCode::FORBIDDEN, "There is no token to sign in with.".to_owned()),
        SignInError::WrongToken => (StatusCode::FORBIDDEN, "That is not the token.".to_owned()),
        SignInError::RateLimited(seconds) => {
            let text = format!("Too many wrong tokens came from your address; try again in {seconds} s.");
            (StatusCode::TOO_MANY_REQUESTS, text)
        }
    };
    let context = PageContext {
        operator: None,
        flash: None,
        sign_in_error: &message,
        from_admin_listener: dashboard_request.from_admin_listener,
    };
    let mut response = page::render_page(state, &context).await;
    *response.status_mut() = status;
    if let SignInError::RateLimited(seconds) = sign_in_error {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
    }
    response
}

/// Removes the cookie.
pub(super) async fn sign_out(State(state): State<DashboardState>, request: HttpRequest<Body>) -> Response {
    match authenticate(&state, request).await {
        Ok((parts, ..)) => redirect_to_page(&[DashboardAuth::removal_cookie(
            DashboardRequest::from_parts(&state.sources, &parts).secure,
        )]),
        Err(refusal) => refusal,
    }
}

/// Reads the configuration again and replaces the workers.
pub(super) async fn reload(State(state): State<DashboardState>, request: HttpRequest<Body>) -> Response {
    run_command(&state, request, |_| Ok(ControlRequest::Reload { wait: true })).await
}

/// Changes the number of workers.
pub(super) async fn scale(State(state): State<DashboardState>, request: HttpRequest<Body>) -> Response {
    let command = |fields: &FormFields| match parse_number(fields, "workers")? {
        0 => Err("workers must be at least 1".to_owned()),
        workers => Ok(ControlRequest::Scale { workers, wait: true }),
    };
    run_command(&state, request, command).await
}

/// Replaces the worker of a slot.
pub(super) async fn restart(State(state): State<DashboardState>, request: HttpRequest<Body>) -> Response {
    let command =
        |fields: &FormFields| Ok(ControlRequest::Restart { slot: parse_number(fields, "slot")?, wait: true });
    run_command(&state, request, command).await
}

fn parse_number(fields: &FormFields, name: &str) -> Result<usize, String> {
    let text = fields.get(name).map_or("", |text| text.trim());
    text.parse().map_err(|_| format!("{name} must be a number"))
}

/// Sends a command to the supervisor; the page that follows shows its result.
async fn run_command(
    state: &DashboardState,
    request: HttpRequest<Body>,
    command: impl FnOnce(&FormFields) -> Result<ControlRequest, String>,
) -> Response {
    let (parts, operator, fields) = match authenticate(state, request).await {
        Ok(authenticated) => authenticated,
        Err(refusal) => return refusal,
    };
    let command = match command(&fields) {
        Ok(command) => command,
        Err(reason) => return Problem::new(StatusCode::BAD_REQUEST, reason).into_response(),
    };
    let Ok(permit) = Arc::clone(&state.services.command_permits).try_acquire_owned() else {
        return Problem::reduced_capacity("too many commands are pending at this worker", 5).into_response();
    };
    let dashboard_request = DashboardRequest::from_parts(&state.sources, &parts);
    let client = &dashboard_request.subject;
    tracing::info!(%client, command = command.command(), "operator command from the dashboard");
    let run_dir = state.sources.run_dir.clone();
    // The thread holds the permit: a client that disconnects must not give it back while the thread runs.
    let flash = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        supervisor_client::run_command(&run_dir, &command)
    });
    let flash = flash.await;
    let flash =
        flash.unwrap_or_else(|_| FlashMessage::failed("the command was not sent: an error in the dashboard"));
    redirect_to_page(&[state.services.auth.flash_cookie(&operator, &flash, dashboard_request.secure)])
}

/// The operator who sent a form, and its fields.
async fn authenticate(
    state: &DashboardState,
    request: HttpRequest<Body>,
) -> Result<(Parts, OperatorSession, FormFields), Response> {
    let (parts, fields) = read_form(&state.sources, request).await?;
    let auth = &state.services.auth;
    let refuse = |reason: String| Problem::new(StatusCode::FORBIDDEN, reason).into_response();
    if let Some(advice) = auth.advice() {
        return Err(refuse(format!("the dashboard has no buttons: {advice}")));
    }
    let Some(operator) = auth.authenticate(&parts.headers, clock::wall_clock()) else {
        return Err(refuse("sign in first".to_owned()));
    };
    let token = fields.get("form-token").map_or("", String::as_str);
    if !auth.verify_csrf_token(&operator, token) {
        return Err(refuse("this form is too old or not from here; open the page again".to_owned()));
    }
    // Behind a load balancer the page may come from another instance than this one.
    let own_id = state.sources.admin.instance.instance_id(&state.sources.admin.scoreboard);
    if fields.get("instance") != Some(&own_id) {
        let reason = "this form is of another instance's page; open the page at that instance's own address";
        return Err(Problem::new(StatusCode::CONFLICT, reason).into_response());
    }
    Ok((parts, operator, fields))
}

/// A form that no page of another site sent.
async fn read_form(
    sources: &DashboardSources,
    request: HttpRequest<Body>,
) -> Result<(Parts, FormFields), Response> {
    let (parts, body) = request.into_parts();
    let refuse = |status, reason: &str| Problem::new(status, reason).into_response();
    let dashboard_request = DashboardRequest::from_parts(sources, &parts);
    if !origin_check::is_same_origin(&parts.headers, &parts.uri, dashboard_request.client.as_ref(), &[]) {
        return Err(refuse(StatusCode::FORBIDDEN, "another site sent this request"));
    }
    let kind =
        parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form"));
    }
    match timeout(FORM_TIMEOUT, to_bytes(body, FORM_MAX)).await {
        Ok(Ok(bytes)) => Ok((parts, form_urlencoded::parse(&bytes).into_owned().collect())),
        Ok(Err(_)) => Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "a form here has at most 4096 bytes")),
        Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "the form did not arrive in time")),
    }
}

/// To the page (303), with these cookies.
fn redirect_to_page(cookies: &[String]) -> Response {
    let mut response = Redirect::to("/fleet").into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for cookie in cookies.iter().filter_map(|cookie| HeaderValue::try_from(cookie.as_str()).ok()) {
        headers.append(header::SET_COOKIE, cookie);
    }
    response
}
