//! `Idempotency-Key`: a request that is sent again is carried out once (draft-ietf-httpapi-idempotency-key-header).
//!
//! Guarantees that of all requests of one client with one key at most one is under way, as long as its worker lives and
//! reaches Redis; that the others get its response, or hear that it is still under way or that it was another request;
//! and that a response which may be another one at the next try (5xx, 429, 408) is not kept. A worker that dies leaves
//! a lease that ends, and the next repetition is carried out. Requests without the header cost nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::body::Body;
use axum::body::to_bytes;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::StatusCode;
use http::header;
use http_body::Body as _;
use ring::digest;

use crate::http::error::Refusal;
use crate::http::exchange::Exchange;
use crate::http::problem::Problem;
use crate::http::state::Core;
use crate::redis::claim::Claim;
use crate::redis::claim::Claimed;
use crate::redis::claim::Kept;
use crate::redis::keys;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Headers that are the first response's own, or this response's.
const NOT_KEPT: [HeaderName; 8] = [
    header::SET_COOKIE,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::DATE,
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("session-commit"),
    HeaderName::from_static("session-state"),
];

/// Longest key, bytes.
const KEY_MAX: usize = 255;

/// Largest body that is kept.
const BODY_MAX: u64 = 64 * 1024;

/// Who carries a request out has it to himself for so long, and renews it meanwhile.
const LEASE: Duration = Duration::from_secs(5);
const RENEW_EVERY: Duration = Duration::from_millis(1500);
/// Pause before a response that could not be kept is offered again.
const KEEP_AGAIN: Duration = Duration::from_millis(100);

/// The right to carry a request out.
#[derive(Debug)]
pub(super) struct Ticket {
    core: Arc<Core>,
    record: String,
    owner: String,
}

/// Whether a request asks to be carried out once.
pub(super) fn asks<B>(core: &Core, request: &Request<B>) -> bool {
    matches!(*request.method(), Method::POST | Method::PATCH)
        && request.headers().contains_key(KEY)
        && !core.config.idempotency.ttl.is_zero()
}

/// The request and the right to carry it out, or what is answered in its place.
///
/// Its limits are decided first, because a repetition is a request like any other; `idempotency.policy` is one of them,
/// because what is kept takes memory whatever the path.
///
/// # Cancel safety
/// A right that was granted and is dropped ends with its lease.
pub(super) async fn admit(
    exchange: &Arc<Exchange>,
    request: Request<Body>,
) -> Result<(Request<Body>, Ticket), Response> {
    let (parts, body) = request.into_parts();
    let key = key(&parts.headers).ok_or_else(|| {
        let wrong = format!("Idempotency-Key is one string of 1 to {KEY_MAX} visible characters");
        Problem::new(StatusCode::BAD_REQUEST, wrong).into_response()
    })?;
    let policy = exchange.core.config.idempotency.policy.as_deref();
    match policy.and_then(|name| exchange.core.limits.policies().named(name)) {
        Some((policy, _)) => exchange.limit(policy, None).await,
        None => exchange.decide().await,
    }
    .map_err(IntoResponse::into_response)?;
    // The body is bounded already; what is wrong with it is remembered there and told instead of this.
    let body = to_bytes(body, usize::MAX)
        .await
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the request's body broke off").into_response())?;
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let fingerprint = sha256(&[parts.method.as_str().as_bytes(), target.as_bytes(), &body]);
    let core = &exchange.core;
    let owner = core.request_id().to_str().unwrap_or_default().to_owned();
    let ticket = Ticket { core: Arc::clone(core), record: record(exchange, &key), owner };
    match ticket.claim(&fingerprint).await {
        Ok(Claimed::Granted) => Ok((Request::from_parts(parts, Body::from(body)), ticket)),
        Ok(Claimed::Running(left)) => Err(Problem::idempotency_running(seconds(left)).into_response()),
        Ok(Claimed::Other) => Err(Problem::idempotency_other().into_response()),
        Ok(Claimed::Done(kept)) => Err(replay(kept)),
        Err(error) => {
            let mut begun = exchange.begun().await;
            Err(begun.refusal.insert(Refusal::from(&error)).error().into_response())
        }
    }
}

impl Ticket {
    async fn claim(&self, fingerprint: &str) -> Result<Claimed, crate::redis::Error> {
        let lifetime = self.core.config.idempotency.ttl.max(LEASE);
        let (key, owner) = (&self.record, &self.owner);
        self.core.redis.claim(&Claim { key, fingerprint, owner, lease: LEASE, lifetime }).await
    }

    /// Waits for the response and keeps the right to make it.
    pub(super) async fn hold(&self, response: impl Future<Output = Response>) -> Response {
        tokio::select! {
            response = response => response,
            never = self.renew() => match never {},
        }
    }

    async fn renew(&self) -> Infallible {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.core.redis.prolong(&self.record, &self.owner, LEASE).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!("a request that was to be carried out once took longer than its lease")
                }
                Err(error) => tracing::debug!(%error, "a lease was not renewed: {error}"),
            }
        }
    }

    /// Keeps the response, or lets the request be carried out again.
    pub(super) async fn conclude(self, response: Response) -> Response {
        let status = response.status();
        let again = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
        let (redis, record, owner) = (&self.core.redis, &self.record, &self.owner);
        let (response, kept) = if status.is_server_error() || again.contains(&status) {
            (response, redis.forget(record, owner).await)
        } else {
            let (response, kept) = copy(response).await;
            (response, self.keep(&kept).await)
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "the response of a request that was carried out once was not kept: {error}");
        }
        response
    }

    /// Keeps the response, and tries again for as long as nobody else may carry the request out: a response that is
    /// not kept is a request that is carried out twice.
    async fn keep(&self, kept: &Kept) -> Result<bool, crate::redis::Error> {
        let until = Instant::now() + LEASE / 2;
        loop {
            let ttl = self.core.config.idempotency.ttl;
            match self.core.redis.keep(&self.record, &self.owner, ttl, kept).await {
                Err(_) if Instant::now() < until => tokio::time::sleep(KEEP_AGAIN).await,
                outcome => return outcome,
            }
        }
    }
}

/// The header's value: a string of Structured Fields (RFC 9651), or the bare text that most clients send.
fn key(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(KEY).iter();
    let (only, None) = (values.next()?.to_str().ok()?.trim(), values.next()) else { return None };
    let text = match only.strip_prefix('"') {
        Some(rest) => unescape(rest.strip_suffix('"')?)?,
        None => only.to_owned(),
    };
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    ((1..=KEY_MAX).contains(&text.len()) && visible).then_some(text)
}

/// The inside of a quoted string.
fn unescape(quoted: &str) -> Option<String> {
    let mut text = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().filter(|c| matches!(c, '"' | '\\'))?),
            '"' => return None,
            c => text.push(c),
        }
    }
    Some(text)
}

/// The name of the record: one client's keys are nobody else's.
fn record(exchange: &Exchange, key: &str) -> String {
    let client = match exchange.visitor.digest() {
        Some(session) => format!("session {session}"),
        None => format!("client {}", exchange.client.subject(exchange.core.config.ipv6_prefix)),
    };
    keys::idempotency(&exchange.core.prefix, &sha256(&[client.as_bytes(), key.as_bytes()]))
}

/// The parts' digest, hex; each part is preceded by its length, so that no two lists look the same.
fn sha256(parts: &[&[u8]]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// When to ask again: whoever lives is done soon, and renews a lease that says no more than when a dead one's ends.
fn seconds(left: Duration) -> u64 {
    left.as_secs().clamp(1, 2)
}

/// The response and what is kept of it; one whose body is large or has no known end is only noted as made.
async fn copy(response: Response) -> (Response, Kept) {
    let (parts, body) = response.into_parts();
    let fits = body.size_hint().exact().is_some_and(|length| length <= BODY_MAX);
    let nothing = Kept { status: 0, headers: Bytes::new(), body: Bytes::new() };
    if !fits {
        return (Response::from_parts(parts, body), nothing);
    }
    // A body of known length is in memory already, or ends with an error that the client would have met as well.
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        return (Response::from_parts(parts, Body::empty()), nothing);
    };
    let kept = Kept { status: parts.status.as_u16(), headers: pack(&parts.headers), body: body.clone() };
    (Response::from_parts(parts, Body::from(body)), kept)
}

/// One line a header; a value has no line breaks.
fn pack(headers: &HeaderMap) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in headers.iter().filter(|(name, _)| !NOT_KEPT.contains(name)) {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.push(b':');
        lines.extend_from_slice(value.as_bytes());
        lines.push(b'\n');
    }
    lines.into()
}

fn unpack(lines: &[u8]) -> HeaderMap {
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

/// The first response once more.
fn replay(kept: Kept) -> Response {
    let Ok(status) = StatusCode::from_u16(kept.status) else {
        return Problem::idempotency_not_kept().into_response();
    };
    let mut response = Response::new(Body::from(kept.body));
    *response.status_mut() = status;
    *response.headers_mut() = unpack(&kept.headers);
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use http_body_util::Full;

    use super::*;

    fn read(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| _ = headers.append(KEY, HeaderValue::from_str(value).unwrap()));
        key(&headers)
    }

    #[test]
    fn a_key_is_a_quoted_string_or_bare_text() {
        let cases: [(&[&str], Option<&str>); 10] = [
            (&["8e03978e-40d5-43e8-bc93-6894a57f9324"], Some("8e03978e-40d5-43e8-bc93-6894a57f9324")),
            (&["\"8e03978e\""], Some("8e03978e")),
            (&["\"a\\\"b\\\\c\""], Some("a\"b\\c")),
            (&["\"a b\""], Some("a b")),
            (&[""], None),
            (&["\"\""], None),
            (&["\"a"], None),
            (&["\"a\"b\""], None),
            (&["\"a\\n\""], None),
            (&["a", "b"], None),
        ];
        for (values, expected) in cases {
            assert_eq!(read(values).as_deref(), expected, "{values:?}");
        }
        assert_eq!(read(&[&"x".repeat(KEY_MAX)]).map(|key| key.len()), Some(KEY_MAX));
        assert_eq!(read(&[&"x".repeat(KEY_MAX + 1)]), None);
    }

    #[test]
    fn parts_that_only_look_the_same_together_have_different_digests() {
        assert_ne!(sha256(&[b"ab", b"c"]), sha256(&[b"a", b"bc"]));
        assert_eq!(sha256(&[b"a"]).len(), 64);
    }

    #[tokio::test]
    async fn what_is_kept_of_a_response_comes_back_without_its_cookies() {
        let headers = [("set-cookie", "sid=1"), ("x-a", "1"), ("x-a", "2"), ("ratelimit", "x")];
        let mut response = (StatusCode::CREATED, "made").into_response();
        for (name, value) in headers {
            response.headers_mut().append(name, HeaderValue::from_static(value));
        }
        let (response, kept) = copy(response).await;
        assert_eq!(response.headers()["set-cookie"], "sid=1");
        let again = replay(kept);
        assert_eq!(
            (again.status(), &again.headers()[REPLAYED]),
            (StatusCode::CREATED, &HeaderValue::from_static("true"))
        );
        let values: Vec<_> = again.headers().get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert!(!again.headers().contains_key("set-cookie") && !again.headers().contains_key("ratelimit"));
        assert_eq!(to_bytes(again.into_body(), 100).await.unwrap(), "made");
    }

    #[tokio::test]
    async fn a_response_without_an_end_is_only_noted() {
        let unbounded = Full::new(Bytes::from_static(b"x")).map_frame(|frame| frame);
        let endless = Response::new(Body::new(unbounded));
        let (_, kept) = copy(endless).await;
        assert_eq!(kept.status, 0);
        assert_eq!(replay(kept).status(), StatusCode::CONFLICT);
        let (response, kept) = copy(Response::new(Body::from(vec![0; 70_000]))).await;
        assert_eq!((kept.status, response.body().size_hint().exact()), (0, Some(70_000)));
    }
}
