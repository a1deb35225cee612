//! The shipped application: a page that counts its visits, and small routes to try a fleet with.
//!
//! It uses the library's public names only, so it is also the example to copy from.

mod assets;
mod broadcast;
mod counters;
mod events;
mod forms;
mod heavy;
mod home;
mod live;
mod login;
mod me;
mod plain;
mod sticky;
mod task_pages;
mod tasks;
mod work;
mod ws;

use axum::Router;
use axum::routing::delete;
use axum::routing::get;
use axum::routing::post;

/// The limits that the routes below need.
pub(crate) const DEFAULTS: &str = include_str!("limits.toml");

/// Every route of the application.
pub(crate) fn router(state: regatta::State) -> Router {
    tasks::register(&state.tasks());
    Router::new()
        .route("/", get(home::home))
        .route("/hello", get(plain::hello))
        .route("/health", get(plain::health))
        .route("/heavy", get(heavy::heavy))
        .route("/counters/{name}", get(counters::read).post(counters::add))
        .route("/login", get(login::page).post(login::login))
        .route("/logout", post(login::logout))
        .route("/broadcast", post(broadcast::publish))
        .route("/events", get(events::events))
        .route("/ws", get(ws::socket))
        .route("/me", get(me::me))
        .route("/me/sessions", get(me::sessions).post(me::end_form).delete(me::end))
        .route("/me/sessions/{id}", delete(me::end_one))
        .route("/tasks", get(tasks::page).post(tasks::start))
        .route("/tasks/{id}", get(tasks::look).delete(tasks::cancel))
        .route("/tasks/{id}/cancel", post(tasks::cancel_form))
        .route("/tasks/{id}/events", get(tasks::events))
        .merge(live::routes(&state))
        .merge(assets::routes())
        .merge(sticky::routes())
        .with_state(state)
}
