//! What is held by an application's state can be shared by its handlers, and says nothing secret in a log.

use std::fmt::Debug;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use regatta::broadcast::{Broadcast, Message, MessageId, Presence, Topic};
use regatta::counter::{BatchedCounter, BoundedCounter, Counters, DistinctCounter};
use regatta::rate_limit::{Denied, Key, OnRedisDown, Quota, RateLimit, RateLimitLayer, RateLimiter};
use regatta::session::{
    ActiveSession, AuthSession, CsrfToken, PageView, RequireLogin, Session, SessionFields, SessionLayer,
    UserId,
};
use regatta::task::{Task, TaskContext, TaskHandle, TaskId, TaskQueue, TaskStatus};
use regatta::test::{TestApp, Visitor};
use regatta::{
    App, Busy, ClientIp, Config, Context, Error, Fleet, FleetHandle, FleetSnapshot, Idempotency, LastEventId,
    NoSettings, Problem, Redis, RedisBuilder, RedisError, RedisStatus, RedisUrl, Refusal, RequestTimeout,
    SameOrigin, Shutdown, SlotSnapshot, TrustedProxies, Worker, WorkerState,
};

/// Settings that can neither be cloned nor logged.
struct SecretSettings;

fn is_handle<T: Clone + Send + Sync + Debug + 'static>() {}
fn is_sent<T: Send + Debug + 'static>() {}

/// What a task holds need not be `Sync`, `Clone` or `Debug`.
#[derive(serde::Serialize, serde::Deserialize)]
struct Note(std::cell::Cell<u8>);

impl Task for Note {
    const NAME: &'static str = "note";
    type Output = std::cell::Cell<u8>;
}

#[test]
fn every_handle_can_be_cloned_sent_shared_and_logged() {
    is_handle::<FleetHandle>();
    is_handle::<Context>();
    is_handle::<Context<SecretSettings>>();
    is_handle::<Config>();
    is_handle::<NoSettings>();
    is_handle::<Shutdown>();
    is_handle::<Redis>();
    is_handle::<RedisBuilder>();
    is_handle::<RedisStatus>();
    is_handle::<RedisUrl>();
    is_handle::<RedisError>();
    is_handle::<Refusal>();
    is_handle::<WorkerState>();
    is_handle::<TrustedProxies>();
    is_handle::<SessionLayer>();
    is_handle::<RateLimiter>();
    is_handle::<Quota>();
    is_handle::<Key>();
    is_handle::<OnRedisDown>();
    is_handle::<Denied>();
    is_handle::<TestApp>();
    is_handle::<Visitor>();
    is_handle::<Worker>();
    is_handle::<FleetSnapshot>();
    is_handle::<SlotSnapshot>();
    is_handle::<ClientIp>();
    is_handle::<LastEventId>();
    is_handle::<Problem>();
    is_handle::<Idempotency>();
    is_handle::<RequestTimeout>();
    is_handle::<SameOrigin>();
    is_handle::<Session>();
    is_handle::<AuthSession>();
    is_handle::<ActiveSession>();
    is_handle::<CsrfToken>();
    is_handle::<PageView>();
    is_handle::<SessionFields>();
    is_handle::<UserId>();
    is_handle::<RequireLogin>();
    is_handle::<RateLimit>();
    is_handle::<RateLimitLayer>();
    is_handle::<Counters>();
    is_handle::<BatchedCounter>();
    is_handle::<BoundedCounter>();
    is_handle::<DistinctCounter>();
    is_handle::<Broadcast>();
    is_handle::<Topic>();
    is_handle::<Message>();
    is_handle::<MessageId>();
    is_handle::<Presence>();
    is_handle::<TaskQueue>();
    is_handle::<TaskContext>();
    is_handle::<TaskHandle<Note>>();
    is_handle::<TaskStatus>();
    is_handle::<TaskId>();
}

#[test]
fn every_stream_can_be_sent_and_logged() {
    fn is_stream<T: futures_util::Stream + Unpin + Send + Debug + 'static>() {}
    is_stream::<regatta::broadcast::Subscription>();
    is_stream::<regatta::task::TaskWatch>();
    is_stream::<regatta::ws::WebSocket>();
    is_sent::<regatta::ws::WebSocketUpgrade>();
    is_sent::<regatta::ws::Error>();
    is_handle::<regatta::OnDrain>();
    is_sent::<Busy>();
    is_sent::<Error>();
    is_sent::<App>();
    is_sent::<Fleet>();
}

/// Stores a field, logs a user in, and writes every handle of the request into one text.
async fn write_handles(
    mut user: AuthSession,
    fields: SessionFields,
    limit: RateLimit,
    counters: Counters,
    session: Session,
) -> Result<String, Error> {
    let id = session.id().map(|id| format!("{} {id}", id.0)).unwrap_or_default();
    user.login("ann-the-secret").await?;
    let value = fields.update("plum", |_: Option<String>| "stone-the-secret".to_owned()).await?;
    assert_eq!(fields.get::<String>("plum").await?, Some(value));
    counters.add("hits", 1).await?;
    let batched = counters.batched("b");
    let (bounded, distinct) = (counters.bounded("c", 9), counters.distinct("d"));
    let held = format!("{user:?} {fields:?} {limit:?}");
    let counted = format!("{counters:?} {batched:?} {bounded:?} {distinct:?}");
    Ok(format!("{held} {counted}\n{id}"))
}

#[tokio::test]
async fn what_a_request_holds_of_its_session_is_in_no_log_line() {
    let app = async |_: Context| Router::new().route("/", get(write_handles));
    let app = TestApp::new(app).await;
    let visitor = app.visitor();
    for _ in 0..2 {
        let response = visitor.get("/").await;
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.text();
        let (logged, ids) = text.split_once('\n').unwrap();
        for secret in ["the-secret", "plum", "Id(", "session_id"].into_iter().chain(ids.split_whitespace()) {
            assert!(!logged.contains(secret), "{secret} is in {logged}");
        }
        assert!(logged.contains("AuthSession") && logged.contains("DistinctCounter"), "{logged}");
    }
}
