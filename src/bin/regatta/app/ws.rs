//! A topic over a WebSocket: `GET /ws?topic=&after=`.

use axum::extract::Query;
use axum::response::IntoResponse;
use axum::response::Response;
use regatta::Broadcast;
use regatta::Limit;
use regatta::Resume;
use regatta::Upgrade;

use crate::app::broadcast::Asked;

pub(super) async fn socket(
    upgrade: Upgrade,
    broadcast: Broadcast,
    resume: Resume,
    _limit: Limit,
    Query(asked): Query<Asked>,
) -> Result<Response, Response> {
    let topic = asked.topic().map_err(IntoResponse::into_response)?;
    broadcast.socket(upgrade, topic, resume).await.map_err(IntoResponse::into_response)
}
