//! `/fleet.json`: the status of this instance, and all instances as Redis lists them.
//!
//! A worker answers, so that what only the supervisor knows is null. Fields are added under the same version of
//! [`InstanceStatus`].

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::http::services::admin::AdminServices;
use crate::redis::registry::{InstanceRecord, ListedInstance};
use crate::status::document::InstanceStatus;
use crate::status::rates::InstanceRates;

#[derive(Serialize)]
struct FleetJson {
    #[serde(flatten)]
    own: InstanceStatus,
    /// Every live instance; this one alone while Redis is unavailable.
    instances: Vec<ListedInstance>,
    /// Whether none can be missing.
    instances_complete: bool,
    /// Why Redis has no list.
    instances_error: Option<String>,
}

pub(in crate::http) async fn fleet_json(Shared(state): Shared<Arc<AdminServices>>) -> Response {
    let listed = state.fleet_cache.get(&state.redis).await;
    let status =
        state.instance.status(&state.scoreboard, &state.scoreboard.snapshot(), InstanceRates::default());
    let own = state.instance.record(&state.scoreboard, &status);
    let (instances, instances_complete, instances_error) = match listed {
        Ok(listed) => {
            (with_own_instance(listed.instances, own), listed.complete && listed.unreadable == 0, None)
        }
        Err(reason) => (with_own_instance(Vec::new(), own), false, Some(reason)),
    };
    let fleet = FleetJson { own: status, instances, instances_complete, instances_error };
    ([(http::header::CACHE_CONTROL, "no-store")], Json(fleet)).into_response()
}

/// The instances with this one as it is now: its record in Redis is older.
fn with_own_instance(mut instances: Vec<ListedInstance>, own: InstanceRecord) -> Vec<ListedInstance> {
    instances.retain(|listed| listed.instance.id != own.id);
    instances.insert(0, ListedInstance { age_ms: 0, instance: own });
    instances
}
