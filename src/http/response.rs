//! The end of a request: errors become problem documents, the session is committed, headers are set.

use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use http::header::Entry;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use tokio::sync::MutexGuard;
use tower_sessions::Session;

use crate::http::error::{StateError, whole_seconds};
use crate::http::header_names::{
    RATELIMIT, RATELIMIT_POLICY, SESSION_COMMIT, SESSION_STATE, X_RATELIMIT_LIMIT, X_RATELIMIT_REMAINING,
    X_RATELIMIT_RESET, X_REQUEST_ID, X_WORKER_ID,
};
use crate::http::problem::Problem;
use crate::http::request_head::has_header;
use crate::http::request_state::cookie_identity::CookieIdentity;
use crate::http::request_state::session_store::RequestSessionStore;
use crate::http::request_state::{RequestState, RequestStateInner, SessionOrigin, session_cookie};
use crate::http::services::worker::WorkerContext;
use crate::http::{body, security};
use crate::limiter::headers::RateLimitHeaders;
use crate::request_state::tracked_session::CommitStatus;

/// Longest request id that is accepted, bytes.
const REQUEST_ID_MAX: usize = 128;

/// Longest text of a handler that becomes a problem's detail, bytes.
const DETAIL_MAX: usize = 1024;

/// What the response's headers need of the request.
#[derive(Debug)]
pub(crate) struct RequestMeta {
    pub(super) request_id: HeaderValue,
    version: Version,
}

impl RequestMeta {
    /// `proxied`: a trusted proxy sent the request, and its id is used so that both logs have the same one.
    pub(super) fn from_parts(worker: &WorkerContext, parts: &Parts, proxied: bool) -> Self {
        let sent_id =
            (proxied && has_header(&parts.headers, &X_REQUEST_ID)).then(|| parts.headers.get(X_REQUEST_ID));
        let sent_id = sent_id.flatten().filter(|id| is_valid_request_id(id.as_bytes()));
        Self { request_id: sent_id.cloned().unwrap_or_else(|| worker.request_id()), version: parts.version }
    }
}

fn is_valid_request_id(id: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    (1..=REQUEST_ID_MAX).contains(&id.len()) && id.iter().all(fits)
}

/// Turns an error without a document into a problem document.
///
/// A text of axum or of a handler becomes the problem's detail; a document of the
/// handler's own, in any other media type, stays. Texts about our own mistakes (5xx) are logged and not sent.
pub(crate) async fn into_problem(response: Response, fault: Option<Problem>) -> Response {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    if let Some(fault) = fault {
        return fault.into_response();
    }
    let plain = |kind: &HeaderValue| kind.as_bytes().starts_with(b"text/plain");
    if !response.headers().get(header::CONTENT_TYPE).is_none_or(plain) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, DETAIL_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let detail = match status {
        _ if status.is_server_error() => {
            if !text.is_empty() {
                tracing::error!(status = status.as_u16(), reason = %text, "a handler failed: {text}");
            }
            String::new()
        }
        StatusCode::NOT_FOUND if text.is_empty() => "there is nothing at this path".to_owned(),
        StatusCode::METHOD_NOT_ALLOWED if text.is_empty() => {
            "not this method; Allow names those that work here".to_owned()
        }
        _ => text,
    };
    let mut explained = Problem::new(status, detail).into_response();
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            explained.headers_mut().append(name, value.clone());
        }
    }
    explained
}

/// Stores what the handler changed in its session, and replaces the response of a rejected request.
pub(crate) async fn finalize(
    response: Response,
    state: &RequestState,
    session: Option<(&Session, &RequestSessionStore)>,
) -> Response {
    let stored = match session {
        Some((session, store)) => {
            let stored = commit_session(response.status(), state, session, store).await;
            if state.visitor.is_exposed() {
                // Boxed: every request would be as large as this, which next to none needs.
                Box::pin(state.rotate_exposed_id(store)).await;
            }
            stored
        }
        None => CommitStep::Committed,
    };
    apply_state(response, state, state.lock().await, &stored)
}

/// As [`finalize`], for a request that waits for nothing any more: no error to explain, nothing to store. Any other
/// response comes back as it is.
#[expect(clippy::result_large_err, reason = "both are the response, moved once")]
pub(crate) fn try_finalize(
    response: Response,
    state: &RequestState,
    session: &Session,
    store: &RequestSessionStore,
) -> Result<Response, Response> {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if is_error || session.is_modified() || state.visitor.is_exposed() || !store.session.is_complete() {
        return Err(response);
    }
    match state.try_lock() {
        Some(inner) => Ok(apply_state(response, state, inner, &CommitStep::Committed)),
        None => Err(response),
    }
}

/// Replaces the response of a rejected request, or adds the headers of the request's state to it.
fn apply_state(
    mut response: Response,
    state: &RequestState,
    mut inner: MutexGuard<'_, RequestStateInner>,
    stored: &CommitStep,
) -> Response {
    let commit_failure = match stored {
        CommitStep::Rejected(refusal) => Some(refusal.clone()),
        CommitStep::Committed | CommitStep::NotStored => None,
    };
    if let Some(refusal) = inner.failure.take().or(commit_failure) {
        state.count_refusal(&refusal);
        response = refusal.into_problem().into_response();
        // Whatever else failed, the session has another id now: a client that does not get it has lost its session.
        if inner.stored_session_id().is_some() && inner.current_session_id != state.visitor.id() {
            set_session_headers(response.headers_mut(), state, &inner);
        }
    } else {
        set_session_headers(response.headers_mut(), state, &inner);
        if let Some(how) = inner.freshness {
            state.services.worker.cell().count_stale();
            response.headers_mut().insert(SESSION_STATE, how.header());
        }
        if let CommitStep::NotStored = stored {
            state.services.worker.cell().count_failed_commit();
            response.headers_mut().insert(SESSION_COMMIT, HeaderValue::from_static("failed"));
        }
    }
    if let Some(limit_headers) = state.rate_limit_headers(&inner.limits) {
        set_rate_limit_headers(response.headers_mut(), limit_headers);
    }
    body::hold_permits(&mut response, inner.limits.take_permits());
    response
}

/// Whether the session's changes are stored.
enum CommitStep {
    /// They are stored, or there were none.
    Committed,
    /// They are not, and the response goes out all the same: what its handler did elsewhere is done.
    NotStored,
    /// They are not, and the client must know.
    Rejected(StateError),
}

/// Commits the session's changes.
///
/// A failed request's changes are not stored, as tower-sessions has it, unless its handler replaced the session's id or
/// ended the session: the client must not keep the old id.
///
/// A visitor without a session gets none from a request that was answered 404, 405 or 429.
async fn commit_session(
    status: StatusCode,
    state: &RequestState,
    session: &Session,
    store: &RequestSessionStore,
) -> CommitStep {
    let mut changed = session.is_modified() && !session.is_empty().await && !status.is_server_error();
    let is_refusal = matches!(
        status,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::TOO_MANY_REQUESTS
    );
    if changed && is_refusal {
        let inner = state.lock().await;
        changed = inner.stored_session_id().is_some() && inner.provisional.is_none();
    }
    if (changed || store.session.released_id().is_some())
        && let Err(error) = session.save().await
    {
        tracing::debug!(%error, "a session was not stored: {error}");
    }
    match store.session.commit_status() {
        CommitStatus::Unchanged | CommitStatus::Stored(_) | CommitStatus::Destroyed => CommitStep::Committed,
        CommitStatus::Gone => CommitStep::Rejected(StateError::SessionGone),
        CommitStatus::TooLarge => CommitStep::Rejected(StateError::SessionTooLarge),
        CommitStatus::Conflict => CommitStep::Rejected(StateError::SessionConflict),
        CommitStatus::Limited(retry_after) => {
            CommitStep::Rejected(StateError::TooManySessions(whole_seconds(retry_after)))
        }
        CommitStatus::Failed(error) => CommitStep::Rejected(StateError::from(&error)),
        CommitStatus::NotStored(error) => {
            tracing::warn!(cause = %error, "a response goes out without its session changes: {error}");
            CommitStep::NotStored
        }
    }
}

/// Cookie and cache rules of a response that depends on its visitor.
///
/// `no-store` for all of them: a page with one visitor's numbers must not be shown to another, and not to the same one
/// again as if it were new. A handler's own `Cache-Control` stays.
fn set_session_headers(headers: &mut HeaderMap, state: &RequestState, inner: &RequestStateInner) {
    if !inner.depends_on_visitor()
        && inner.current_session_id == state.visitor.id()
        && inner.cookie_age.is_none()
    {
        return;
    }
    headers.append(header::VARY, HeaderValue::from_static("Cookie"));
    set_no_store(headers);
    let visitor = &state.visitor;
    // An exposed id gets no cookie under the secure name.
    let kept = inner.freshness.is_none() && !visitor.is_exposed();
    let old_key = kept && matches!(visitor, CookieIdentity::Verified { re_sign: true, .. });
    let confirmed = kept && visitor.provisional().is_some() && inner.provisional.is_none();
    let renew = old_key || confirmed || inner.cookie_age.is_some();
    let cookie = match (inner.current_session_id, visitor.id()) {
        // A request that creates no session gets no provisional cookie either.
        (Some(_), _) if inner.origin == SessionOrigin::Issued && state.creates_no_session => None,
        (Some(now), before) if Some(now) != before || renew => {
            let keyring = state.services.sessions.signing_keys.keyring();
            keyring.and_then(|keyring| session_cookie::session_cookie(&keyring, state, inner, now))
        }
        (None, Some(_)) if inner.origin == SessionOrigin::Destroyed => {
            session_cookie::removal_cookie(&state.services.sessions, state.secure)
        }
        // A session that expired: its cookie has no effect any more and is replaced when there is a new session.
        _ => None,
    };
    let replaced = visitor.is_exposed() && cookie.is_some();
    let plain = (state.leftover || replaced)
        .then(|| session_cookie::removal_cookie(&state.services.sessions, false))
        .flatten();
    for cookie in cookie.into_iter().chain(plain) {
        headers.append(header::SET_COOKIE, cookie);
    }
}

/// What is left of the request's limits, in the configured form.
pub(crate) fn set_rate_limit_headers(headers: &mut HeaderMap, limits: RateLimitHeaders) {
    for (name, text) in [(RATELIMIT_POLICY, limits.policy), (RATELIMIT, limits.limit)] {
        if !text.is_empty()
            && let Ok(value) = HeaderValue::try_from(text)
        {
            headers.insert(name, value);
        }
    }
    if let Some(numbers) = limits.legacy {
        let names = [X_RATELIMIT_LIMIT, X_RATELIMIT_REMAINING, X_RATELIMIT_RESET];
        for (name, number) in names.into_iter().zip(numbers) {
            headers.insert(name, HeaderValue::from(number));
        }
    }
    set_no_store(headers);
}

fn set_no_store(headers: &mut HeaderMap) {
    if let Entry::Vacant(vacant) = headers.entry(header::CACHE_CONTROL) {
        vacant.insert(HeaderValue::from_static("no-store"));
    }
}

/// Headers of every response, errors included.
pub(crate) fn apply_common_headers(response: &mut Response<Body>, worker: &WorkerContext, head: RequestMeta) {
    let upgrades = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(X_WORKER_ID, worker.worker_id.clone());
    headers.insert(X_REQUEST_ID, head.request_id);
    security::apply_security_headers(headers);
    if head.version >= Version::HTTP_2 {
        // RFC 9113 §8.2.2: HTTP/2 has no such header and sends GOAWAY.
        headers.remove(header::CONNECTION);
    } else if worker.drain.is_draining() && !upgrades {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_request_ids_that_cannot_break_a_log_are_accepted() {
        for good in ["a", "3f2a-b.c_d:1", &"x".repeat(128)] {
            assert!(is_valid_request_id(good.as_bytes()), "{good}");
        }
        for bad in ["", "a b", "a\"b", "ä", "a\tb", &"x".repeat(129)] {
            assert!(!is_valid_request_id(bad.as_bytes()), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_handlers_own_error_document_stays_and_its_text_becomes_a_detail() {
        let own = (StatusCode::CONFLICT, [(header::CONTENT_TYPE, "application/json")], "{}").into_response();
        assert_eq!(into_problem(own, None).await.headers()[header::CONTENT_TYPE], "application/json");
        let text = (StatusCode::BAD_REQUEST, [(header::ALLOW, "GET")], "no such unit").into_response();
        let explained = into_problem(text, None).await;
        assert_eq!(explained.headers()[header::ALLOW], "GET");
        let body = to_bytes(explained.into_body(), 4096).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("no such unit"));
    }

    #[tokio::test]
    async fn our_own_mistakes_are_not_sent() {
        let text = (StatusCode::INTERNAL_SERVER_ERROR, "password is hunter2").into_response();
        let body = to_bytes(into_problem(text, None).await.into_body(), 4096).await.unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("hunter2"));
    }
}
