//! Whether a request was sent by one of this site's own pages, as far as browsers say; for whatever changes something.
//!
//! Browsers say where a request comes from in `Sec-Fetch-Site` (W3C Fetch Metadata), which no page can set, or else in
//! `Origin` (RFC 6454). Guarantees that what another site's page sends is refused, be it a form, `text/plain`, a page
//! without an origin (`null`) or one of another name below the same domain. Programs say nothing, and carry no
//! visitor's cookie that another site could use.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Request, StatusCode, Uri, header};
use tower::{Layer, Service};

use crate::http::header_names::{SEC_FETCH_SITE, X_FORWARDED_HOST};
use crate::http::problem::Problem;
use crate::http::real_ip::{ClientInfo, ClientTransport};
use crate::http::request_scope::RequestScope;

/// Refuses requests that another site's page sent, 403, unless their method only looks (RFC 9110 §9.2.1).
///
/// A layer for all routes of an application that change something, in one place. `Sec-Fetch-Site` decides if it is sent;
/// else `Origin` must name the requested host: the request's `Host`, or what a trusted proxy passes on as
/// `X-Forwarded-Host`, and `https` if the request came over TLS. Requests with neither, as programs send them, pass.
///
/// ```
/// use axum::Router;
/// use axum::routing::post;
/// use regatta::SameOrigin;
///
/// # async fn pay() {}
/// # async fn refund() {}
/// let writes: Router = Router::new()
///     .route("/pay", post(pay))
///     .route("/refund", post(refund))
///     .route_layer(SameOrigin::new().or("https://shop.example"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct SameOrigin {
    allowed: Arc<[String]>,
}

impl SameOrigin {
    /// A layer that lets pages of the own origin through, and programs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Pages of this origin, such as `https://example.org`, as well.
    #[must_use]
    pub fn or(self, origin: &str) -> Self {
        Self { allowed: self.allowed.iter().cloned().chain([origin.to_owned()]).collect() }
    }
}

impl<S> Layer<S> for SameOrigin {
    type Service = SameOriginService<S>;

    fn layer(&self, inner: S) -> SameOriginService<S> {
        SameOriginService { inner, allowed: Arc::clone(&self.allowed) }
    }
}

/// A service that other sites' pages cannot use, see [`SameOrigin`].
#[derive(Debug, Clone)]
pub struct SameOriginService<S> {
    inner: S,
    allowed: Arc<[String]>,
}

impl<S> Service<Request<Body>> for SameOriginService<S>
where
    S: Service<Request<Body>>,
    S::Response: IntoResponse,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = RequestScope::find(request.extensions()).map(|scope| scope.state().client);
        let is_safe = request.method().is_safe();
        if !is_safe && !is_same_origin(request.headers(), request.uri(), client.as_ref(), &self.allowed) {
            let problem = Problem::new(StatusCode::FORBIDDEN, "another site's page sent this request");
            return Box::pin(std::future::ready(Ok(problem.into_response())));
        }
        let response = self.inner.call(request);
        Box::pin(async move { response.await.map(IntoResponse::into_response) })
    }
}

/// Whether the request was sent by a page of the requested host or of an allowed origin, or by a program, and not by
/// another site's page.
pub(super) fn is_same_origin(
    headers: &HeaderMap,
    uri: &Uri,
    client: Option<&ClientInfo>,
    allowed: &[String],
) -> bool {
    let origin = headers.contains_key(header::ORIGIN).then(|| single_value(headers, &header::ORIGIN));
    let is_named = || {
        origin.flatten().is_some_and(|origin| allowed.iter().any(|other| other.eq_ignore_ascii_case(origin)))
    };
    if headers.contains_key(SEC_FETCH_SITE) {
        // `none`: the visitor did it, without any page.
        return matches!(single_value(headers, &SEC_FETCH_SITE), Some("same-origin" | "none")) || is_named();
    }
    match origin {
        None => true,
        Some(None) => false,
        Some(Some(origin)) => is_named() || is_host_origin(origin, headers, uri, client),
    }
}

/// Whether an origin is that of the requested host.
fn is_host_origin(origin: &str, headers: &HeaderMap, uri: &Uri, client: Option<&ClientInfo>) -> bool {
    let Some((scheme, from)) = origin.split_once("://") else { return false };
    // A proxy that ends TLS may not report it: then both are accepted.
    let port = match (scheme, client.map(|client| client.transport)) {
        ("https", _) => 443,
        ("http", None | Some(ClientTransport::Plain)) => 80,
        _ => return false,
    };
    let Some(from) = parse_authority(from) else { return false };
    // A browser leaves its scheme's port out; a proxy may not.
    let number = |authority: &Authority| authority.port_u16().unwrap_or(port);
    let same =
        |here: &Authority| from.host().eq_ignore_ascii_case(here.host()) && number(&from) == number(here);
    let target = match headers.contains_key(header::HOST) {
        true => single_value(headers, &header::HOST).and_then(parse_authority),
        false => uri.authority().cloned(),
    };
    let forwarded =
        client.filter(|client| client.proxied).and_then(|_| single_value(headers, &X_FORWARDED_HOST));
    let forwarded = forwarded
        .into_iter()
        .flat_map(|hosts| hosts.split(','))
        .filter_map(|host| parse_authority(host.trim()));
    target.into_iter().chain(forwarded).any(|here| same(&here))
}

fn parse_authority(text: &str) -> Option<Authority> {
    text.parse::<Authority>().ok().filter(|found| !text.contains('@') && !found.host().is_empty())
}

/// The value of a header that was sent once.
pub(super) fn single_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::{IpAddr, Ipv4Addr};

    use tower::ServiceExt;

    use super::*;

    fn client(transport: ClientTransport, proxied: bool) -> ClientInfo {
        ClientInfo { address: IpAddr::V4(Ipv4Addr::LOCALHOST), transport, proxied }
    }

    fn passes_for(pairs: &[(&'static str, &str)], client: Option<&ClientInfo>) -> bool {
        let mut headers = HeaderMap::new();
        pairs.iter().for_each(|(name, value)| _ = headers.append(*name, value.parse().unwrap()));
        is_same_origin(&headers, &Uri::from_static("/login"), client, &["https://friend.test".to_owned()])
    }

    fn passes(pairs: &[(&'static str, &str)]) -> bool {
        passes_for(pairs, None)
    }

    #[test]
    fn an_origin_is_the_requested_host_or_an_allowed_one() {
        let cases = [
            ("http://a.test:3000", "a.test:3000", true),
            ("https://a.test", "a.test", true),
            ("https://a.test", "a.test:443", true),
            ("http://a.test", "a.test:80", true),
            ("https://A.TEST", "a.test", true),
            ("https://a.test", "A.test", true),
            ("https://friend.test", "a.test", true),
            ("https://[::1]:8443", "[::1]:8443", true),
            ("http://friend.test", "a.test", false),
            ("http://a.test", "a.test:443", false),
            ("https://a.test:8443", "a.test", false),
            ("http://a.test:3000", "a.test:3001", false),
            ("https://www.a.test", "a.test", false),
            ("https://a.test", "www.a.test", false),
            ("https://a.test.b.test", "a.test", false),
            ("https://a.test@b.test", "b.test", false),
            ("null", "a.test", false),
            ("null", "null", false),
            ("", "a.test", false),
            ("a.test", "a.test", false),
            ("file://a.test", "a.test", false),
            ("chrome-extension://a.test", "a.test", false),
        ];
        for (origin, host, expected) in cases {
            assert_eq!(passes(&[("origin", origin), ("host", host)]), expected, "{origin} at {host}");
        }
        let two = [("host", "a.test"), ("origin", "https://a.test"), ("origin", "https://b.test")];
        assert!(!passes(&two) && !passes(&[("origin", "https://a.test")]));
        assert!(passes(&[("host", "a.test")]) && passes(&[]), "programs say nothing");
        let mut headers = HeaderMap::new();
        headers.insert("origin", "https://a.test".parse().unwrap());
        assert!(
            is_same_origin(&headers, &Uri::from_static("https://a.test/login"), None, &[]),
            "HTTP/2 has no Host"
        );
    }

    #[test]
    fn what_the_browser_reports_in_fetch_metadata_decides() {
        let with = |fetch_metadata: &str, origin: &str| {
            passes(&[("host", "backend:3000"), ("sec-fetch-site", fetch_metadata), ("origin", origin)])
        };
        for fetch_metadata in ["same-origin", "none"] {
            assert!(
                with(fetch_metadata, "https://a.test") && passes(&[("sec-fetch-site", fetch_metadata)]),
                "{fetch_metadata}"
            );
        }
        for fetch_metadata in ["same-site", "cross-site", "", "Same-Origin", "same-origin, none"] {
            assert!(
                !with(fetch_metadata, "http://backend:3000")
                    && !passes(&[("sec-fetch-site", fetch_metadata)]),
                "{fetch_metadata}"
            );
        }
        assert!(with("cross-site", "https://friend.test"));
        assert!(!passes(&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn behind_a_trusted_proxy_the_visitors_host_and_scheme_count() {
        let (tls, plain) = (client(ClientTransport::Tls, true), client(ClientTransport::Plain, true));
        let sent = |origin: &'static str, client: &ClientInfo| {
            let pairs = [("host", "backend:3000"), ("x-forwarded-host", "a.test:8443"), ("origin", origin)];
            passes_for(&pairs, Some(client))
        };
        assert!(sent("https://a.test:8443", &tls) && sent("https://a.test:8443", &plain));
        assert!(!sent("http://a.test:8443", &tls), "a page from before TLS is another's");
        assert!(!sent("https://a.test", &tls) && !sent("https://evil.test", &tls));
        let stranger = client(ClientTransport::Plain, false);
        assert!(!sent("https://a.test:8443", &stranger), "only a trusted proxy is believed");
    }

    #[tokio::test]
    async fn safe_methods_pass_and_all_others_are_checked() {
        let inner = tower::service_fn(async |_: Request<Body>| Ok::<_, Infallible>("done"));
        let service = SameOrigin::new().or("https://friend.test").layer(inner);
        let status = async |method: &str, origin: &str| {
            let request = Request::builder().method(method).header("host", "a.test").header("origin", origin);
            let request = request.header("x-http-method-override", "GET").body(Body::empty()).unwrap();
            service.clone().oneshot(request).await.unwrap().status()
        };
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert_eq!(status(method, "https://evil.test").await, StatusCode::OK, "{method}");
        }
        for method in ["POST", "PUT", "PATCH", "DELETE", "PROPFIND", "get"] {
            assert_eq!(status(method, "https://evil.test").await, StatusCode::FORBIDDEN, "{method}");
            assert_eq!(status(method, "https://friend.test").await, StatusCode::OK, "{method}");
        }
    }
}
