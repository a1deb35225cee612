//! Tests of an application without a fleet: no fork, no port, the same way of a request as in a worker.
//!
//! Guarantees that two applications of one test program share nothing but a Redis server. Its functions panic with a
//! sentence where a test cannot go on.

mod redis;
mod settings;
mod visitor;

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context as TaskContext, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::Request;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::Service;

pub use self::redis::TestRedis;
pub use self::visitor::{TestResponse, Visitor};
use crate::application::{AppFactory, Context, IntoApp};
use crate::http::FleetHandle;
use crate::worker::in_process;
use crate::worker::in_process::InProcessWorker;

/// The client of requests that come without an address.
const ANONYMOUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 255, 255, 254)), 40_000);

/// The application in the test's own runtime: no fork, no port, the same way of a request as in a worker; a tower
/// `Service`.
///
/// ```no_run
/// use axum::Router;
/// use axum::routing::get;
/// use regatta::Context;
/// use regatta::session::PageView;
/// use regatta::test::TestApp;
///
/// async fn app(_: Context) -> Router {
///     Router::new().route("/", get(async |view: PageView| view.count().to_string()))
/// }
///
/// # async fn example() {
/// let app = TestApp::new(app).await;
/// let ann = app.visitor();
/// assert_eq!(ann.get("/").await.text(), "1");
/// assert_eq!(ann.get("/").await.text(), "2");
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TestApp {
    worker: Arc<InProcessWorker>,
    /// Tasks that earlier calls of `run_tasks` have counted.
    counted_tasks: Arc<AtomicU64>,
}

/// An application for a test, with settings of its own.
///
/// ```no_run
/// use axum::body::Body;
/// use axum::http::{Request, StatusCode};
/// use axum::{Router, routing::post};
/// use regatta::task::{Error, Task, TaskContext, TaskQueue};
/// use regatta::test::{TestApp, TestRedis};
/// use regatta::{App, Context};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize)]
/// struct Settings {
///     sender: String,
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct Mail {
///     to: String,
/// }
///
/// impl Task for Mail {
///     const NAME: &'static str = "mail";
///     type Output = ();
/// }
///
/// async fn order(tasks: TaskQueue, to: String) -> Result<StatusCode, Error> {
///     tasks.enqueue(Mail { to }).await?;
///     Ok(StatusCode::ACCEPTED)
/// }
///
/// async fn app(cx: Context<Settings>) -> App {
///     let sender = cx.settings().sender.clone();
///     App::new(Router::new().route("/orders", post(order))).blocking_task(move |mail: Mail, _: TaskContext| {
///         tracing::info!(%sender, to = %mail.to, "a mail goes out");
///         Ok::<(), String>(())
///     })
/// }
///
/// # async fn example() {
/// let app = TestApp::builder()
///     .app_settings(serde_json::json!({"sender": "shop@example.org"}))
///     .set("limits.default.rate", "10/s")
///     .redis(TestRedis::private())
///     .build(app)
///     .await;
/// let response = app.oneshot(Request::post("/orders").body(Body::from("ann@example.org")).unwrap()).await;
/// assert_eq!(response.status(), StatusCode::ACCEPTED);
/// assert_eq!(app.run_tasks().await, 1);
/// assert_eq!(app.fleet().page_views().await.unwrap(), 0);
/// let router: Router = app.router();
/// # drop(router);
/// app.drain().await;
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct TestAppBuilder {
    application: String,
    settings: Vec<(String, String)>,
    redis: TestRedis,
}

impl TestApp {
    /// Builds the application as a worker does, with the library's own defaults, a private Redis and a prefix of its own.
    ///
    /// # Panics
    /// When it cannot be built, or no Redis is installed.
    pub async fn new<F, Fut, S>(app: F) -> Self
    where
        F: Fn(Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoApp> + Send + 'static,
        S: DeserializeOwned + Send + Sync + 'static,
    {
        Self::builder().build(app).await
    }

    /// An application with other settings, or another Redis.
    pub fn builder() -> TestAppBuilder {
        TestAppBuilder::default()
    }

    /// A new client, with cookies and an address of its own.
    pub fn visitor(&self) -> Visitor {
        Visitor::new(&self.worker)
    }

    /// Answers one request; a body that streams can be read as it comes.
    pub async fn oneshot(&self, request: Request<Body>) -> Response {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map_or(ANONYMOUS, |info| info.0);
        in_process::call(self.worker.public(), visitor::with_host(request), peer).await
    }

    /// The application as a router, for any other test client.
    pub fn router(&self) -> Router {
        Router::new().fallback_service(self.clone())
    }

    /// What the application may reach of its fleet.
    pub fn fleet(&self) -> &FleetHandle {
        self.worker.fleet()
    }

    /// Returns when no task waits or runs; how many have ended since the last call.
    ///
    /// # Panics
    /// When Redis does not answer.
    pub async fn run_tasks(&self) -> usize {
        let ended = self.worker.wait_for_tasks().await;
        let ended = ended.unwrap_or_else(|error| panic!("cannot see the tasks: {error}"));
        // Another call may have seen more, and counted it.
        let counted = self.counted_tasks.fetch_max(ended, Relaxed);
        usize::try_from(ended.saturating_sub(counted)).unwrap_or(usize::MAX)
    }

    /// Ends the application as a worker ends: hooks run, streams and sockets are closed, tasks finish.
    ///
    /// # Panics
    /// When a visitor, router or clone of it is still there: it could send a request to what has ended.
    pub async fn drain(self) {
        let worker = Arc::into_inner(self.worker);
        let worker = worker.unwrap_or_else(|| panic!("drop visitors and routers of the application first"));
        worker.drain().await;
    }
}

impl Service<Request<Body>> for TestApp {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let app = self.clone();
        Box::pin(async move { Ok(app.oneshot(request).await) })
    }
}

impl TestAppBuilder {
    /// The section `[app]`.
    ///
    /// # Panics
    /// When the value is no section.
    pub fn app_settings(mut self, value: impl Serialize) -> Self {
        self.application = settings::app_section(&value);
        self
    }

    /// Another value for a setting of the library, as in `drain.exit`.
    #[allow(clippy::needless_pass_by_value, reason = "callers write a value, not a reference to one")]
    pub fn set(mut self, setting: &str, value: impl ToString) -> Self {
        self.settings.push((setting.to_owned(), value.to_string()));
        self
    }

    /// The Redis; without this call a private one.
    pub fn redis(mut self, redis: TestRedis) -> Self {
        self.redis = redis;
        self
    }

    /// Builds the application as a worker does.
    ///
    /// # Panics
    /// When a setting is wrong, the application cannot be built, or the Redis cannot be had.
    pub async fn build<F, Fut, S>(self, app: F) -> TestApp
    where
        F: Fn(Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoApp> + Send + 'static,
        S: DeserializeOwned + Send + Sync + 'static,
    {
        let url = self.redis.address();
        let config = settings::load(self.application, self.settings);
        let worker = InProcessWorker::boot(config, &url, &AppFactory::new(app)).await;
        let worker = worker.unwrap_or_else(|error| panic!("{error}"));
        if self.redis.has_server() {
            let failure = worker.redis_failure();
            assert!(failure.is_none(), "Redis at {url} cannot be used: {}", failure.unwrap_or_default());
        }
        TestApp { worker: Arc::new(worker), counted_tasks: Arc::default() }
    }
}
