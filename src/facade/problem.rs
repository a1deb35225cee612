//! Problem documents of a program's own.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::error::whole_seconds;
use crate::http::problem::problem_headers;

/// A problem document (RFC 9457), the form in which this library answers errors, for errors of a program's own.
///
/// ```
/// use std::time::Duration;
///
/// use axum::http::StatusCode;
/// use regatta::Problem;
///
/// async fn order() -> Problem {
///     Problem::new(StatusCode::CONFLICT)
///         .kind("https://shop.example/problems/sold-out")
///         .detail("there are no boats left")
///         .field("expected", "2027-04-01")
///         .retry_after(Duration::from_secs(3600))
/// }
/// # let _: axum::Router = axum::Router::new().route("/order", axum::routing::post(order));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    status: StatusCode,
    kind: Option<String>,
    detail: Option<String>,
    fields: Map<String, Value>,
    retry_after: Option<Duration>,
}

/// Members that have methods of their own.
const RESERVED: [&str; 4] = ["type", "title", "status", "detail"];

impl Problem {
    /// A problem whose status is its type.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        Self { status, kind: None, detail: None, fields: Map::new(), retry_after: None }
    }

    /// The URI of its type.
    #[must_use]
    pub fn kind(self, uri: impl Into<String>) -> Self {
        Self { kind: Some(uri.into()), ..self }
    }

    /// What happened this time, in a sentence that is written for the client.
    #[must_use]
    pub fn detail(self, text: impl Into<String>) -> Self {
        Self { detail: Some(text.into()), ..self }
    }

    /// A member of its own. One that has a method of its own is left out, and so is a value that has no form as JSON.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::to_value(value)
            && !RESERVED.contains(&name)
        {
            self.fields.insert(name.to_owned(), value);
        }
        self
    }

    /// When it is worth trying again; the header `Retry-After`, in whole seconds.
    #[must_use]
    pub fn retry_after(self, time: Duration) -> Self {
        Self { retry_after: Some(time), ..self }
    }

    fn document(self) -> Map<String, Value> {
        let mut document = Map::new();
        let kind = self.kind.unwrap_or_else(|| "about:blank".to_owned());
        let title = self.status.canonical_reason().unwrap_or("Error");
        document.insert("type".to_owned(), kind.into());
        document.insert("title".to_owned(), title.into());
        document.insert("status".to_owned(), self.status.as_u16().into());
        document.extend(self.detail.map(|detail| ("detail".to_owned(), detail.into())));
        document.extend(self.fields);
        document
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status;
        let headers = problem_headers(self.retry_after.map(whole_seconds));
        // Only values of JSON are in it; an empty body with the right status is still an answer.
        let body = serde_json::to_vec(&self.document()).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;
    use crate::http::problem::PROBLEM_CONTENT_TYPE;

    #[tokio::test]
    async fn a_program_s_own_problem_has_its_members_and_headers() {
        let problem = Problem::new(StatusCode::CONFLICT)
            .kind("urn:shop:sold-out")
            .detail("no boats")
            .field("left", 0)
            .field("status", 200)
            .retry_after(Duration::from_millis(1500));
        let (head, body) = problem.into_response().into_parts();
        let body = axum::body::to_bytes(body, 4096).await.unwrap();
        let expected = serde_json::json!({
            "type": "urn:shop:sold-out", "title": "Conflict", "status": 409, "detail": "no boats", "left": 0
        });
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
        assert_eq!((head.status, &head.headers[header::RETRY_AFTER]), (StatusCode::CONFLICT, &2.into()));
        assert_eq!(head.headers[header::CONTENT_TYPE], PROBLEM_CONTENT_TYPE);
    }
}
