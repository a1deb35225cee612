//! HTTP: what happens to a request between its connection and its handler, and to the response on its way back.
//!
//! Guarantees one order of everything (`service`), one map from errors to responses (`error`, `problem`), and that a
//! request costs no round trip unless it uses state, then one. It must not know how connections are accepted, which
//! processes there are, and how anything is encoded for Redis.

mod admin;
mod admin_hosts;
pub(crate) mod body;
mod body_pace;
pub mod checks;
pub mod csrf;
mod dashboard;
mod drain_state;
pub mod error;
mod fleet_handle;
pub mod header_names;
pub mod idempotency;
mod instance;
mod no_dashboard;
pub mod offload;
mod outer_layers;
mod prepared_rejection;
pub mod problem;
pub mod real_ip;
mod request_head;
mod request_id;
pub(crate) mod request_scope;
pub(crate) mod request_state;
pub mod request_timeout;
pub(crate) mod response;
pub mod same_origin;
pub mod security;
pub mod service;
pub(crate) mod services;
pub mod standalone;
pub mod streams;
mod untrusted_proxy;
mod worker;

use std::sync::Arc;

#[cfg(test)]
pub(crate) use admin::metrics::all_series;
pub use axum::Router;
pub use axum::body::Body;
#[cfg(feature = "dashboard")]
pub use dashboard::Dashboard;
pub use drain_state::{DrainState, Shutdown};
pub use error::RequestError;
pub use fleet_handle::FleetHandle;
pub use instance::InstanceIdentity;
#[cfg(not(feature = "dashboard"))]
pub use no_dashboard::NoDashboard as Dashboard;
pub use outer_layers::OuterLayers;
pub use prepared_rejection::PreparedRejection;
pub(crate) use request_head::has_token;
pub use service::HttpService;
pub use service::response_future::ResponseFuture;
pub use services::app_services::AppServices;
pub use streams::event_stream::KeepAliveTrigger;
pub use worker::Worker;

use crate::http::checks::AppChecks;
use crate::http::services::WorkerServices;
use crate::http::services::admin::AdminServices;
use crate::http::services::worker::WorkerContext;

/// What an application may reach of the worker with these parts.
pub fn fleet_handle(parts: &AppServices) -> FleetHandle {
    let worker = Arc::new(WorkerContext::new(parts));
    FleetHandle::new(Arc::new(WorkerServices::new(parts, worker)))
}

/// What visitors get: the application's routes, with everything around them. `fleet` is the handle that they were built
/// with.
///
/// # Panics
/// When the application has one of the dashboard's routes where that is public.
pub fn public_service(
    parts: &AppServices,
    fleet: &FleetHandle,
    (router, layers): (Router, OuterLayers),
    dashboard: &Dashboard,
) -> HttpService {
    let router = match parts.config.dashboard.public {
        true => {
            router.merge(dashboard.routes(&Arc::new(AdminServices::new(parts, AppChecks::default())), parts))
        }
        false => router,
    };
    HttpService::public(Arc::clone(fleet.services()), router, layers)
}

/// What operators get: `/livez`, `/readyz`, `/metrics`, `/fleet.json`, the page `/fleet`, and the application's own.
///
/// # Panics
/// When the application has a route of the library's.
pub fn admin_service(
    parts: &AppServices,
    dashboard: &Dashboard,
    application: Router,
    checks: AppChecks,
) -> HttpService {
    let admin = Arc::new(AdminServices::new(parts, checks));
    let router = service::admin_routes(&admin).merge(dashboard.routes(&admin, parts)).merge(application);
    HttpService::admin(Arc::new(WorkerContext::new(parts)), admin, router)
}
