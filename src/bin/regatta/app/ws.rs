//! A topic over a WebSocket: `GET /ws?topic=&after=`.

use axum::extract::Query;
use axum::response::{IntoResponse, Response};
use regatta::{Broadcast, LastEventId, RateLimit, WebSocketUpgrade};

use crate::app::broadcast::TopicParams;

pub(super) async fn socket(
    upgrade: WebSocketUpgrade,
    broadcast: Broadcast,
    resume: LastEventId,
    _limit: RateLimit,
    Query(params): Query<TopicParams>,
) -> Result<Response, Response> {
    let topic = params.topic().map_err(IntoResponse::into_response)?;
    broadcast.socket(upgrade, topic, resume).await.map_err(IntoResponse::into_response)
}
