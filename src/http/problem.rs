//! Problem documents (RFC 9457): the one form in which an error leaves this server.
//!
//! Guarantees that a problem names no internals: its detail is written for the client.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

/// Media type of a problem document.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// A problem type: what a client compares, and its row in `docs/reference/problems.md`.
#[derive(Debug, PartialEq, Eq)]
pub struct ProblemType {
    /// Its URI.
    pub uri: &'static str,
    /// It in a few words; does not vary from one occurrence to the next.
    pub title: &'static str,
    /// The status it always has.
    pub status: StatusCode,
    /// What happened, for the reference.
    pub cause: &'static str,
    /// What a client can do, for the reference.
    pub remedy: &'static str,
}

// The first two are registered by draft-ietf-httpapi-ratelimit-headers-11.
const QUOTA_EXCEEDED: ProblemType = ProblemType {
    uri: "https://iana.org/assignments/http-problem-types#quota-exceeded",
    title: "Request cannot be satisfied as assigned quota has been exceeded",
    status: StatusCode::TOO_MANY_REQUESTS,
    cause: "a rate limit denied the request; `violated-policies` names the limits",
    remedy: "retry after `Retry-After`",
};
const REDUCED_CAPACITY: ProblemType = ProblemType {
    uri: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
    title: "Request cannot be satisfied due to temporary server capacity constraints",
    status: StatusCode::SERVICE_UNAVAILABLE,
    cause: "Redis is unavailable or nearly full; too many tasks, subscribers or jobs; or the worker is overloaded",
    remedy: "retry after `Retry-After`",
};
const SESSION_GONE: ProblemType = ProblemType {
    uri: "urn:regatta:problem:session-gone",
    title: "Session ended",
    status: StatusCode::UNAUTHORIZED,
    cause: "the session ended before the request was finished; nothing of it was stored",
    remedy: "log in again",
};
const SESSION_TOO_LARGE: ProblemType = ProblemType {
    uri: "urn:regatta:problem:session-too-large",
    title: "Session is too large",
    status: StatusCode::INSUFFICIENT_STORAGE,
    cause: "the session would exceed 64 fields or 16 KiB; nothing of the request was stored",
    remedy: "store less",
};
const SESSION_CONFLICT: ProblemType = ProblemType {
    uri: "urn:regatta:problem:session-conflict",
    title: "Session changed meanwhile",
    status: StatusCode::CONFLICT,
    cause: "another request changed the same field (`session.strict_fields`); nothing of this one was stored",
    remedy: "retry",
};
const TOO_MANY_SESSIONS: ProblemType = ProblemType {
    uri: "urn:regatta:problem:too-many-sessions",
    title: "Too many new sessions",
    status: StatusCode::TOO_MANY_REQUESTS,
    cause: "the client has created more new sessions than `session.create_rate` allows",
    remedy: "retry after `Retry-After`",
};
const IDEMPOTENCY_KEY_MISSING: ProblemType = ProblemType {
    uri: "urn:regatta:problem:idempotency-key-missing",
    title: "Idempotency-Key is missing",
    status: StatusCode::BAD_REQUEST,
    cause: "the route needs an `Idempotency-Key`",
    remedy: "send one, such as a UUID",
};
const IDEMPOTENCY_IN_PROGRESS: ProblemType = ProblemType {
    uri: "urn:regatta:problem:idempotency-request-in-progress",
    title: "Request is outstanding",
    status: StatusCode::CONFLICT,
    cause: "a request with this key is under way",
    remedy: "retry after `Retry-After`",
};
const IDEMPOTENCY_KEY_REUSED: ProblemType = ProblemType {
    uri: "urn:regatta:problem:idempotency-key-reused",
    title: "Idempotency-Key is already used",
    status: StatusCode::UNPROCESSABLE_ENTITY,
    cause: "the key was used for another method, path or body",
    remedy: "use a new key",
};
const IDEMPOTENCY_NOT_STORED: ProblemType = ProblemType {
    uri: "urn:regatta:problem:idempotency-response-not-stored",
    title: "Request was carried out before",
    status: StatusCode::CONFLICT,
    cause: "the request was carried out; its response was too large to store, or had no known length",
    remedy: "read the result elsewhere; do not retry",
};
const IDEMPOTENCY_CARRIED_OUT: ProblemType = ProblemType {
    uri: "urn:regatta:problem:idempotency-carried-out",
    title: "Request was carried out before",
    status: StatusCode::CONFLICT,
    cause: "a request with this key was carried out, perhaps for another client",
    remedy: "read the result elsewhere; do not retry",
};

/// Every problem type besides `about:blank`, in the order of the reference.
pub const PROBLEM_TYPES: &[ProblemType] = &[
    QUOTA_EXCEEDED,
    REDUCED_CAPACITY,
    SESSION_GONE,
    SESSION_TOO_LARGE,
    SESSION_CONFLICT,
    TOO_MANY_SESSIONS,
    IDEMPOTENCY_KEY_MISSING,
    IDEMPOTENCY_IN_PROGRESS,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENCY_NOT_STORED,
    IDEMPOTENCY_CARRIED_OUT,
];

/// An error as the client sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// URI of the problem type; `about:blank`: the status is the type.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The type in a few words; does not vary from one occurrence to the next.
    title: &'static str,
    /// HTTP status.
    #[serde(serialize_with = "serialize_status")]
    status: StatusCode,
    /// What happened this time, one sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    /// Rate limit policies that refused.
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    violated_policies: Vec<String>,
    /// Seconds after which a repetition may succeed; also sent as `Retry-After`.
    #[serde(skip)]
    retry_after: Option<u64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn serialize_status<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem whose status is its type.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status,
            detail: detail.into(),
            violated_policies: Vec::new(),
            retry_after: None,
        }
    }

    /// A problem of a type; `detail` is what happened this time.
    fn typed(kind: &ProblemType, detail: impl Into<String>) -> Self {
        Self { kind: kind.uri, title: kind.title, ..Self::new(kind.status, detail) }
    }

    /// A rate limit refused the request.
    pub fn quota_exceeded(violated: Vec<String>, retry_after: Option<u64>) -> Self {
        let detail = match retry_after {
            Some(seconds) => format!("too many requests; the next one is allowed in {seconds} s"),
            None => "the request costs more than its limit can ever allow".to_owned(),
        };
        Self { violated_policies: violated, retry_after, ..Self::typed(&QUOTA_EXCEEDED, detail) }
    }

    /// Something that this request needs is away or full for the moment.
    pub fn reduced_capacity(detail: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::typed(&REDUCED_CAPACITY, detail) }
    }

    /// The session ended while its request was under way, so what the request changed in it is lost.
    pub fn session_gone() -> Self {
        Self::typed(
            &SESSION_GONE,
            "the session ended before this request was finished; nothing of it was stored",
        )
    }

    /// The session would hold more than is allowed.
    pub fn session_too_large() -> Self {
        let detail = "the session would hold more than is allowed; nothing of this request was stored";
        Self::typed(&SESSION_TOO_LARGE, detail)
    }

    /// A request that needs an `Idempotency-Key` has none.
    pub fn idempotency_key_missing(detail: impl Into<String>) -> Self {
        Self::typed(&IDEMPOTENCY_KEY_MISSING, detail)
    }

    /// A request with this `Idempotency-Key` is under way.
    pub fn idempotency_in_progress(retry_after: u64) -> Self {
        let detail = "a request with this Idempotency-Key is under way";
        Self { retry_after: Some(retry_after), ..Self::typed(&IDEMPOTENCY_IN_PROGRESS, detail) }
    }

    /// The `Idempotency-Key` was used for another request.
    pub fn idempotency_key_reused() -> Self {
        let detail = "this Idempotency-Key was used for another method, path or body";
        Self::typed(&IDEMPOTENCY_KEY_REUSED, detail)
    }

    /// The request with this `Idempotency-Key` was carried out, and its response was too large to keep.
    pub fn idempotency_not_stored() -> Self {
        let detail =
            "this request was carried out; its response was too large to be kept, or had no known end";
        Self::typed(&IDEMPOTENCY_NOT_STORED, detail)
    }

    /// A request with this `Idempotency-Key` was carried out, perhaps for another client.
    pub fn idempotency_already_executed() -> Self {
        let detail = "a request with this Idempotency-Key was carried out; its response is given only to the client that \
            sent it, which is recognized by its login, its cookie, or a key of 22 characters or more";
        Self::typed(&IDEMPOTENCY_CARRIED_OUT, detail)
    }

    /// The client has made as many sessions as it may for now.
    pub fn too_many_sessions(detail: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::typed(&TOO_MANY_SESSIONS, detail) }
    }

    /// Another request changed the same part of the session.
    pub fn session_conflict() -> Self {
        let detail = "another request changed the same part of the session; nothing of this one was stored";
        Self::typed(&SESSION_CONFLICT, detail)
    }

    /// Its document and its headers.
    pub(super) fn to_parts(&self) -> (Bytes, HeaderMap) {
        // Only strings and numbers are in it; an empty body with the right status is still an answer.
        let body = serde_json::to_vec(self).map(Bytes::from).unwrap_or_default();
        (body, problem_headers(self.retry_after))
    }

    /// Seconds after which a repetition may succeed.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.retry_after
    }

    /// Its HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

/// The headers of a problem document; when to retry, in seconds.
pub(crate) fn problem_headers(retry_after: Option<u64>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
    // An error is about this request only, whatever a cache is allowed to guess.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    headers
}

impl Problem {
    /// As a response whose body is made of bytes.
    pub(crate) fn into_response_of<R: From<Bytes>>(self) -> http::Response<R> {
        let (body, headers) = self.to_parts();
        let mut response = http::Response::new(R::from(body));
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.into_response_of()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn document(problem: Problem) -> (Response<()>, serde_json::Value) {
        let (parts, body) = problem.into_response().into_parts();
        let body = axum::body::to_bytes(body, 4096).await.unwrap();
        (Response::from_parts(parts, ()), serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_denied_request_learns_which_policy_and_how_long() {
        let (head, body) = document(Problem::quota_exceeded(vec!["login".into()], Some(7))).await;
        assert_eq!(
            (head.status().as_u16(), &head.headers()[header::RETRY_AFTER]),
            (429, &HeaderValue::from(7))
        );
        assert_eq!(head.headers()[header::CONTENT_TYPE], PROBLEM_CONTENT_TYPE);
        assert_eq!(
            (&body["status"], &body["violated-policies"]),
            (&429.into(), &serde_json::json!(["login"]))
        );
        assert!(body["type"].as_str().unwrap().ends_with("#quota-exceeded"));
    }

    #[tokio::test]
    async fn a_plain_problem_has_no_empty_members() {
        let (head, body) = document(Problem::new(StatusCode::NOT_FOUND, "")).await;
        assert_eq!(body, serde_json::json!({"type": "about:blank", "title": "Not Found", "status": 404}));
        assert!(!head.headers().contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn problem_types_have_their_published_names() {
        for (problem, name, status) in [
            (Problem::session_gone(), "session-gone", 401),
            (Problem::session_too_large(), "session-too-large", 507),
            (Problem::session_conflict(), "session-conflict", 409),
            (Problem::too_many_sessions("", 1), "too-many-sessions", 429),
            (Problem::idempotency_key_missing(""), "idempotency-key-missing", 400),
            (Problem::idempotency_in_progress(1), "idempotency-request-in-progress", 409),
            (Problem::idempotency_key_reused(), "idempotency-key-reused", 422),
            (Problem::idempotency_not_stored(), "idempotency-response-not-stored", 409),
            (Problem::idempotency_already_executed(), "idempotency-carried-out", 409),
        ] {
            assert_eq!(problem.kind, format!("urn:regatta:problem:{name}"));
            assert_eq!(problem.status(), status, "{name}");
            assert!(
                PROBLEM_TYPES.iter().any(|kind| kind.uri == problem.kind),
                "{name} is not in the reference"
            );
        }
    }
}
