//! A message to everybody who listens to a topic: `POST /broadcast`, JSON or a form.

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use regatta::{AuthSession, Broadcast, RateLimit};
use serde::Deserialize;
use serde_json::json;

use crate::app::content;
use crate::app::content::RequestBody;
use crate::app::home::Accepts;

/// The topic of the one who names none.
pub(super) const DEFAULT_TOPIC: &str = "news";

#[derive(Debug, Default, Deserialize)]
pub(super) struct PublishParams {
    topic: Option<String>,
    message: Option<String>,
    /// A form's hidden field.
    #[serde(default)]
    token: String,
}

/// Which topic a client asks for.
#[derive(Debug, Deserialize)]
pub(super) struct TopicParams {
    topic: Option<String>,
}

impl TopicParams {
    pub(super) fn topic(&self) -> Result<&str, UnknownTopic> {
        known_topic(self.topic.as_deref())
    }
}

/// Topics with names of their own; besides them each letter is one, and each letter with a digit.
const TOPICS: [&str; 7] = [DEFAULT_TOPIC, "boats", "chat", "load", "quay", "quiet", "weather"];

/// There is no topic of the name: 404, with those that there are.
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

/// A topic, be it named or not: an empty field of a form names none.
///
/// There are 293 of them and no more: each is kept for an hour, so a stranger who could open topics could open as many as
/// fill Redis. What is no topic's name at all is left to the library to refuse.
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
    account: AuthSession,
    limit: RateLimit,
    accepts: Accepts,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Response> {
    let params = match RequestBody::<PublishParams>::read(request).await? {
        RequestBody::Form(params)
            if !content::has_valid_csrf_token(&account, &headers, &params.token).await =>
        {
            return Err((StatusCode::FORBIDDEN, content::CSRF_EXPIRED).into_response());
        }
        RequestBody::Form(params) | RequestBody::Json(params) => params,
        RequestBody::Nothing => PublishParams::default(),
    };
    let topic = known_topic(params.topic.as_deref()).map_err(IntoResponse::into_response)?;
    let Some(message) = params.message.filter(|message| !message.is_empty()) else {
        return Err((StatusCode::BAD_REQUEST, "say a message").into_response());
    };
    // What is kept is the message: it counts for each KiB of it, the first of which the request paid for.
    let more = (message.len().div_ceil(1024) as u64).saturating_sub(1);
    if more > 0 {
        limit.charge(more).await.map_err(IntoResponse::into_response)?;
    }
    let id = broadcast.publish(topic, &message).await.map_err(IntoResponse::into_response)?;
    Ok(match accepts {
        Accepts::Html => Redirect::to("/").into_response(),
        Accepts::Text => {
            (StatusCode::ACCEPTED, Json(json!({"id": id.to_string(), "topic": topic}))).into_response()
        }
    })
}
