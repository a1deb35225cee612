//! Broadcasts: `POST /broadcast` with JSON or a form, `GET /events?topic=` as server-sent events, and
//! `GET /ws?topic=&after=` over a WebSocket.

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use regatta::LastEventId;
use regatta::broadcast::Broadcast;
use regatta::rate_limit::RateLimit;
use regatta::session::AuthSession;
use regatta::ws::WebSocketUpgrade;
use serde::Deserialize;
use serde_json::json;

use crate::app::content::{self, Accepts, RequestBody};

/// The topic of a request that names none.
pub(super) const DEFAULT_TOPIC: &str = "news";

#[derive(Debug, Default, Deserialize)]
pub(super) struct PublishParams {
    topic: Option<String>,
    message: Option<String>,
    /// The form's hidden field.
    #[serde(default)]
    token: String,
}

/// The requested topic.
#[derive(Debug, Deserialize)]
pub(super) struct TopicParams {
    topic: Option<String>,
}

impl TopicParams {
    pub(super) fn topic(&self) -> Result<&str, UnknownTopic> {
        known_topic(self.topic.as_deref())
    }
}

/// Topics with names; each letter, and each letter with a digit, is a topic too.
const TOPICS: [&str; 7] = [DEFAULT_TOPIC, "boats", "chat", "load", "quay", "quiet", "weather"];

/// No topic of the name: 404 with the list of topics.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnknownTopic;

impl IntoResponse for UnknownTopic {
    fn into_response(self) -> Response {
        let names = TOPICS.join(", ");
        let reason =
            format!("there is no topic of this name; there are {names}, and letters such as a or t7");
        (StatusCode::NOT_FOUND, reason).into_response()
    }
}

/// The topic of a request; an empty field of a form names none.
///
/// There are 293 of them and no more: each is stored for an hour, so a client that could create topics could fill Redis.
/// Invalid names are passed on, for the library to reject.
fn known_topic(named: Option<&str>) -> Result<&str, UnknownTopic> {
    let topic = named.filter(|topic| !topic.is_empty()).unwrap_or(DEFAULT_TOPIC);
    let is_open =
        TOPICS.contains(&topic) || matches!(topic.as_bytes(), [b'a'..=b'z'] | [b'a'..=b'z', b'0'..=b'9']);
    let is_name =
        topic.len() <= 64 && topic.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b));
    if is_open || !is_name {
        return Ok(topic);
    }
    Err(UnknownTopic)
}

pub(super) async fn publish(
    broadcast: Broadcast,
    session: AuthSession,
    limit: RateLimit,
    accepts: Accepts,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    let params = match RequestBody::<PublishParams>::read(request).await? {
        RequestBody::Form(params)
            if !content::has_valid_csrf_token(&session, &headers, &params.token).await =>
        {
            return Err((StatusCode::FORBIDDEN, content::CSRF_EXPIRED).into_response());
        }
        RequestBody::Form(params) | RequestBody::Json(params) => params,
        RequestBody::Nothing => PublishParams::default(),
    };
    let topic = known_topic(params.topic.as_deref()).map_err(IntoResponse::into_response)?;
    let Some(message) = params.message.filter(|message| !message.is_empty()) else {
        return Err((StatusCode::BAD_REQUEST, "a message is required").into_response());
    };
    // A message takes Redis as much as it is long, so each KiB counts as a request; the first one is charged already.
    let more = (message.len().div_ceil(1024) as u64).saturating_sub(1);
    if more > 0 {
        limit.charge(more).await.map_err(IntoResponse::into_response)?;
    }
    let id = broadcast
        .topic(topic)
        .map_err(IntoResponse::into_response)?
        .publish(&message)
        .await
        .map_err(IntoResponse::into_response)?;
    Ok(match accepts {
        Accepts::Html => Redirect::to("/").into_response(),
        Accepts::Text => {
            (StatusCode::ACCEPTED, Json(json!({"id": id.to_string(), "topic": topic}))).into_response()
        }
    })
}

pub(super) async fn events(
    broadcast: Broadcast,
    last_event_id: LastEventId,
    _limit: RateLimit,
    Query(params): Query<TopicParams>,
) -> Result<Response, Response> {
    let topic = params.topic().map_err(IntoResponse::into_response)?;
    broadcast
        .topic(topic)
        .map_err(IntoResponse::into_response)?
        .sse(last_event_id)
        .await
        .map_err(IntoResponse::into_response)
}

pub(super) async fn socket(
    upgrade: WebSocketUpgrade,
    broadcast: Broadcast,
    last_event_id: LastEventId,
    _limit: RateLimit,
    Query(params): Query<TopicParams>,
) -> Result<Response, Response> {
    let topic = params.topic().map_err(IntoResponse::into_response)?;
    let topic = broadcast.topic(topic).map_err(IntoResponse::into_response)?;
    topic.socket(upgrade, last_event_id).await.map_err(IntoResponse::into_response)
}
