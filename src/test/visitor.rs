//! A client of an application under test.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Path;
use axum::routing::post;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use serde::de::DeserializeOwned;

use crate::facade::session;
use crate::facade::session::AuthSession;
use crate::http::HttpService;
use crate::worker::in_process;
use crate::worker::in_process::InProcessWorker;

/// Largest body of a response that is kept.
const BODY_MAX: usize = 64 << 20;

/// Number of the next visitor's address.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A client with cookies and an address of its own; clones are the same client.
///
/// ```no_run
/// use axum::body::Body;
/// use axum::http::Request;
/// use regatta::test::Visitor;
///
/// async fn buy(ann: Visitor) {
///     let ann = ann.log_in("ann").await;
///     ann.post("/cart", "boats=2").await;
///     let order = Request::put("/orders/7").header("idempotency-key", "5eed").body(Body::empty()).unwrap();
///     assert_eq!(ann.request(order).await.status(), 201);
///     assert_eq!(ann.get("/cart").await.text(), "empty\n");
/// }
/// # let _ = buy;
/// ```
#[derive(Debug, Clone)]
pub struct Visitor {
    worker: Arc<InProcessWorker>,
    address: SocketAddr,
    cookies: Arc<Mutex<BTreeMap<String, String>>>,
}

/// A response with its whole body.
///
/// ```no_run
/// use regatta::test::{TestResponse, Visitor};
///
/// async fn check(visitor: Visitor) {
///     let response: TestResponse = visitor.get("/boats/7").await;
///     assert_eq!(response.status(), 200, "{}", response.text());
///     assert_eq!(response.headers()["content-type"], "application/json");
///     assert_eq!(response.json::<serde_json::Value>()["oars"], 8);
/// }
/// # let _ = check;
/// ```
#[derive(Debug, Clone)]
pub struct TestResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Visitor {
    pub(super) fn new(worker: &Arc<InProcessWorker>) -> Self {
        // 10.0.0.0/8: no address of a trusted proxy.
        let number = NEXT.fetch_add(1, Relaxed) % (1 << 24);
        let address = Ipv4Addr::from_bits((10 << 24) | number);
        Self {
            worker: Arc::clone(worker),
            address: SocketAddr::from((address, 40_000)),
            cookies: Arc::default(),
        }
    }

    /// Gets a page.
    pub async fn get(&self, path: &str) -> TestResponse {
        self.request(request(Method::GET, path, Body::empty())).await
    }

    /// Sends a form, or any other body: `name=ann&age=7` is what a browser would send.
    pub async fn post(&self, path: &str, body: impl Into<Body>) -> TestResponse {
        let mut request = request(Method::POST, path, body.into());
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(header::CONTENT_TYPE, form);
        self.request(request).await
    }

    /// Sends any request, with the client's cookies.
    pub async fn request(&self, request: Request<Body>) -> TestResponse {
        self.send(self.worker.public(), request).await
    }

    /// The same client, logged in as this user without the application's form.
    ///
    /// # Panics
    /// When the user cannot be logged in, as while Redis is away.
    pub async fn log_in(self, user_id: &str) -> Self {
        let routes = Router::new().route("/{user}", post(log_in));
        let path = format!(
            "/{}",
            percent_encoding::utf8_percent_encode(user_id, percent_encoding::NON_ALPHANUMERIC)
        );
        let service = self.worker.service_for(routes);
        let response = self.send(&service, request(Method::POST, &path, Body::empty())).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "cannot log in {user_id}: {}", response.text());
        self
    }

    async fn send(&self, service: &HttpService, mut request: Request<Body>) -> TestResponse {
        if let Some(cookies) = self.cookie_search() {
            request.headers_mut().append(header::COOKIE, cookies);
        }
        let response = in_process::call(service, with_host(request), self.address).await;
        let (head, body) = response.into_parts();
        self.keep_cookies(&head.headers);
        let body = to_bytes(body, BODY_MAX)
            .await
            .unwrap_or_else(|error| panic!("the response ended early: {error}"));
        TestResponse { status: head.status, headers: head.headers, body }
    }

    fn cookie_search(&self) -> Option<HeaderValue> {
        let cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        (!pairs.is_empty()).then(|| HeaderValue::from_str(&pairs.join("; ")).ok())?
    }

    /// Keeps the cookies of a response; one whose time is over is forgotten.
    fn keep_cookies(&self, headers: &HeaderMap) {
        let mut cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        for cookie in headers.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok()) {
            let mut parts = cookie.split(';').map(str::trim);
            let Some((name, value)) = parts.next().and_then(|pair| pair.split_once('=')) else { continue };
            match parts.any(|attribute| attribute.eq_ignore_ascii_case("max-age=0")) {
                true => _ = cookies.remove(name),
                false => _ = cookies.insert(name.to_owned(), value.to_owned()),
            }
        }
    }
}

async fn log_in(mut session: AuthSession, Path(user): Path<String>) -> Result<StatusCode, session::Error> {
    session.login(&user).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).body(body);
    request.unwrap_or_else(|error| panic!("{path:?} is no path: {error}"))
}

/// The request with a host, which every request of a browser has.
pub(super) fn with_host(mut request: Request<Body>) -> Request<Body> {
    request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
    request
}

impl TestResponse {
    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Its header.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Its body.
    ///
    /// # Panics
    /// When that is no text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|_| panic!("the response is no text"))
    }

    /// Its body, read as JSON.
    ///
    /// # Panics
    /// When that is no such JSON.
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
}
