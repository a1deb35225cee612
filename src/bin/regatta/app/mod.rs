//! The shipped application: a page that counts its views, and small routes to try a fleet with.
//!
//! It uses the library's public names only, so it is also the example to copy from.

mod assets;
mod auth;
mod broadcast;
mod content;
mod counters;
mod cpu;
mod health;
mod home;
mod live;
mod profile;
mod sticky;
mod tasks;

use axum::Router;
use axum::routing::{delete, get, post};
use regatta::{App, Context, FleetHandle, SameOrigin};

/// The limits that the routes below need.
pub(crate) const DEFAULTS: &str = include_str!("limits.toml");

/// Every route of the application, and its tasks.
pub(crate) async fn app(cx: Context) -> App {
    tasks::register(App::new(router(cx.fleet().clone())))
}

fn router(state: FleetHandle) -> Router {
    read_routes()
        .merge(live::routes(&state))
        .merge(assets::routes())
        .merge(sticky::routes())
        .merge(write_routes())
        .with_state(state)
}

/// Routes that only read; a view is counted, and a page with a form may create the session that the form belongs to.
fn read_routes() -> Router<FleetHandle> {
    Router::new()
        .route("/", get(home::home))
        .route("/hello", get(health::hello))
        .route("/health", get(health::health))
        .route("/heavy", get(cpu::heavy))
        .route("/counters", get(counters::list))
        .route("/counters/{name}", get(counters::read))
        .route("/login", get(auth::page))
        .route("/events", get(broadcast::events))
        .route("/me", get(profile::me))
        .route("/me/sessions", get(profile::sessions))
        .route("/tasks", get(tasks::page))
        .route("/tasks/{id}", get(tasks::show))
        .route("/tasks/{id}/events", get(tasks::events))
        // Its handshake is a GET, so `WebSocketUpgrade` itself checks the origin.
        .route("/ws", get(broadcast::socket))
}

/// Routes that write; requests of other sites' pages are rejected. The layer is not around all routes, because it would
/// cost reads as well.
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
