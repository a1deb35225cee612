//! What a worker answers by itself, before a request reaches the application.
//!
//! It is made once and only copied afterwards: a worker refuses when it has no time. So it has no request id.

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::http::header_names::X_WORKER_ID;
use crate::http::problem::Problem;
use crate::http::security;

/// A response that is always the same.
#[derive(Debug, Clone)]
pub struct PreparedRejection {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl PreparedRejection {
    /// A worker has more to do than it can; `retry_after` is in seconds.
    pub fn overload(worker: u32, retry_after: u64) -> Self {
        let detail = "the server has more requests than it can answer in time";
        Self::new(&Problem::reduced_capacity(detail, retry_after), worker)
    }

    /// A client has as many connections as one may have.
    pub fn client_connections(worker: u32) -> Self {
        let detail = "too many connections from this address are open";
        Self::new(&Problem::reduced_capacity(detail, 1), worker)
    }

    /// The header is larger than a worker can wait for at the moment.
    pub fn header_memory(worker: u32) -> Self {
        let detail = "this header is large and unfinished, and too many of them are being waited for";
        Self::new(&Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail), worker)
    }

    fn new(problem: &Problem, worker: u32) -> Self {
        let (body, mut headers) = problem.to_parts();
        headers.insert(X_WORKER_ID, HeaderValue::from(worker));
        security::apply_security_headers(&mut headers);
        Self { status: problem.status(), headers, body }
    }

    /// For a stream of HTTP/2, or a request of HTTP/1 that was read already; the latter's connection ends with it.
    pub fn to_response(&self, closes: bool) -> Response {
        let mut response = Response::new(axum::body::Body::from(self.body.clone()));
        *response.status_mut() = self.status;
        response.headers_mut().clone_from(&self.headers);
        if closes {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The bytes of an HTTP/1.1 response that ends its connection; to HEAD it has no body.
    pub fn to_http1_bytes(&self, head_only: bool) -> Vec<u8> {
        let mut bytes = format!("HTTP/1.1 {}\r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        let length = self.body.len();
        bytes.extend_from_slice(format!("content-length: {length}\r\nconnection: close\r\n\r\n").as_bytes());
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_bytes_are_a_whole_response() {
        let refusal = PreparedRejection::overload(7, 2);
        let text = String::from_utf8(refusal.to_http1_bytes(false)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        for line in [
            "retry-after: 2",
            "x-worker-id: 7",
            "connection: close",
            "content-type: application/problem+json",
        ] {
            assert!(head.split("\r\n").any(|found| found == line), "{line} in {head}");
        }
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["status"], 503);
        assert!(refusal.to_http1_bytes(true).ends_with(b"\r\n\r\n"));
        assert_eq!(refusal.to_response(true).headers()[header::CONNECTION], "close");
    }
}
