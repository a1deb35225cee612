//! `/fleet`: the operators' page, live, with buttons for operators who have signed in with the token.
//!
//! Guarantees that nothing is computed while no page is open, and once a second for any number of open pages; that the
//! page is complete without its script; and that commands are accepted only from a signed-in operator, by a form of this
//! instance's own page. It must not know how a command is carried out: the supervisor does that.

mod actions;
mod assets;
mod auth;
mod collector;
mod feed;
mod flash;
mod formatting;
mod metric_history;
mod page;
mod presenter;
mod queue_view;
mod request;
mod services;
mod slot_view;
mod sources;
mod supervisor_client;
mod view_model;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use services::{DashboardServices, DashboardState};

use crate::config::settings::DashboardConfig;
use crate::http::dashboard::sources::DashboardSources;
use crate::http::services::admin::AdminServices;
use crate::http::services::app_services::AppServices;

/// A worker's operators' page; clones are the same one.
#[derive(Debug, Clone)]
pub struct Dashboard(Arc<DashboardServices>);

impl Dashboard {
    /// Reads the token, from its file if it is in one.
    pub fn new(settings: &DashboardConfig) -> Self {
        Self(Arc::new(DashboardServices::new(settings)))
    }

    /// The page's routes.
    pub(super) fn routes(&self, admin: &Arc<AdminServices>, parts: &AppServices) -> Router {
        let state = DashboardState {
            services: Arc::clone(&self.0),
            sources: Arc::new(DashboardSources::new(admin, parts)),
        };
        Router::new()
            .route("/fleet", get(page::page))
            .route("/fleet/events", get(page::events))
            .route("/fleet/sign-in", post(actions::sign_in))
            .route("/fleet/sign-out", post(actions::sign_out))
            .route("/fleet/reload", post(actions::reload))
            .route("/fleet/scale", post(actions::scale))
            .route("/fleet/restart", post(actions::restart))
            .merge(assets::routes())
            .with_state(state)
    }
}
