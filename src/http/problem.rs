//! Problem documents (RFC 9457): the one form in which an error leaves this server.
//!
//! Guarantees that a problem names no internals: its detail is written for the client.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

/// Media type of a problem document.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// Types that draft-ietf-httpapi-ratelimit-headers-11 registers.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
const REDUCED_CAPACITY: &str = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";

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

    /// A rate limit refused the request.
    pub fn quota_exceeded(violated: Vec<String>, retry_after: Option<u64>) -> Self {
        let detail = match retry_after {
            Some(seconds) => format!("too many requests; the next one is allowed in {seconds} s"),
            None => "the request costs more than its limit can ever allow".to_owned(),
        };
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, detail);
        Self {
            kind: QUOTA_EXCEEDED,
            title: "Request cannot be satisfied as assigned quota has been exceeded",
            violated_policies: violated,
            retry_after,
            ..problem
        }
    }

    /// Something that this request needs is away or full for the moment.
    pub fn reduced_capacity(detail: impl Into<String>, retry_after: u64) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, detail);
        Self {
            kind: REDUCED_CAPACITY,
            title: "Request cannot be satisfied due to temporary server capacity constraints",
            retry_after: Some(retry_after),
            ..problem
        }
    }

    /// The session ended while its request was under way, so what the request changed in it is lost.
    pub fn session_gone() -> Self {
        let detail = "the session ended before this request was finished; nothing of it was stored";
        Self {
            kind: "urn:regatta:problem:session-gone",
            title: "Session ended",
            ..Self::new(StatusCode::UNAUTHORIZED, detail)
        }
    }

    /// The session would hold more than is allowed.
    pub fn session_too_large() -> Self {
        let detail = "the session would hold more than is allowed; nothing of this request was stored";
        Self {
            kind: "urn:regatta:problem:session-too-large",
            title: "Session is too large",
            ..Self::new(StatusCode::INSUFFICIENT_STORAGE, detail)
        }
    }

    /// A request that needs an `Idempotency-Key` has none.
    pub fn idempotency_key_missing(detail: impl Into<String>) -> Self {
        Self {
            kind: "urn:regatta:problem:idempotency-key-missing",
            title: "Idempotency-Key is missing",
            ..Self::new(StatusCode::BAD_REQUEST, detail)
        }
    }

    /// A request with this `Idempotency-Key` is under way.
    pub fn idempotency_in_progress(retry_after: u64) -> Self {
        let detail = "a request with this Idempotency-Key is under way";
        Self {
            kind: "urn:regatta:problem:idempotency-request-in-progress",
            title: "Request is outstanding",
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::CONFLICT, detail)
        }
    }

    /// The `Idempotency-Key` was used for another request.
    pub fn idempotency_key_reused() -> Self {
        let detail = "this Idempotency-Key was used for another method, path or body";
        Self {
            kind: "urn:regatta:problem:idempotency-key-reused",
            title: "Idempotency-Key is already used",
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        }
    }

    /// The request with this `Idempotency-Key` was carried out, and its response was too large to keep.
    pub fn idempotency_not_stored() -> Self {
        let detail =
            "this request was carried out; its response was too large to be kept, or had no known end";
        Self {
            kind: "urn:regatta:problem:idempotency-response-not-stored",
            title: "Request was carried out before",
            ..Self::new(StatusCode::CONFLICT, detail)
        }
    }

    /// A request with this `Idempotency-Key` was carried out, perhaps for another client.
    pub fn idempotency_already_executed() -> Self {
        let detail = "a request with this Idempotency-Key was carried out; its response is given only to the client that \
            sent it, which is recognized by its login, its cookie, or a key of 22 characters or more";
        Self {
            kind: "urn:regatta:problem:idempotency-carried-out",
            title: "Request was carried out before",
            ..Self::new(StatusCode::CONFLICT, detail)
        }
    }

    /// The client has made as many sessions as it may for now.
    pub fn too_many_sessions(detail: impl Into<String>, retry_after: u64) -> Self {
        Self {
            kind: "urn:regatta:problem:too-many-sessions",
            title: "Too many new sessions",
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail)
        }
    }

    /// Another request changed the same part of the session.
    pub fn session_conflict() -> Self {
        let detail = "another request changed the same part of the session; nothing of this one was stored";
        Self {
            kind: "urn:regatta:problem:session-conflict",
            title: "Session changed meanwhile",
            ..Self::new(StatusCode::CONFLICT, detail)
        }
    }

    /// Its document and its headers.
    pub(super) fn to_parts(&self) -> (Bytes, HeaderMap) {
        // Only strings and numbers are in it; an empty body with the right status is still an answer.
        let body = serde_json::to_vec(self).map(Bytes::from).unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
        // An error is about this request only, whatever a cache is allowed to guess.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        (body, headers)
    }

    /// Its HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl Problem {
    /// As a response whose body is made of bytes.
    pub(super) fn into_response_of<R: From<Bytes>>(self) -> http::Response<R> {
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
        }
    }
}
