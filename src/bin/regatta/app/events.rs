//! A topic's messages as server-sent events: `GET /events?topic=`, `news` if none is named.

use axum::extract::Query;
use axum::response::{IntoResponse, Response};
use regatta::{Broadcast, LastEventId, RateLimit};

use crate::app::broadcast::TopicParams;

pub(super) async fn events(
    broadcast: Broadcast,
    resume: LastEventId,
    _limit: RateLimit,
    Query(params): Query<TopicParams>,
) -> Result<Response, Response> {
    let topic = params.topic().map_err(IntoResponse::into_response)?;
    broadcast.sse(topic, resume).await.map_err(IntoResponse::into_response)
}
