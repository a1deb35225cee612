//! What a program answers at `/fleet` that is built without the feature `dashboard`.

use std::sync::Arc;

use axum::Router;
use axum::routing::any;
use http::StatusCode;

use crate::config::settings::DashboardConfig;
use crate::http::problem::Problem;
use crate::http::services::admin::AdminServices;
use crate::http::services::app_services::AppServices;

/// Stands for the operators' page.
#[derive(Debug, Clone)]
pub struct NoDashboard;

impl NoDashboard {
    /// The configuration has refused the settings that would show or open the dashboard.
    pub fn new(_settings: &DashboardConfig) -> Self {
        Self
    }

    pub(super) fn routes(&self, _admin: &Arc<AdminServices>, _parts: &AppServices) -> Router {
        let reason = "this program is built without the dashboard (cargo feature \"dashboard\")";
        let missing = any(async move || Problem::new(StatusCode::NOT_FOUND, reason));
        Router::new().route("/fleet", missing.clone()).route("/fleet/{*rest}", missing)
    }
}
