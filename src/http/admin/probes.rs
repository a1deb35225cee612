//! `/livez` and `/readyz`: whether this worker is alive, and whether the instance should get traffic.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;

use crate::http::services::admin::AdminServices;
use crate::http::untrusted_proxy;
use crate::redis::{BreakerStates, RedisStatus, ServerWarnings};

/// The body of a probe's response.
#[derive(Serialize)]
struct ProbeResponse {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What is wrong with a Redis that works, or with a proxy in front.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Alive if it answers at all: a restart repairs nothing outside of this process.
pub(in crate::http) async fn livez() -> Response {
    Json(ProbeResponse { status: "alive", reason: None, warnings: Vec::new() }).into_response()
}

/// Ready from the fleet's first connection to Redis until it stops; a draining worker, as at a reload, is still ready.
///
/// A later outage of Redis is `degraded` and still 200: every replica shares it, and taking all of them out would turn
/// defined answers into refused connections. Before the first connection it is 503, so that a rollout with a wrong
/// Redis never replaces good replicas.
pub(in crate::http) async fn readyz(Shared(admin): Shared<Arc<AdminServices>>) -> Response {
    let redis = admin.redis.status();
    if redis == RedisStatus::Up {
        admin.scoreboard.set_redis_ever_connected();
    }
    let ever_connected = admin.scoreboard.redis_ever_connected();
    let (code, status, reason) = match own_failure(&admin).await {
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, "unready", Some(reason)),
        None => redis_readiness(redis, ever_connected, &admin.redis.breaker_states()),
    };
    let (code, status, reason) = match status {
        "ready" => match admin.checks.degraded_reason().await {
            Some(reason) => (code, "degraded", Some(reason)),
            None => (code, status, reason),
        },
        _ => (code, status, reason),
    };
    // This worker's own warnings are fresh; the others are those of the instance's last inspection.
    let findings = ServerWarnings::from_bits(admin.scoreboard.redis_findings())
        .union(admin.redis.notification_warnings());
    let proxy = admin.scoreboard.untrusted_proxy().filter(|peer| !admin.proxy.trusts(*peer));
    let warnings = findings.iter().map(|finding| finding.advice().to_owned());
    let warnings = warnings.chain(proxy.map(untrusted_proxy::advice)).collect();
    (code, Json(ProbeResponse { status, reason, warnings })).into_response()
}

/// Why this instance should get no traffic whatever Redis does: it stops, or a check of the application fails.
async fn own_failure(admin: &AdminServices) -> Option<String> {
    match admin.drain.is_stopping() {
        true => Some("draining".to_owned()),
        false => admin.checks.unready_reason().await,
    }
}

/// What Redis's state means for traffic.
fn redis_readiness(
    redis: RedisStatus,
    ever_connected: bool,
    breakers: &BreakerStates,
) -> (StatusCode, &'static str, Option<String>) {
    match redis {
        RedisStatus::Up => match degraded_reason(breakers) {
            None => (StatusCode::OK, "ready", None),
            Some(reason) => (StatusCode::OK, "degraded", Some(reason)),
        },
        RedisStatus::Down { reason } if ever_connected => (StatusCode::OK, "degraded", Some(reason)),
        RedisStatus::Connecting if ever_connected => {
            (StatusCode::OK, "degraded", Some("connecting to Redis".to_owned()))
        }
        RedisStatus::Down { reason } => (StatusCode::SERVICE_UNAVAILABLE, "unready", Some(reason)),
        RedisStatus::Connecting => {
            (StatusCode::SERVICE_UNAVAILABLE, "unready", Some("connecting to Redis".to_owned()))
        }
    }
}

/// Why a breaker before a connected Redis is not closed, if one is not.
fn degraded_reason(breakers: &BreakerStates) -> Option<String> {
    breakers.reads.cause.clone().or_else(|| breakers.writes.cause.clone())
}
