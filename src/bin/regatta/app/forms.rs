//! What a browser or a program sends to change something, and whether its own page sent it.
//!
//! Three things keep other sites from acting in a visitor's name: the cookie is `SameSite=Lax`; the browser says where
//! a request comes from (`Sec-Fetch-Site`, or `Origin`); and a form carries a text that only this session's pages have.

use axum::Form;
use axum::Json;
use axum::body::Body;
use axum::extract::FromRequest;
use axum::extract::FromRequestParts;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::Uri;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use axum::response::Response;
use regatta::Account;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A body, by its media type.
#[derive(Debug)]
pub(super) enum Sent<T> {
    /// A form, which any site could have sent.
    Form(T),
    /// JSON, which browsers send to their own site only, unless that says otherwise.
    Json(T),
    /// Nothing.
    Nothing,
}

impl<T: DeserializeOwned> Sent<T> {
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
pub(super) struct Token {
    #[serde(default)]
    pub(super) token: String,
}

/// Whether a form is from one of the session's own pages. Without any cookie there is no session that could be abused.
pub(super) async fn is_own(account: &Account, headers: &HeaderMap, token: &str) -> bool {
    !headers.contains_key(header::COOKIE) || account.is_form_token(token).await
}

pub(super) const EXPIRED: &str = "this form is too old or not from here; open its page again";

/// A request that no other site sent; naming it refuses the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct SameOrigin;

impl<S: Sync> FromRequestParts<S> for SameOrigin {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        match is_same_origin(&parts.headers, &parts.uri) {
            true => Ok(Self),
            false => Err((StatusCode::FORBIDDEN, "another site sent this request")),
        }
    }
}

/// Programs say nothing of where a request comes from, and have no visitor who could be abused.
fn is_same_origin(headers: &HeaderMap, uri: &Uri) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin" || site == "none";
    }
    let Some(origin) = text(header::ORIGIN) else { return true };
    let host = text(header::HOST).or_else(|| uri.authority().map(|authority| authority.as_str()));
    let from = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    host.is_some() && from == host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_sites_are_refused_and_programs_are_not() {
        let cases: [(&[(&str, &str)], bool); 9] = [
            (&[("host", "a.test")], true),
            (&[("host", "a.test"), ("origin", "https://a.test")], true),
            (&[("host", "a.test:3000"), ("origin", "http://a.test:3000")], true),
            (&[("host", "a.test"), ("origin", "https://b.test")], false),
            (&[("host", "a.test"), ("origin", "null")], false),
            (&[("origin", "https://a.test")], false),
            (&[("host", "a.test"), ("sec-fetch-site", "same-origin")], true),
            (&[("host", "a.test"), ("sec-fetch-site", "cross-site")], false),
            (&[("host", "a.test"), ("sec-fetch-site", "same-site"), ("origin", "https://a.test")], false),
        ];
        for (pairs, expected) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            assert_eq!(is_same_origin(&headers, &Uri::from_static("/login")), expected, "{pairs:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("origin", "https://a.test".parse().unwrap());
        assert!(is_same_origin(&headers, &Uri::from_static("https://a.test/login")), "HTTP/2 has no Host");
    }
}
