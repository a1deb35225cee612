//! What a worker serves, and does besides, as a value.

use std::fmt;

use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::Route;
use axum::{BoxError, Router};
use tower::{Layer, Service};

use crate::application::lifecycle::{BackgroundWork, Lifecycle};
use crate::http::checks::{AppCheck, AppChecks};
use crate::http::{OuterLayers, Shutdown};
use crate::tasks::{Task, TaskContext, TaskFailure, TaskKindError, TaskQueue};

/// What a worker serves, and does besides.
///
/// ```no_run
/// use axum::Router;
/// use regatta::{App, Context, Fleet};
///
/// async fn app(_: Context) -> App {
///     App::new(Router::new())
///         .readiness_check("disk", || async { std::fs::metadata("/var/lib/shop").map(drop) })
///         .on_exit(async { tracing::info!("the last line of this worker") })
/// }
///
/// # fn main() -> std::process::ExitCode { Fleet::new(app).run() }
/// ```
#[must_use]
pub struct App {
    router: Router,
    layers: OuterLayers,
    operator_routes: Router,
    checks: AppChecks,
    lifecycle: Lifecycle,
    tasks: Vec<TaskRegistration>,
}

type TaskRegistration = Box<dyn FnOnce(&TaskQueue) -> Result<(), TaskKindError> + Send>;

/// An application taken apart by who needs what.
#[derive(Debug)]
pub struct AppParts {
    /// The routes of visitors.
    pub router: Router,
    /// What stands around everything that answers visitors.
    pub layers: OuterLayers,
    /// The routes of operators.
    pub operator_routes: Router,
    /// What probes ask.
    pub checks: AppChecks,
    /// Hooks and background work.
    pub lifecycle: Lifecycle,
}

impl App {
    /// An application with these routes and nothing besides.
    pub fn new(router: Router) -> Self {
        Self {
            router,
            layers: OuterLayers::default(),
            operator_routes: Router::new(),
            checks: AppChecks::default(),
            lifecycle: Lifecycle::default(),
            tasks: Vec::new(),
        }
    }

    /// A layer around everything that answers a visitor, refusals included: CORS headers belong on a 429, too.
    ///
    /// It costs a boxed future a request; [`Router::layer`] does not, and stands around the routes alone. Of several
    /// the last one added is the outermost.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Route> + Clone + Send + Sync + 'static,
        L::Service: Service<Request> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request>>::Response: IntoResponse + 'static,
        <L::Service as Service<Request>>::Error: Into<std::convert::Infallible> + 'static,
        <L::Service as Service<Request>>::Future: Send + 'static,
    {
        self.layers.push(layer);
        self
    }

    /// Routes at the operators' address, beside `/livez`, `/readyz` and `/metrics`.
    ///
    /// They are answered without limits, sessions or state. A path of the library's own is a boot failure.
    pub fn operator_routes(mut self, router: Router) -> Self {
        self.operator_routes = self.operator_routes.merge(router);
        self
    }

    /// While it fails, `/readyz` answers 503 and names it.
    ///
    /// It runs at most once a second whatever the number of probes, and fails when it takes longer than a second. It
    /// never keeps a worker from serving: what a worker cannot live without is connected to while the application is
    /// built, and its error returned. It guards rollouts: a reload or upgrade whose first worker fails it within
    /// `workers.canary_period`, while a worker of the old generation passes it, is rolled back.
    pub fn readiness_check<F, Fut, E>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.checks.readiness.push(AppCheck::new(name, check));
        self
    }

    /// While it fails, `/readyz` says `degraded` and names it, still with 200.
    ///
    /// It is run as a readiness check is, and guards rollouts in the same way.
    ///
    /// ```
    /// use axum::Router;
    /// use regatta::App;
    ///
    /// async fn partner_answers() -> Result<(), std::io::Error> {
    ///     tokio::net::TcpStream::connect("partner.example.org:443").await.map(drop)
    /// }
    ///
    /// let app = App::new(Router::new()).health_check("partner", partner_answers);
    /// # let _ = app;
    /// ```
    pub fn health_check<F, Fut, E>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.checks.health.push(AppCheck::new(name, check));
        self
    }

    /// Runs once the worker is READY, beside the first requests. One that still runs when the worker ends is abandoned.
    pub fn on_ready(mut self, hook: impl Future<Output = ()> + Send + 'static) -> Self {
        self.lifecycle.on_ready.push(Box::pin(hook));
        self
    }

    /// Runs when the worker begins to leave, together with the other hooks of this kind, until `drain.timeout`.
    /// What runs longer is abandoned.
    pub fn on_drain(mut self, hook: impl Future<Output = ()> + Send + 'static) -> Self {
        self.lifecycle.on_drain.push(Box::pin(hook));
        self
    }

    /// Runs when connections, tasks and background work have ended: one hook after another, the last one added first,
    /// all of them within `drain.exit`. What runs longer is abandoned, and the hooks after it are not begun.
    pub fn on_exit(mut self, hook: impl Future<Output = ()> + Send + 'static) -> Self {
        self.lifecycle.on_exit.push(Box::pin(hook));
        self
    }

    /// Runs beside the requests, from READY until it sees the shutdown; the drain waits for it until `drain.timeout`.
    ///
    /// A panic is a crash of a worker that drains all the same: a successor of one that fails again and again waits, and a
    /// rollout may be rolled back.
    pub fn background<F, Fut>(mut self, name: &'static str, work: F) -> Self
    where
        F: FnOnce(Shutdown) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let start = move |shutdown| -> crate::application::lifecycle::Hook { Box::pin(work(shutdown)) };
        self.lifecycle.background.push(BackgroundWork { name, start: Box::new(start) });
        self
    }

    /// Registers the async handler of a task; any worker whose program has one for its kind may run it.
    ///
    /// It shares the worker's event loop with the requests, so it must not block: work for the CPU is a
    /// [`App::blocking_task`]. It may take all the time it needs, up to the kind's timeout. An error is final, unless it is
    /// a [`TaskFailure::retry`]; after a panic, and when a worker is lost, another attempt follows, as often as
    /// [`Task::options`] or the settings allow. So a handler may be started more than once for one task: its result is
    /// accepted once, and its other effects must allow repetition.
    ///
    /// An invalid [`Task::NAME`], or one that is registered already, is a boot failure.
    ///
    /// ```no_run
    /// use axum::Router;
    /// use regatta::task::{Task, TaskContext, TaskFailure};
    /// use regatta::{App, Context};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Welcome {
    ///     address: String,
    /// }
    ///
    /// impl Task for Welcome {
    ///     const NAME: &'static str = "welcome";
    ///     type Output = ();
    /// }
    ///
    /// async fn app(_: Context) -> App {
    ///     App::new(Router::new()).task(welcome)
    /// }
    ///
    /// async fn welcome(task: Welcome, cx: TaskContext) -> Result<(), TaskFailure> {
    ///     tracing::info!(attempt = cx.attempt(), "a letter to {}", task.address);
    ///     Ok(())
    /// }
    /// ```
    pub fn task<T, F, Fut, E>(mut self, handler: F) -> Self
    where
        T: Task,
        F: Fn(T, TaskContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T::Output, E>> + Send + 'static,
        E: Into<TaskFailure>,
    {
        self.tasks.push(Box::new(move |queue| queue.register_async(handler)));
        self
    }

    /// Registers the handler of a task that blocks or computes: it runs on a thread of its own, at lower priority.
    ///
    /// A thread cannot be stopped: a handler that takes more than a moment should ask [`TaskContext::is_cancelled`] now
    /// and then. Otherwise as [`App::task`].
    ///
    /// ```no_run
    /// use axum::Router;
    /// use regatta::task::{Task, TaskContext};
    /// use regatta::{App, Context};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Sum(Vec<u64>);
    ///
    /// impl Task for Sum {
    ///     const NAME: &'static str = "sum";
    ///     type Output = u64;
    /// }
    ///
    /// async fn app(_: Context) -> App {
    ///     App::new(Router::new()).blocking_task(|Sum(numbers): Sum, cx: TaskContext| {
    ///         let mut sum = 0_u64;
    ///         for (done, number) in numbers.iter().enumerate() {
    ///             sum = sum.checked_add(*number).ok_or("the sum is too large")?;
    ///             cx.percent((100 * done / numbers.len()) as u8);
    ///             if cx.is_cancelled() {
    ///                 return Err("cancelled");
    ///             }
    ///         }
    ///         Ok(sum)
    ///     })
    /// }
    /// ```
    pub fn blocking_task<T, F, E>(mut self, handler: F) -> Self
    where
        T: Task,
        F: Fn(T, TaskContext) -> Result<T::Output, E> + Send + Sync + 'static,
        E: Into<TaskFailure>,
    {
        self.tasks.push(Box::new(move |queue| queue.register_blocking(handler)));
        self
    }

    /// Takes the application apart; its tasks are known to the queue then.
    ///
    /// # Errors
    /// When the name of a kind of tasks is none, or registered twice.
    pub(crate) fn into_parts(self, tasks: &TaskQueue) -> Result<AppParts, TaskKindError> {
        self.tasks.into_iter().try_for_each(|register| register(tasks))?;
        let Self { router, layers, operator_routes, checks, lifecycle, .. } = self;
        Ok(AppParts { router, layers, operator_routes, checks, lifecycle })
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("checks", &self.checks)
            .field("lifecycle", &self.lifecycle)
            .finish_non_exhaustive()
    }
}
