//! HTTP: what happens to a request between its connection and its handler, and to the response on its way back.
//!
//! Guarantees one order of everything (`router`), one map from errors to responses (`error`, `problem`), and that a
//! request costs no round trip unless it uses state, then one. It accepts no connections and starts no process.

mod body;
pub mod error;
mod exchange;
pub mod extract;
mod finish;
mod idempotency;
pub mod identity;
pub mod layer;
pub mod live;
pub mod offload;
mod phase;
pub mod problem;
mod router;
mod routes;
pub mod security;
mod site;
pub mod state;
mod store;
#[cfg(test)]
mod tests;
mod visitor;

use std::sync::Arc;

pub use axum::Router;
pub use axum::body::Body;
pub use error::Error;
pub use phase::Phase;
pub use router::Face;
pub use site::Site;
pub use state::App;
pub use state::Parts;
pub use state::State;
pub use state::Worker;

use router::Audience;
use state::Core;

/// What visitors get: the application's routes, with everything around them.
///
/// # Panics
/// When the application panics while it builds its routes.
pub fn public(parts: &Parts, app: &App) -> Face {
    let core = Arc::new(Core::new(parts));
    let router = app(State(Arc::clone(&core)));
    Face::new(core, router, Audience::Public)
}

/// What operators get: `/livez`, `/readyz`, `/metrics`, `/fleet.json`.
pub fn admin(parts: &Parts) -> Face {
    let core = Arc::new(Core::new(parts));
    let router = router::operators(&core);
    Face::new(core, router, Audience::Operators)
}
