//! Headers that narrow what a browser may do with a response.
//!
//! Guarantees a floor for every response and a strict one for documents; a handler's own header always wins.

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::http::header_names::{CROSS_ORIGIN_OPENER_POLICY, PERMISSIONS_POLICY};

/// For a document: only its own styles, images and forms; no script at all; no page may frame it.
///
/// `style-src 'self'` without `'unsafe-inline'`: a page links its stylesheet instead of carrying it.
pub const DOCUMENT_CSP: &str = "default-src 'none'; style-src 'self'; img-src 'self'; font-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const DOCUMENT_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(DOCUMENT_CSP)),
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (CROSS_ORIGIN_OPENER_POLICY, HeaderValue::from_static("same-origin")),
    (PERMISSIONS_POLICY, HeaderValue::from_static("camera=(), geolocation=(), microphone=()")),
];

/// Adds what is missing. Responses that are no documents get `nosniff` only: the rest means nothing for them.
pub fn apply_security_headers(headers: &mut HeaderMap) {
    add_if_missing(headers, &header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let document =
        headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html"));
    if document {
        for (name, value) in DOCUMENT_HEADERS {
            add_if_missing(headers, &name, value);
        }
    }
}

fn add_if_missing(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    // One look: this is done for every response.
    if let Entry::Vacant(vacant) = headers.entry(name) {
        vacant.insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_locked_down_and_a_handlers_own_policy_stays() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        apply_security_headers(&mut headers);
        assert_eq!(headers[header::CONTENT_SECURITY_POLICY], DOCUMENT_CSP);
        assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }

    #[test]
    fn a_line_of_text_is_only_protected_from_sniffing() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        apply_security_headers(&mut headers);
        assert_eq!(headers.len(), 2);
    }
}
