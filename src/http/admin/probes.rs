//! `/livez` and `/readyz`: is this worker alive, and should it be sent traffic?

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;

use crate::http::services::admin::AdminServices;
use crate::http::untrusted_proxy;
use crate::redis::{BreakerStates, RedisStatus, ServerWarnings};

/// A probe's answer.
#[derive(Serialize)]
struct ProbeResponse {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What is wrong with the Redis that works, or with what stands in front.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Alive if it answers at all: a restart would mend nothing that is not in this process.
pub(in crate::http) async fn livez() -> Response {
    Json(ProbeResponse { status: "alive", reason: None, warnings: Vec::new() }).into_response()
}

/// Ready once the fleet has reached Redis, until it stops; that this worker leaves, as at a reload, is no news to anybody.
///
/// A later outage of Redis is `degraded` and still 200: every replica shares it, and taking all of them out would turn
/// defined answers into refused connections. Before the first contact it is 503, so that a rollout with a wrong Redis
/// never replaces good replicas.
pub(in crate::http) async fn readyz(Shared(admin): Shared<Arc<AdminServices>>) -> Response {
    let health = admin.redis.status();
    if health == RedisStatus::Up {
        admin.scoreboard.set_redis_ever_connected();
    }
    let reached = admin.scoreboard.redis_ever_connected();
    let (code, status, reason) = match health {
        _ if admin.drain.is_stopping() => {
            (StatusCode::SERVICE_UNAVAILABLE, "unready", Some("draining".to_owned()))
        }
        RedisStatus::Up => match degraded_reason(&admin.redis.breaker_states()) {
            None => (StatusCode::OK, "ready", None),
            Some(reason) => (StatusCode::OK, "degraded", Some(reason)),
        },
        RedisStatus::Down { reason } if reached => (StatusCode::OK, "degraded", Some(reason)),
        RedisStatus::Connecting if reached => {
            (StatusCode::OK, "degraded", Some("connecting to Redis".to_owned()))
        }
        RedisStatus::Down { reason } => (StatusCode::SERVICE_UNAVAILABLE, "unready", Some(reason)),
        RedisStatus::Connecting => {
            (StatusCode::SERVICE_UNAVAILABLE, "unready", Some("connecting to Redis".to_owned()))
        }
    };
    // What this worker found out itself is told at once, the rest as the machine's inspector found it.
    let findings = ServerWarnings::from_bits(admin.scoreboard.redis_findings())
        .union(admin.redis.notification_warnings());
    let proxy = admin.scoreboard.untrusted_proxy().filter(|peer| !admin.settings.proxy.trusts(*peer));
    let warnings = findings.iter().map(|finding| finding.advice().to_owned());
    let warnings = warnings.chain(proxy.map(untrusted_proxy::advice)).collect();
    (code, Json(ProbeResponse { status, reason, warnings })).into_response()
}

/// Why calls to a Redis that is connected are held back, if they are.
fn degraded_reason(breakers: &BreakerStates) -> Option<String> {
    breakers.reads.cause.clone().or_else(|| breakers.writes.cause.clone())
}
