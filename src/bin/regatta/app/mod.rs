//! The shipped application: a page that counts its visits, and small routes to try a fleet with.
//!
//! It uses the library's public names only, so it is also the example to copy from.

mod assets;
mod auth;
mod broadcast;
mod content;
mod counters;
mod cpu;
mod events;
mod health;
mod heavy;
mod home;
mod live;
mod profile;
mod sticky;
mod tasks;
mod ws;

use axum::Router;
use axum::routing::{delete, get, post};
use regatta::{FleetHandle, SameOrigin};

/// The limits that the routes below need.
pub(crate) const DEFAULTS: &str = include_str!("limits.toml");

/// Every route of the application.
pub(crate) fn router(state: FleetHandle) -> Router {
    tasks::register(&state.tasks());
    read_routes()
        .merge(live::routes(&state))
        .merge(assets::routes())
        .merge(sticky::routes())
        .merge(write_routes())
        .with_state(state)
}

/// What only looks; a visit is counted, and a form's page may make the session that the form belongs to.
fn read_routes() -> Router<FleetHandle> {
    Router::new()
        .route("/", get(home::home))
        .route("/hello", get(health::hello))
        .route("/health", get(health::health))
        .route("/heavy", get(heavy::heavy))
        .route("/counters", get(counters::list))
        .route("/counters/{name}", get(counters::read))
        .route("/login", get(auth::page))
        .route("/events", get(events::events))
        .route("/me", get(profile::me))
        .route("/me/sessions", get(profile::sessions))
        .route("/tasks", get(tasks::page))
        .route("/tasks/{id}", get(tasks::show))
        .route("/tasks/{id}/events", get(tasks::events))
        // Its handshake is a GET, so `Upgrade` itself asks where it comes from.
        .route("/ws", get(ws::socket))
}

/// Whatever changes something, all of it refused to other sites' pages. Here and not around all routes: a layer costs a
/// request that only looks as well.
fn write_routes() -> Router<FleetHandle> {
    Router::new()
        .route("/counters/{name}", post(counters::add))
        .route("/login", post(auth::login))
        .route("/logout", post(auth::logout))
        .route("/broadcast", post(broadcast::publish))
        .route("/me/sessions", post(profile::destroy_by_form).delete(profile::destroy))
        .route("/me/sessions/{id}", delete(profile::destroy_one))
        .route("/tasks", post(tasks::start))
        .route("/tasks/{id}", delete(tasks::cancel))
        .route("/tasks/{id}/cancel", post(tasks::cancel_form))
        .route_layer(SameOrigin::new())
}
