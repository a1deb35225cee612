//! What a worker's two listeners serve.

use std::sync::Arc;

use axum::Router;

use crate::http::checks::AppChecks;
use crate::http::services::WorkerServices;
use crate::http::services::admin::AdminServices;
use crate::http::services::worker::WorkerContext;
use crate::http::{AppServices, Dashboard, FleetHandle, HttpService, OuterLayers, service};

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
        true => router.merge(dashboard.routes(&Arc::new(AdminServices::new(parts, Arc::default())), parts)),
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
    checks: Arc<AppChecks>,
) -> HttpService {
    let admin = Arc::new(AdminServices::new(parts, checks));
    let router = service::admin_routes(&admin).merge(dashboard.routes(&admin, parts)).merge(application);
    HttpService::admin(Arc::new(WorkerContext::new(parts)), admin, router)
}
