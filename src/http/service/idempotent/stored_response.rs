//! What is stored of a response, and what a repetition gets of it.
//!
//! Guarantees that a cookie is never stored as it was sent: the change of the session is stored encrypted, and a
//! repetition that may have it gets a new cookie.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::Body as _;
use tower_sessions::session::Id;

use crate::http::header_names::{
    IDEMPOTENCY_REPLAYED, RATELIMIT, RATELIMIT_POLICY, SESSION_COMMIT, SESSION_STATE, X_RATELIMIT_LIMIT,
    X_RATELIMIT_REMAINING, X_RATELIMIT_RESET,
};
use crate::http::problem::Problem;
use crate::redis::idempotency::StoredResponse;
use crate::sessions::cookie_value::ProvisionalCookie;
use crate::sessions::user::UserTag;

/// Prefix of the line with the session's change. No header's name begins so, and versions that do not know
/// the line pass over it.
const SESSION_LINE: &[u8] = b":session:";
/// Prefix of the line with the names of those that the response is for, parted by spaces.
const READERS_LINE: &[u8] = b":for:";

/// Headers that are the first response's own, or this response's.
const NOT_STORED: [HeaderName; 11] = [
    header::SET_COOKIE,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::DATE,
    RATELIMIT,
    RATELIMIT_POLICY,
    X_RATELIMIT_LIMIT,
    X_RATELIMIT_REMAINING,
    X_RATELIMIT_RESET,
    SESSION_COMMIT,
    SESSION_STATE,
];

/// What a response did with its visitor's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordedSessionChange {
    /// Hashed id that the request came with.
    pub(super) previous_digest: Option<String>,
    pub(super) current: SessionAfterResponse,
}

/// The session afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionAfterResponse {
    /// The visitor has this one; its cookie may have a lifetime of its own, or be provisional.
    Active { id: Id, user: Option<UserTag>, age: Option<Duration>, provisional: Option<ProvisionalCookie> },
    /// None: it was ended.
    Destroyed,
}

impl RecordedSessionChange {
    /// As text: five words, `-` where there is nothing, or one.
    pub(super) fn encode(&self) -> String {
        let word = |word: Option<String>| word.unwrap_or_else(|| "-".to_owned());
        let previous_digest = word(self.previous_digest.clone());
        match self.current {
            SessionAfterResponse::Destroyed => previous_digest,
            SessionAfterResponse::Active { id, user, age, provisional } => {
                let user = word(user.map(|user| user.to_string()));
                let age = word(age.map(|age| age.as_secs().to_string()));
                let provisional = word(provisional.map(ProvisionalCookie::encode));
                format!("{previous_digest} {id} {user} {age} {provisional}")
            }
        }
    }

    pub(super) fn decode(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let some = |word: &str| (word != "-").then(|| word.to_owned());
        let (previous_digest, current) = match words.as_slice() {
            [previous_digest] => (previous_digest, SessionAfterResponse::Destroyed),
            [previous_digest, id, user, age, provisional] => {
                let user = some(user).map(|user| user.parse()).transpose().ok()?;
                let age = some(age).map(|age| age.parse().map(Duration::from_secs)).transpose().ok()?;
                let provisional = match some(provisional) {
                    None => None,
                    Some(encoded) => Some(ProvisionalCookie::decode(&encoded)?),
                };
                (
                    previous_digest,
                    SessionAfterResponse::Active { id: id.parse().ok()?, user, age, provisional },
                )
            }
            _ => return None,
        };
        Some(Self { previous_digest: some(previous_digest), current })
    }

    /// Whether a repetition that comes with this session may have it: it is the one that the response was for, or the
    /// client never got a cookie. A client with another session keeps that.
    pub(super) fn applies_to(&self, session: Option<&str>) -> bool {
        match self.current {
            SessionAfterResponse::Active { .. } => {
                session.is_none() || session == self.previous_digest.as_deref()
            }
            SessionAfterResponse::Destroyed => {
                session.is_some() && session == self.previous_digest.as_deref()
            }
        }
    }
}

/// Whether a response is stored if its handler does not decide: not if the next try may get another one, and not if the
/// client was not authenticated.
pub(super) fn is_final(status: StatusCode) -> bool {
    !matches!(status.as_u16(), 100..=199 | 401 | 403 | 408 | 409 | 421 | 425 | 429 | 500..)
}

/// The response and what is kept of it, at most `most` bytes; of one that is larger or has no known length only the fact is stored.
pub(super) async fn capture_response(
    response: Response,
    max_bytes: u64,
    readers: &[String],
    sealed: Option<&str>,
) -> (Response, StoredResponse) {
    let (parts, body) = response.into_parts();
    let headers = encode_headers(&parts.headers, readers, sealed);
    let fits = |length: u64| length + headers.len() as u64 <= max_bytes;
    let marker_only = StoredResponse {
        status: 0,
        headers: encode_headers(&HeaderMap::new(), readers, sealed),
        body: Bytes::new(),
    };
    if !body.size_hint().exact().is_some_and(fits) {
        return (Response::from_parts(parts, body), marker_only);
    }
    // A body of known length is in memory already, or ends with an error that the client would have met as well.
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        return (Response::from_parts(parts, Body::empty()), marker_only);
    };
    let kept = StoredResponse { status: parts.status.as_u16(), headers, body: body.clone() };
    (Response::from_parts(parts, Body::from(body)), kept)
}

/// One line a header; a value has no line breaks.
fn encode_headers(headers: &HeaderMap, readers: &[String], sealed: Option<&str>) -> Bytes {
    let mut lines = [READERS_LINE, readers.join(" ").as_bytes(), b"\n"].concat();
    if let Some(sealed) = sealed {
        lines.extend_from_slice(&[SESSION_LINE, sealed.as_bytes(), b"\n"].concat());
    }
    // The response to each repetition has its own `Vary: Cookie`.
    let is_own_vary = |name: &HeaderName, value: &HeaderValue| name == header::VARY && value == "Cookie";
    for (name, value) in
        headers.iter().filter(|(name, value)| !NOT_STORED.contains(name) && !is_own_vary(name, value))
    {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.push(b':');
        lines.extend_from_slice(value.as_bytes());
        lines.push(b'\n');
    }
    lines.into()
}

fn decode_headers(lines: &[u8]) -> HeaderMap {
    let header = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        Some((name, HeaderValue::from_bytes(&line[colon + 1..]).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in lines.split(|byte| *byte == b'\n').filter_map(header) {
        headers.append(name, value);
    }
    headers
}

/// The encrypted change of the session.
pub(super) fn sealed_session_change(kept: &StoredResponse) -> Option<&str> {
    find_line(kept, SESSION_LINE)
}

/// Whether a response is for a client with these names; one that does not say is of an earlier release.
pub(super) fn is_readable_by(kept: &StoredResponse, names: &[String]) -> bool {
    find_line(kept, READERS_LINE)
        .is_none_or(|readers| readers.split(' ').any(|name| names.iter().any(|own| own == name)))
}

/// The line of ours that begins so.
fn find_line<'a>(kept: &'a StoredResponse, prefix: &[u8]) -> Option<&'a str> {
    let mut lines = kept.headers.split(|byte| *byte == b'\n');
    lines.find_map(|line| std::str::from_utf8(line.strip_prefix(prefix)?).ok())
}

/// The first response once more.
pub(super) fn replay(kept: StoredResponse) -> Response {
    let Ok(status) = StatusCode::from_u16(kept.status) else {
        return Problem::idempotency_not_stored().into_response();
    };
    let mut response = Response::new(Body::from(kept.body));
    *response.status_mut() = status;
    *response.headers_mut() = decode_headers(&kept.headers);
    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::sessions::cookie::new_id;

    #[tokio::test]
    async fn what_is_kept_of_a_response_comes_back_without_its_cookies() {
        let headers = [("set-cookie", "sid=1"), ("x-a", "1"), ("x-a", "2"), ("ratelimit", "x")];
        let mut response = (StatusCode::CREATED, "made").into_response();
        for (name, value) in headers.into_iter().chain([("vary", "Accept"), ("vary", "Cookie")]) {
            response.headers_mut().append(name, HeaderValue::from_static(value));
        }
        let (response, kept) =
            capture_response(response, 1024, &["a".to_owned(), "b".to_owned()], Some("c2VhbGVk")).await;
        assert_eq!(response.headers()["set-cookie"], "sid=1");
        assert_eq!(sealed_session_change(&kept), Some("c2VhbGVk"));
        let is_for = |name: &str| is_readable_by(&kept, &["x".to_owned(), name.to_owned()]);
        assert!(is_for("a") && is_for("b") && !is_for("c") && !is_for("a b") && !is_for(""));
        let again = replay(kept);
        assert_eq!(
            (again.status(), &again.headers()[IDEMPOTENCY_REPLAYED]),
            (StatusCode::CREATED, &HeaderValue::from_static("true"))
        );
        let values =
            |name| again.headers().get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        assert_eq!((values("x-a"), values("vary")), (vec![&b"1"[..], b"2"], vec![&b"Accept"[..]]));
        assert!(!again.headers().contains_key("set-cookie") && !again.headers().contains_key("ratelimit"));
        assert_eq!(to_bytes(again.into_body(), 100).await.unwrap(), "made");
    }

    #[tokio::test]
    async fn a_response_without_an_end_or_too_large_is_stored_as_a_marker() {
        let unbounded = Full::new(Bytes::from_static(b"x")).map_frame(|frame| frame);
        let endless = Response::new(Body::new(unbounded));
        let (_, kept) = capture_response(endless, 1024, &[], Some("x")).await;
        assert_eq!((kept.status, sealed_session_change(&kept)), (0, Some("x")));
        assert!(!is_readable_by(&kept, &["a".to_owned()]), "for no client");
        assert_eq!(replay(kept).status(), StatusCode::CONFLICT);
        let (response, kept) =
            capture_response(Response::new(Body::from(vec![0; 70_000])), 65_536, &[], None).await;
        assert_eq!((kept.status, response.body().size_hint().exact()), (0, Some(70_000)));
        let wordy = [("x-long", "x".repeat(4_000))];
        let (_, kept) = capture_response((wordy, "x".repeat(200)).into_response(), 4_096, &[], None).await;
        assert_eq!(kept.status, 0, "headers count as well");
    }

    #[test]
    fn only_what_will_not_change_is_kept() {
        for status in [200, 201, 202, 204, 301, 303, 400, 402, 404, 410, 422] {
            assert!(is_final(StatusCode::from_u16(status).unwrap()), "{status}");
        }
        for status in [100, 401, 403, 408, 409, 421, 425, 429, 500, 501, 502, 503, 507] {
            assert!(!is_final(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }

    #[test]
    fn a_change_is_read_back_and_is_for_its_own_client() {
        let id = new_id().unwrap();
        let user = Some(UserTag::from_name(b"key", "ann"));
        let age = Some(Duration::from_secs(60));
        for before in [None, Some("before".to_owned())] {
            let provisional = |viewed| {
                let provisional = Some(ProvisionalCookie { issued_ms: 1_763_694_494_123, viewed });
                SessionAfterResponse::Active { id, user: None, age: None, provisional }
            };
            let is = SessionAfterResponse::Active { id, user, age, provisional: None };
            for now in [is, provisional(false), provisional(true), SessionAfterResponse::Destroyed] {
                let change = RecordedSessionChange { previous_digest: before.clone(), current: now };
                assert_eq!(RecordedSessionChange::decode(&change.encode()).as_ref(), Some(&change));
                let here = before.as_deref();
                assert_eq!(
                    change.applies_to(here),
                    here.is_some() || now != SessionAfterResponse::Destroyed,
                    "{change:?}"
                );
                assert!(!change.applies_to(Some("another")), "{change:?}");
            }
        }
        for bad in ["a b", "", "a b c d e f", "- x - - -", "- x - y -"] {
            assert!(
                RecordedSessionChange::decode(bad)
                    .is_none_or(|change| change.current == SessionAfterResponse::Destroyed),
                "{bad}"
            );
        }
    }
}
