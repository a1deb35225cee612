//! What clients accept and send, and whether a form is from one of the session's own pages.
//!
//! Three things keep other sites from acting in a visitor's name: the cookie is `SameSite=Lax`; routes that write reject
//! requests of other origins, in one place (`write_routes` in `mod.rs`); and a form carries a token of its session.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Form, Json};
use regatta::session::{AuthSession, PageView};
use regatta::{Error, ErrorKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A body, by its media type.
#[derive(Debug)]
pub(super) enum RequestBody<T> {
    /// A form, which any site could have sent.
    Form(T),
    /// JSON, which browsers send to their own site only, unless that says otherwise.
    Json(T),
    /// Nothing.
    Nothing,
}

impl<T: DeserializeOwned> RequestBody<T> {
    pub(super) async fn read(request: Request<Body>) -> Result<Self, Response> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "" => Ok(Self::Nothing),
            "application/json" => match Json::from_request(request, &()).await {
                Ok(Json(sent)) => Ok(Self::Json(sent)),
                Err(error) => Err(error.into_response()),
            },
            "application/x-www-form-urlencoded" => match Form::from_request(request, &()).await {
                Ok(Form(sent)) => Ok(Self::Form(sent)),
                Err(error) => Err(error.into_response()),
            },
            _ => Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form or JSON").into_response()),
        }
    }
}

/// The hidden field of a form.
#[derive(Debug, Default, Deserialize)]
pub(super) struct CsrfField {
    #[serde(default)]
    pub(super) token: String,
}

/// Whether a form is from one of the session's own pages. Without a cookie there is no session to abuse.
pub(super) async fn has_valid_csrf_token(session: &AuthSession, headers: &HeaderMap, token: &str) -> bool {
    !headers.contains_key(header::COOKIE) || session.verify_csrf_token(token).await
}

pub(super) const CSRF_EXPIRED: &str = "this form is too old or not from here; open its page again";

/// The client of the front page. The view is extracted first: its one round trip loads the session, too.
pub(super) enum PageReader {
    /// A browser, whose forms need a token of its session; without both while Redis is unavailable.
    Browser(Option<PageView>, Option<AuthSession>),
    /// Any other client: its line is nothing but the numbers, so without a view it gets an error.
    Client(PageView),
}

impl<S: Send + Sync> FromRequestParts<S> for PageReader {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        if !prefers_html(&parts.headers) {
            return Ok(Self::Client(
                <PageView as FromRequestParts<S>>::from_request_parts(parts, state).await?,
            ));
        }
        let view = <PageView as OptionalFromRequestParts<S>>::from_request_parts(parts, state).await?;
        match AuthSession::from_request_parts(parts, state).await {
            Ok(session) => Ok(Self::Browser(view, Some(session))),
            Err(error) if error.kind() == ErrorKind::Redis && view.is_none() => Ok(Self::Browser(None, None)),
            Err(error) => Err(error),
        }
    }
}

/// What the client accepts; an extractor, so that handlers need no copy of the headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepts {
    /// The page.
    Html,
    /// One line of text.
    Text,
}

impl<S: Sync> FromRequestParts<S> for Accepts {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(if prefers_html(&parts.headers) { Self::Html } else { Self::Text })
    }
}

/// Whether the client names HTML and prefers nothing plainer (RFC 9110 §12.5.1).
///
/// `*/*` is what programs send, so it gets text.
fn prefers_html(headers: &HeaderMap) -> bool {
    let ranges = || {
        headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
    };
    let quality = |media_type: &str| {
        ranges()
            .filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let named = parts.next()?.eq_ignore_ascii_case(media_type);
                let q = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
                named.then(|| q.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0)))
            })
            .fold(0.0, f32::max)
    };
    let html = quality("text/html").max(quality("application/xhtml+xml"));
    html > 0.0 && html >= quality("text/plain")
}

/// A number with narrow no-break spaces between its thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 2);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            // Narrow, and no line breaks at it.
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_the_page_and_programs_the_line() {
        let cases = [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", true),
            ("text/html", true),
            ("TEXT/HTML; q=0.5", true),
            ("*/*", false),
            ("", false),
            ("text/*", false),
            ("application/json", false),
            ("text/plain, text/html;q=0.5", false),
            ("text/html;q=0", false),
            ("text/html;q=nonsense", false),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(prefers_html(&headers), expected, "{accept}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
    }
}
