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
use regatta::SameOrigin;
use regatta::State;

/// Every route of the application.
pub(crate) fn router(state: State) -> Router {
    tasks::register(&state.tasks());
    reads()
        .merge(live::routes(&state))
        .merge(assets::routes())
        .merge(sticky::routes())
        .merge(writes())
        .with_state(state)
}

/// What only looks; a visit is counted, and a form's page may make the session that the form belongs to.
fn reads() -> Router<State> {
    Router::new()
        .route("/", get(home::home))
        .route("/hello", get(plain::hello))
        .route("/health", get(plain::health))
        .route("/heavy", get(heavy::heavy))
        .route("/counters", get(counters::list))
        .route("/counters/{name}", get(counters::read))
        .route("/login", get(login::page))
        .route("/events", get(events::events))
        .route("/me", get(me::me))
        .route("/me/sessions", get(me::sessions))
        .route("/tasks", get(tasks::page))
        .route("/tasks/{id}", get(tasks::look))
        .route("/tasks/{id}/events", get(tasks::events))
        // Its handshake is a GET, so `Upgrade` itself asks where it comes from.
        .route("/ws", get(ws::socket))
}

/// Whatever changes something, all of it refused to other sites' pages. Here and not around all routes: a layer costs a
/// request that only looks as well.
fn writes() -> Router<State> {
    Router::new()
        .route("/counters/{name}", post(counters::add))
        .route("/login", post(login::login))
        .route("/logout", post(login::logout))
        .route("/broadcast", post(broadcast::publish))
        .route("/me/sessions", post(me::end_form).delete(me::end))
        .route("/me/sessions/{id}", delete(me::end_one))
        .route("/tasks", post(tasks::start))
        .route("/tasks/{id}", delete(tasks::cancel))
        .route("/tasks/{id}/cancel", post(tasks::cancel_form))
        .route_layer(SameOrigin::new())
}
