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

pub use answering::Answering;
pub use axum::Router;
pub use axum::body::Body;
pub use dashboard::Dashboard;
pub use error::Error;
pub(crate) use head::has_token;
pub use live::sse::SignOfLife;
pub use phase::Phase;
pub use refusal::Refusal;
pub use router::Face;
pub use site::Site;
pub use site::measured;
pub use state::App;
pub use state::Parts;
pub use state::State;
pub use state::Worker;

use router::Audience;
use state::Core;

/// What visitors get: the application's routes, with everything around them.
///
/// # Panics
/// When the application panics while it builds its routes, or has one of the dashboard's where that is public.
pub fn public(parts: &Parts, app: &App) -> Face {
    let core = Arc::new(Core::new(parts));
    let mut router = app(State(Arc::clone(&core)));
    if core.config.dashboard.public {
        router = router.merge(dashboard::routes().with_state(State(Arc::clone(&core))));
    }
    Face::new(core, router, Audience::Public)
}

/// What operators get: `/livez`, `/readyz`, `/metrics`, `/fleet.json`, and the page `/fleet`.
pub fn admin(parts: &Parts) -> Face {
    let core = Arc::new(Core::new(parts));
    let router = router::operators(&core);
    Face::new(core, router, Audience::Operators)
}
