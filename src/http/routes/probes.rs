//! `/livez` and `/readyz`: is this worker alive, and should it be sent traffic?

use axum::Json;
use axum::extract::State as Shared;
use axum::response::IntoResponse;
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use crate::http::state::State;
use crate::redis::Health;

/// A probe's answer.
#[derive(Serialize)]
struct Probe {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Alive if it answers at all: a restart would mend nothing that is not in this process.
pub(in crate::http) async fn livez() -> Response {
    Json(Probe { status: "alive", reason: None }).into_response()
}

/// Ready once the fleet has reached Redis, until it stops; that this worker leaves, as at a reload, is no news to anybody.
///
/// A later outage of Redis is `degraded` and still 200: every replica shares it, and taking all of them out would turn
/// defined answers into refused connections. Before the first contact it is 503, so that a rollout with a wrong Redis
/// never replaces good replicas.
pub(in crate::http) async fn readyz(Shared(State(core)): Shared<State>) -> Response {
    let health = core.redis.health();
    if health == Health::Up {
        core.scoreboard.set_redis_reached();
    }
    let reached = core.scoreboard.redis_reached();
    let (code, status, reason) = match health {
        _ if core.phase.is_stopping() => {
            (StatusCode::SERVICE_UNAVAILABLE, "unready", Some("draining".to_owned()))
        }
        Health::Up => (StatusCode::OK, "ready", None),
        Health::Down { reason } if reached => (StatusCode::OK, "degraded", Some(reason)),
        Health::Connecting if reached => (StatusCode::OK, "degraded", Some("connecting to Redis".to_owned())),
        Health::Down { reason } => (StatusCode::SERVICE_UNAVAILABLE, "unready", Some(reason)),
        Health::Connecting => {
            (StatusCode::SERVICE_UNAVAILABLE, "unready", Some("connecting to Redis".to_owned()))
        }
    };
    (code, Json(Probe { status, reason })).into_response()
}
