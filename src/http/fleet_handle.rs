//! What an application may reach of its worker and fleet.

use std::sync::Arc;

use crate::http::services::WorkerServices;
use crate::http::standalone::redis::Redis;

/// A worker's share of its fleet, for handlers and for what runs beside them; also an extractor. Cheap to clone.
///
/// ```
/// use regatta::FleetHandle;
///
/// async fn status(fleet: FleetHandle) -> String {
///     let worker = fleet.worker();
///     format!("worker {} in slot {}, Redis is {:?}\n", worker.pid(), worker.slot(), fleet.redis_status())
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(status));
/// ```
///
/// `Context::fleet` lends it while the application is built, for what runs beside the requests:
///
/// ```
/// use regatta::task::Task;
/// use regatta::{App, Context, Error, FleetHandle};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Mail {
///     report: i64,
/// }
///
/// impl Task for Mail {
///     const NAME: &'static str = "mail";
///     type Output = ();
/// }
///
/// async fn app(cx: Context) -> App {
///     let fleet: FleetHandle = cx.fleet().clone();
///     App::new(axum::Router::new()).background("report", |shutdown| async move {
///         while !fleet.shutdown().is_requested() {
///             let report = async {
///                 let report = fleet.counters().add("reports", 1).await?;
///                 let task = fleet.tasks().enqueue(Mail { report }).await?.id();
///                 let (views, server) = (fleet.page_views().await?, fleet.redis().url());
///                 Ok::<_, Error>(tracing::info!(views, %task, %server, "a report is on its way"))
///             };
///             let _ = report.await;
///             tokio::select! {
///                 () = tokio::time::sleep(std::time::Duration::from_secs(3600)) => {}
///                 () = shutdown.wait() => {}
///             }
///         }
///     })
/// }
/// # let _ = app;
/// ```
#[derive(Debug, Clone)]
pub struct FleetHandle(Redis);

impl FleetHandle {
    pub(crate) fn new(services: Arc<WorkerServices>) -> Self {
        Self(Redis::from_services(services))
    }

    /// What the worker's requests share.
    pub(crate) fn services(&self) -> &Arc<WorkerServices> {
        self.0.services()
    }

    /// The application is built; what keeps its worker from starting all the same, in a sentence.
    pub(crate) fn end_build(&self) -> Option<String> {
        self.services().state.build_mistakes.end()
    }

    /// The worker's Redis, for layers and for what runs beside the requests.
    pub fn redis(&self) -> &Redis {
        &self.0
    }
}
