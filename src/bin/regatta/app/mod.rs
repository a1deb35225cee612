//! The shipped application: a page that counts its visits, and small routes to try a fleet with.
//!
//! It uses the library's public names only, so it is also the example to copy from.

mod assets;
mod counters;
mod heavy;
mod home;
mod plain;
mod sticky;

use axum::Router;
use axum::routing::get;

/// Every route of the application.
pub(crate) fn router(state: regatta::State) -> Router {
    Router::new()
        .route("/", get(home::home))
        .route("/hello", get(plain::hello))
        .route("/health", get(plain::health))
        .route("/heavy", get(heavy::heavy))
        .route("/counters/{name}", get(counters::read).post(counters::add))
        .merge(assets::routes())
        .merge(sticky::routes())
        .with_state(state)
}
