//! HTTP: what happens to a request between its connection and its handler, and to the response on its way back.
//!
//! Guarantees one order of everything (`router`), one map from errors to responses (`error`, `problem`), and that a
//! request costs no round trip unless it uses state, then one. It accepts no connections and starts no process.

mod answering;
mod body;
mod dashboard;
pub mod error;
mod exchange;
pub mod extract;
mod finish;
mod head;
mod idempotency;
pub mod identity;
pub mod layer;
pub mod live;
pub mod offload;
pub mod origin;
mod own_name;
mod pace;
mod phase;
pub mod problem;
mod refusal;
mod request_ids;
mod router;
mod routes;
pub mod security;
mod seen;
mod site;
pub mod state;
mod store;
#[cfg(test)]
mod tests;
pub mod timeout;
mod unheard;
mod visitor;

use std::sync::Arc;

pub use answering::ResponseFuture;
pub use axum::Router;
pub use axum::body::Body;
pub use dashboard::Dashboard;
pub use error::RequestError;
pub(crate) use head::has_token;
pub use live::sse::KeepAliveTrigger;
pub use phase::DrainState;
pub use refusal::PreparedRejection;
pub use router::HttpService;
pub use site::InstanceIdentity;
pub use site::with_figures;
pub use state::AppFactory;
pub use state::AppServices;
pub use state::FleetHandle;
pub use state::Worker;

use router::ListenerRole;
use state::WorkerContext;

/// What visitors get: the application's routes, with everything around them.
///
/// # Panics
/// When the application panics while it builds its routes, or has one of the dashboard's where that is public.
pub fn public_service(parts: &AppServices, app: &AppFactory) -> HttpService {
    let core = Arc::new(WorkerContext::new(parts));
    let mut router = app(FleetHandle(Arc::clone(&core)));
    if core.config.dashboard.public {
        router = router.merge(dashboard::routes().with_state(FleetHandle(Arc::clone(&core))));
    }
    HttpService::new(core, router, ListenerRole::Public)
}

/// What operators get: `/livez`, `/readyz`, `/metrics`, `/fleet.json`, and the page `/fleet`.
pub fn admin_service(parts: &AppServices) -> HttpService {
    let core = Arc::new(WorkerContext::new(parts));
    let router = router::admin_routes(&core);
    HttpService::new(core, router, ListenerRole::Admin)
}
