//! HTTP: what happens to a request between its connection and its handler, and to the response on its way back.
//!
//! Guarantees one order of everything (`router`), one map from errors to responses (`error`, `problem`), and that a
//! request costs no round trip unless it uses state, then one. It accepts no connections and starts no process.

mod admin;
mod admin_hosts;
mod body;
mod body_pace;
mod dashboard;
mod drain_state;
pub mod error;
pub mod extract;
mod instance;
pub mod layers;
mod no_dashboard;
mod prepared_rejection;
pub mod problem;
pub mod real_ip;
mod request_head;
mod request_id;
mod request_state;
mod response;
pub mod same_origin;
pub mod security;
pub mod service;
pub mod streams;
#[cfg(test)]
mod tests;
mod untrusted_proxy;

use std::sync::Arc;

pub use axum::Router;
pub use axum::body::Body;
#[cfg(feature = "dashboard")]
pub use dashboard::Dashboard;
pub use drain_state::DrainState;
pub use error::RequestError;
pub use instance::{InstanceIdentity, with_figures};
#[cfg(not(feature = "dashboard"))]
pub use no_dashboard::Dashboard;
pub use prepared_rejection::PreparedRejection;
pub(crate) use request_head::has_token;
pub use service::HttpService;
use service::ListenerRole;
pub use streams::sse::KeepAliveTrigger;

use crate::http::service::context::WorkerContext;
pub use crate::http::service::context::{AppFactory, AppServices, FleetHandle, Worker};
pub use crate::http::service::response_future::ResponseFuture;

/// What visitors get: the application's routes, with everything around them.
///
/// # Panics
/// When the application panics while it builds its routes, or has one of the dashboard's where that is public.
pub fn public_service(parts: &AppServices, app: &AppFactory, dashboard: &Dashboard) -> HttpService {
    let core = Arc::new(WorkerContext::new(parts));
    let mut router = app(FleetHandle(Arc::clone(&core)));
    if core.config.dashboard.public {
        router = router.merge(dashboard.routes(&core));
    }
    HttpService::new(core, router, ListenerRole::Public)
}

/// What operators get: `/livez`, `/readyz`, `/metrics`, `/fleet.json`, and the page `/fleet`.
pub fn admin_service(parts: &AppServices, dashboard: &Dashboard) -> HttpService {
    let core = Arc::new(WorkerContext::new(parts));
    let router = service::admin_routes(&core).merge(dashboard.routes(&core));
    HttpService::new(core, router, ListenerRole::Admin)
}
