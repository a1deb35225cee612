//! A topic's messages as server-sent events: `GET /events?topic=`, `news` if none is named.

use axum::extract::Query;
use axum::response::IntoResponse;
use axum::response::Response;
use regatta::Broadcast;
use regatta::Limit;
use regatta::Resume;

use crate::app::broadcast::Asked;

pub(super) async fn events(
    broadcast: Broadcast,
    resume: Resume,
    _limit: Limit,
    Query(asked): Query<Asked>,
) -> Result<Response, Response> {
    let topic = asked.topic().map_err(IntoResponse::into_response)?;
    broadcast.events(topic, resume).await.map_err(IntoResponse::into_response)
}
