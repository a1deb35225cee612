//! The page's buttons. Whatever they change is done by the supervisor, which is asked as a command line asks it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::body::to_bytes;
use axum::extract::State as Shared;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use http::HeaderValue;
use http::Request as HttpRequest;
use http::StatusCode;
use http::header;
use http::request::Parts;
use tokio::time::timeout;
use url::form_urlencoded;

use crate::control::protocol::Request;
use crate::http::dashboard;
use crate::http::dashboard::Asker;
use crate::http::dashboard::Visit;
use crate::http::dashboard::gate::Denied;
use crate::http::dashboard::gate::Gate;
use crate::http::dashboard::gate::Operator;
use crate::http::dashboard::said::Said;
use crate::http::dashboard::supervisor;
use crate::http::origin;
use crate::http::problem::Problem;
use crate::http::state::Core;
use crate::http::state::State;
use crate::sys::time;

/// Largest form, bytes: a token and a few words.
const FORM_MAX: usize = 4096;

/// Longest wait for it.
const FORM_TIME: Duration = Duration::from_secs(5);

/// A form's fields by name.
type Fields = BTreeMap<String, String>;

/// Signs in whoever sends the token.
pub(super) async fn sign_in(Shared(State(core)): Shared<State>, request: HttpRequest<Body>) -> Response {
    let (parts, fields) = match read(request).await {
        Ok(read) => read,
        Err(refusal) => return refusal,
    };
    let (asker, gate) = (Asker::of(&parts), &core.dashboard.0.gate);
    let shown = fields.get("operators-token").map_or("", String::as_str);
    match gate.admit(shown, &asker.subject, time::monotonic(), time::unix()) {
        Ok(operator) => {
            tracing::info!(client = %asker.subject, "an operator has signed in at the dashboard");
            to_page(&[gate.give(&operator, asker.secure)])
        }
        Err(denied) => {
            tracing::warn!(client = %asker.subject, reason = ?denied, "nobody was let in at the dashboard");
            refuse(&core, &denied, &asker).await
        }
    }
}

/// The page again, with what was wrong.
async fn refuse(core: &Core, denied: &Denied, asker: &Asker) -> Response {
    let (status, refused) = match denied {
        Denied::Closed => (StatusCode::FORBIDDEN, "There is no token to sign in with.".to_owned()),
        Denied::Wrong => (StatusCode::FORBIDDEN, "That is not the token.".to_owned()),
        Denied::Often(seconds) => {
            let text = format!("Too many wrong tokens came from your address; try again in {seconds} s.");
            (StatusCode::TOO_MANY_REQUESTS, text)
        }
    };
    let visit = Visit { operator: None, said: None, refused: &refused, audience: asker.audience };
    let mut response = dashboard::show(core, &visit).await;
    *response.status_mut() = status;
    if let Denied::Often(seconds) = denied {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
    }
    response
}

/// Takes the cookie away.
pub(super) async fn sign_out(Shared(State(core)): Shared<State>, request: HttpRequest<Body>) -> Response {
    match operator(&core, request).await {
        Ok((parts, ..)) => to_page(&[Gate::take(Asker::of(&parts).secure)]),
        Err(refusal) => refusal,
    }
}

/// Reads the configuration again and replaces the workers.
pub(super) async fn reload(Shared(State(core)): Shared<State>, request: HttpRequest<Body>) -> Response {
    act(&core, request, |_| Ok(Request::Reload { wait: true })).await
}

/// Changes the number of workers.
pub(super) async fn scale(Shared(State(core)): Shared<State>, request: HttpRequest<Body>) -> Response {
    let order = |fields: &Fields| match number(fields, "workers")? {
        0 => Err("one worker is the least".to_owned()),
        workers => Ok(Request::Scale { workers, wait: true }),
    };
    act(&core, request, order).await
}

/// Replaces the worker of a slot.
pub(super) async fn restart(Shared(State(core)): Shared<State>, request: HttpRequest<Body>) -> Response {
    let order = |fields: &Fields| Ok(Request::Restart { slot: number(fields, "slot")?, wait: true });
    act(&core, request, order).await
}

fn number(fields: &Fields, name: &str) -> Result<usize, String> {
    let text = fields.get(name).map_or("", |text| text.trim());
    text.parse().map_err(|_| format!("{name} is to be a number"))
}

/// Has the supervisor do what an operator asks, and tells the verdict on the page that follows.
async fn act(
    core: &Core,
    request: HttpRequest<Body>,
    order: impl FnOnce(&Fields) -> Result<Request, String>,
) -> Response {
    let (parts, operator, fields) = match operator(core, request).await {
        Ok(known) => known,
        Err(refusal) => return refusal,
    };
    let order = match order(&fields) {
        Ok(order) => order,
        Err(reason) => return Problem::new(StatusCode::BAD_REQUEST, reason).into_response(),
    };
    let Ok(place) = Arc::clone(&core.dashboard.0.acting).try_acquire_owned() else {
        return Problem::reduced_capacity("as many verdicts are waited for here as may be", 5)
            .into_response();
    };
    let asker = Asker::of(&parts);
    tracing::info!(client = %asker.subject, verb = order.verb(), "an operator asks at the dashboard for a {}", order.verb());
    let run_dir = core.config.run_dir.clone();
    // The place is the thread's, and not that of a client who may leave.
    let said = tokio::task::spawn_blocking(move || {
        let _place = place;
        supervisor::act(&run_dir, &order)
    });
    let said = said.await;
    let said = said.unwrap_or_else(|_| Said::failed("the supervisor could not be asked"));
    to_page(&[core.dashboard.0.gate.tell(&operator, &said, asker.secure)])
}

/// The operator who sent a form, and its fields.
async fn operator(core: &Core, request: HttpRequest<Body>) -> Result<(Parts, Operator, Fields), Response> {
    let (parts, fields) = read(request).await?;
    let gate = &core.dashboard.0.gate;
    let refuse = |reason: String| Problem::new(StatusCode::FORBIDDEN, reason).into_response();
    if let Some(advice) = gate.advice() {
        return Err(refuse(format!("the dashboard has no buttons: {advice}")));
    }
    let Some(operator) = gate.operator(&parts.headers, time::unix()) else {
        return Err(refuse("sign in first".to_owned()));
    };
    let token = fields.get("form-token").map_or("", String::as_str);
    if !gate.is_form_token(&operator, token) {
        return Err(refuse("this form is too old or not from here; open the page again".to_owned()));
    }
    // Behind a load balancer the page may be one machine's and this another.
    if fields.get("machine").map(String::as_str) != Some(core.site.id(&core.scoreboard).as_str()) {
        let reason = "this form is of another machine's page; open the page at that machine's own address";
        return Err(Problem::new(StatusCode::CONFLICT, reason).into_response());
    }
    Ok((parts, operator, fields))
}

/// A form that no other site sent.
async fn read(request: HttpRequest<Body>) -> Result<(Parts, Fields), Response> {
    let (parts, body) = request.into_parts();
    let refuse = |status, reason: &str| Problem::new(status, reason).into_response();
    let asker = Asker::of(&parts);
    if !origin::is_own(&parts.headers, &parts.uri, asker.client.as_ref(), &[]) {
        return Err(refuse(StatusCode::FORBIDDEN, "another site sent this request"));
    }
    let kind =
        parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form"));
    }
    match timeout(FORM_TIME, to_bytes(body, FORM_MAX)).await {
        Ok(Ok(bytes)) => Ok((parts, form_urlencoded::parse(&bytes).into_owned().collect())),
        Ok(Err(_)) => Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "a form here has at most 4096 bytes")),
        Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "the form did not come in time")),
    }
}

/// To the page (303), with these cookies.
fn to_page(cookies: &[String]) -> Response {
    let mut response = Redirect::to("/fleet").into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for cookie in cookies.iter().filter_map(|cookie| HeaderValue::try_from(cookie.as_str()).ok()) {
        headers.append(header::SET_COOKIE, cookie);
    }
    response
}
