//! The end of a request: problems explained, the session stored, the head dressed.

use axum::body::Body;
use axum::body::to_bytes;
use axum::response::IntoResponse;
use axum::response::Response;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::Version;
use http::header;
use http::header::Entry;
use http::request::Parts;
use tokio::sync::MutexGuard;
use tower_sessions::Session;

use crate::http::body;
use crate::http::error::Refusal;
use crate::http::error::whole_seconds;
use crate::http::exchange::Begun;
use crate::http::exchange::Exchange;
use crate::http::exchange::Origin;
use crate::http::head::has;
use crate::http::problem::Problem;
use crate::http::security;
use crate::http::state::Core;
use crate::http::store::Store;
use crate::http::visitor;
use crate::http::visitor::Visitor;
use crate::limiter::headers::Headers;
use crate::session::store::Outcome;

pub(super) const WORKER_ID: HeaderName = HeaderName::from_static("x-worker-id");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SESSION_STATE: HeaderName = HeaderName::from_static("session-state");
const SESSION_COMMIT: HeaderName = HeaderName::from_static("session-commit");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Longest request id that is taken over, bytes.
const REQUEST_ID_MAX: usize = 128;

/// Longest text of a handler that becomes a problem's detail, bytes.
const DETAIL_MAX: usize = 1024;

/// What the response's head needs to know of the request's.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) request_id: HeaderValue,
    version: Version,
}

impl Head {
    /// `proxied`: somebody trusted sent the request, whose id is kept so that both logs have the same one.
    pub(super) fn of(core: &Core, parts: &Parts, proxied: bool) -> Self {
        let theirs = (proxied && has(&parts.headers, &REQUEST_ID)).then(|| parts.headers.get(REQUEST_ID));
        let theirs = theirs.flatten().filter(|id| is_sane(id.as_bytes()));
        Self { request_id: theirs.cloned().unwrap_or_else(|| core.request_id()), version: parts.version }
    }
}

fn is_sane(id: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    (1..=REQUEST_ID_MAX).contains(&id.len()) && id.iter().all(fits)
}

/// Turns an error without a document into a problem document.
///
/// Whatever axum or a handler says about an error in plain text becomes the problem's detail; a document of the
/// handler's own, in any other media type, stays. Texts about our own mistakes (5xx) are logged and not sent.
pub(super) async fn explain(response: Response, fault: Option<Problem>) -> Response {
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
    let said = to_bytes(body, DETAIL_MAX).await.unwrap_or_default();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let detail = match status {
        _ if status.is_server_error() => {
            if !said.is_empty() {
                tracing::error!(status = status.as_u16(), reason = %said, "a handler failed: {said}");
            }
            String::new()
        }
        StatusCode::NOT_FOUND if said.is_empty() => "there is nothing at this path".to_owned(),
        StatusCode::METHOD_NOT_ALLOWED if said.is_empty() => {
            "not this method; Allow names those that work here".to_owned()
        }
        _ => said,
    };
    let mut explained = Problem::new(status, detail).into_response();
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            explained.headers_mut().append(name, value.clone());
        }
    }
    explained
}

/// Stores what the handler changed in its session, and puts a refusal in the place of the handler's response.
pub(super) async fn settle(
    response: Response,
    exchange: &Exchange,
    session: Option<(&Session, &Store)>,
) -> Response {
    let stored = match session {
        Some((session, store)) => {
            let stored = store_changes(response.status(), exchange, session, store).await;
            if exchange.visitor.is_exposed() {
                // Boxed: every request would be as large as this, which next to none needs.
                Box::pin(exchange.leave_exposed_id(store)).await;
            }
            stored
        }
        None => Stored::Well,
    };
    conclude(response, exchange, exchange.begun().await, &stored)
}

/// As [`settle`], for a request that waits for nothing any more: no error to explain, nothing to store. Any other
/// response comes back as it is.
#[expect(clippy::result_large_err, reason = "both are the response, moved once")]
pub(super) fn at_once(
    response: Response,
    exchange: &Exchange,
    session: &Session,
    store: &Store,
) -> Result<Response, Response> {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if is_error || session.is_modified() || exchange.visitor.is_exposed() || !store.is_settled() {
        return Err(response);
    }
    match exchange.begun_now() {
        Some(begun) => Ok(conclude(response, exchange, begun, &Stored::Well)),
        None => Err(response),
    }
}

/// Puts a refusal in the place of the handler's response, or completes that by what the client is told of its state.
fn conclude(
    response: Response,
    exchange: &Exchange,
    mut begun: MutexGuard<'_, Begun>,
    stored: &Stored,
) -> Response {
    let lost = match stored {
        Stored::Refused(refusal) => Some(refusal.clone()),
        Stored::Well | Stored::Lost => None,
    };
    let mut response = match begun.refusal.take().or(lost) {
        Some(refusal) => {
            if let Refusal::Unavailable(_) | Refusal::Full = refusal {
                exchange.core.cell().unavailable();
            }
            let mut response = refusal.problem().into_response();
            // Whatever else failed, the session has another id now: whoever is not told has lost it.
            if begun.stored().is_some() && begun.current != exchange.visitor.id() {
                tell_session(response.headers_mut(), exchange, &begun);
            }
            response
        }
        None => {
            let mut response = response;
            tell_session(response.headers_mut(), exchange, &begun);
            if let Some(how) = begun.degraded {
                exchange.core.cell().served_stale();
                response.headers_mut().insert(SESSION_STATE, how.header());
            }
            if let Stored::Lost = stored {
                exchange.core.cell().unstored();
                response.headers_mut().insert(SESSION_COMMIT, HeaderValue::from_static("failed"));
            }
            response
        }
    };
    if let Some(told) = exchange.told(&begun.limits) {
        tell_limits(response.headers_mut(), told);
    }
    body::keep(response, begun.limits.take_places())
}

/// What became of the session's changes.
enum Stored {
    /// They are stored, or there were none.
    Well,
    /// They are not, and the response goes out all the same: what its handler did elsewhere is done.
    Lost,
    /// They are not, and the client must know.
    Refused(Refusal),
}

/// Commits the session's changes.
///
/// A failed request's changes are not stored, as tower-sessions has it, unless its handler replaced the session's id or
/// ended the session: whoever asked for that must not be left with the old one.
///
/// A stranger's changes are not stored by a request for what is not there, or that was refused.
async fn store_changes(status: StatusCode, exchange: &Exchange, session: &Session, store: &Store) -> Stored {
    let mut changed = session.is_modified() && !session.is_empty().await && !status.is_server_error();
    let is_refusal = matches!(
        status,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::TOO_MANY_REQUESTS
    );
    if changed && is_refusal {
        let begun = exchange.begun().await;
        changed = begun.stored().is_some() && begun.ticket.is_none();
    }
    if (changed || store.has_left())
        && let Err(error) = session.save().await
    {
        tracing::debug!(%error, "a session was not stored: {error}");
    }
    match store.outcome() {
        Outcome::Untouched | Outcome::Stored(_) | Outcome::Ended => Stored::Well,
        Outcome::Gone => Stored::Refused(Refusal::SessionGone),
        Outcome::TooLarge => Stored::Refused(Refusal::SessionFull),
        Outcome::Conflict => Stored::Refused(Refusal::SessionConflict),
        Outcome::Limited(retry_after) => Stored::Refused(Refusal::SessionLimit(whole_seconds(retry_after))),
        Outcome::Failed(error) => Stored::Refused(Refusal::from(&error)),
        Outcome::Unstored(error) => {
            tracing::warn!(cause = %error, "a response goes out without its session changes: {error}");
            Stored::Lost
        }
    }
}

/// Cookie and cache rules of a response that depends on its visitor.
///
/// `no-store` for all of them: a page with one visitor's numbers must not be shown to another, and not to the same one
/// again as if it were new. A handler that knows better sets its own `Cache-Control`.
fn tell_session(headers: &mut HeaderMap, exchange: &Exchange, begun: &Begun) {
    if !begun.used_session() && begun.current == exchange.visitor.id() && begun.cookie_age.is_none() {
        return;
    }
    headers.append(header::VARY, HeaderValue::from_static("Cookie"));
    forbid_storing(headers);
    let visitor = &exchange.visitor;
    // An id that others may know gets no cookie under the secure name.
    let kept = begun.degraded.is_none() && !visitor.is_exposed();
    let old_key = kept && matches!(visitor, Visitor::Known { renew: true, .. });
    let confirmed = kept && visitor.ticket().is_some() && begun.ticket.is_none();
    let renew = old_key || confirmed || begun.cookie_age.is_some();
    let cookie = match (begun.current, visitor.id()) {
        // A ticket is not worth a request that makes nothing.
        (Some(_), _) if begun.origin == Origin::Issued && exchange.makes_nothing => None,
        (Some(now), before) if Some(now) != before || renew => {
            let keyring = exchange.core.keyring();
            keyring.and_then(|keyring| visitor::give(&keyring, exchange, begun, now))
        }
        (None, Some(_)) if begun.origin == Origin::Deleted => visitor::take(&exchange.core, exchange.secure),
        // A session that ended by itself: its cookie says nothing any more and is replaced when there is a new one.
        _ => None,
    };
    let replaced = visitor.is_exposed() && cookie.is_some();
    let plain = (exchange.leftover || replaced).then(|| visitor::take(&exchange.core, false)).flatten();
    for cookie in cookie.into_iter().chain(plain) {
        headers.append(header::SET_COOKIE, cookie);
    }
}

/// What is left of the request's limits, in the configured form.
fn tell_limits(headers: &mut HeaderMap, told: Headers) {
    for (name, text) in [(RATELIMIT_POLICY, told.policy), (RATELIMIT, told.limit)] {
        if !text.is_empty()
            && let Ok(value) = HeaderValue::try_from(text)
        {
            headers.insert(name, value);
        }
    }
    if let Some(numbers) = told.legacy {
        let names = [X_RATELIMIT_LIMIT, X_RATELIMIT_REMAINING, X_RATELIMIT_RESET];
        for (name, number) in names.into_iter().zip(numbers) {
            headers.insert(name, HeaderValue::from(number));
        }
    }
    forbid_storing(headers);
}

fn forbid_storing(headers: &mut HeaderMap) {
    if let Entry::Vacant(vacant) = headers.entry(header::CACHE_CONTROL) {
        vacant.insert(HeaderValue::from_static("no-store"));
    }
}

/// Headers of every response, whatever became of its request.
pub(super) fn dress(response: &mut Response<Body>, core: &Core, head: Head) {
    let upgrades = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(WORKER_ID, core.worker_id.clone());
    headers.insert(REQUEST_ID, head.request_id);
    security::harden(headers);
    if head.version >= Version::HTTP_2 {
        // RFC 9113 §8.2.2: HTTP/2 knows no such header, GOAWAY says it.
        headers.remove(header::CONNECTION);
    } else if core.phase.is_draining() && !upgrades {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_request_ids_that_cannot_break_a_log_are_taken_over() {
        for good in ["a", "3f2a-b.c_d:1", &"x".repeat(128)] {
            assert!(is_sane(good.as_bytes()), "{good}");
        }
        for bad in ["", "a b", "a\"b", "ä", "a\tb", &"x".repeat(129)] {
            assert!(!is_sane(bad.as_bytes()), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_handlers_own_error_document_stays_and_its_text_becomes_a_detail() {
        let own = (StatusCode::CONFLICT, [(header::CONTENT_TYPE, "application/json")], "{}").into_response();
        assert_eq!(explain(own, None).await.headers()[header::CONTENT_TYPE], "application/json");
        let text = (StatusCode::BAD_REQUEST, [(header::ALLOW, "GET")], "no such unit").into_response();
        let explained = explain(text, None).await;
        assert_eq!(explained.headers()[header::ALLOW], "GET");
        let body = to_bytes(explained.into_body(), 4096).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("no such unit"));
    }

    #[tokio::test]
    async fn our_own_mistakes_are_not_told() {
        let text = (StatusCode::INTERNAL_SERVER_ERROR, "password is hunter2").into_response();
        let body = to_bytes(explain(text, None).await.into_body(), 4096).await.unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("hunter2"));
    }
}
