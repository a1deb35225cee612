//! Each error says what it came from, converts into the one for all, and is answered as a problem document.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use regatta::{Error, ErrorKind, broadcast, counter, session, task, ws};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

fn is_error<T: StdError + Send + Sync + IntoResponse + Into<Error> + 'static>() {}

#[test]
fn every_error_is_an_answer_and_converts_into_the_one_for_all() {
    is_error::<Error>();
    is_error::<session::Error>();
    is_error::<regatta::rate_limit::Error>();
    is_error::<counter::Error>();
    is_error::<broadcast::Error>();
    is_error::<broadcast::InvalidTopic>();
    is_error::<task::Error>();
    is_error::<ws::Rejection>();
    is_error::<regatta::RedisError>();
    is_error::<regatta::Busy>();
}

async fn document(response: Response) -> serde_json::Value {
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    let body = to_bytes(response.into_body(), 4096).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn an_error_has_its_status_and_its_problem_type() {
    let cases: [(Error, ErrorKind, u16, &str); 9] = [
        (session::Error::Gone.into(), ErrorKind::Session, 401, "urn:regatta:problem:session-gone"),
        (session::Error::TooLarge.into(), ErrorKind::Session, 507, "urn:regatta:problem:session-too-large"),
        (
            session::Error::Conflict { field: "cart".to_owned() }.into(),
            ErrorKind::Session,
            409,
            "urn:regatta:problem:session-conflict",
        ),
        (session::Error::Csrf.into(), ErrorKind::Session, 403, "about:blank"),
        (counter::Error::Overflow.into(), ErrorKind::Counter, 409, "about:blank"),
        (broadcast::Error::TooLarge { limit: 5 }.into(), ErrorKind::Broadcast, 413, "about:blank"),
        (task::Error::NotFound.into(), ErrorKind::Task, 404, "about:blank"),
        (task::Error::UnknownKind("x".to_owned()).into(), ErrorKind::Task, 400, "about:blank"),
        (ws::Rejection::Version.into(), ErrorKind::WebSocket, 505, "about:blank"),
    ];
    for (error, kind, status, problem) in cases {
        let text = error.to_string();
        assert_eq!((error.kind(), error.status().as_u16()), (kind, status), "{text}");
        let response = error.into_response();
        assert_eq!(response.status().as_u16(), status, "{text}");
        assert_eq!(document(response).await["type"], problem, "{text}");
    }
}

#[test]
fn a_source_is_kept() {
    let broken = serde_json::from_str::<u8>("x").unwrap_err();
    let text = broken.to_string();
    let error = Error::from(session::Error::Field { name: "cart".to_owned(), source: broken.into() });
    assert_eq!(error.source().unwrap().to_string(), text);
    let broken = serde_json::from_str::<u8>("x").unwrap_err();
    assert_eq!(Error::from(task::Error::Output(broken.into())).source().unwrap().to_string(), text);
}

#[test]
fn what_a_session_reports_is_one_of_redis_or_of_a_field() {
    let away = tower_sessions::session_store::Error::Backend("the shared state is not reachable".to_owned());
    let error = Error::from(tower_sessions::session::Error::Store(away));
    assert_eq!((error.kind(), error.status()), (ErrorKind::Redis, StatusCode::SERVICE_UNAVAILABLE));
    let session::Error::Redis(redis) = session::Error::from(tower_sessions::session::Error::Store(
        tower_sessions::session_store::Error::Backend("away".to_owned()),
    )) else {
        panic!("it is of Redis");
    };
    assert_eq!(redis.kind(), regatta::RedisErrorKind::Unavailable);
    assert!(!redis.outcome_is_unknown() && redis.retry_after() >= Duration::from_secs(1));
    assert!(redis.source().unwrap().to_string().contains("away"), "down to what Redis's client said");
}

#[tokio::test]
async fn a_handler_outside_a_fleet_is_told_so() {
    use tower::ServiceExt;

    async fn count(counters: counter::Counters) -> Result<String, counter::Error> {
        Ok(counters.add("hits", 1).await?.to_string())
    }
    let app: axum::Router = axum::Router::new().route("/", axum::routing::get(count));
    let request = Request::get("/").body(axum::body::Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

/// Counts events of the log.
#[derive(Clone, Default)]
struct EventCount(Arc<AtomicUsize>);

impl Subscriber for EventCount {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Relaxed);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_mistake_of_the_program_is_logged_once_by_the_answer_and_never_by_its_status() {
    let broken = || serde_json::from_str::<u8>("x").unwrap_err().into();
    let errors: [Error; 3] = [
        task::Error::Output(broken()).into(),
        broadcast::Error::Json(broken()).into(),
        session::Error::InvalidKey.into(),
    ];
    for error in errors {
        let count = EventCount::default();
        tracing::subscriber::with_default(count.clone(), || {
            assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(count.0.load(Relaxed), 0, "{error}");
            let text = error.to_string();
            _ = error.into_response();
            assert_eq!(count.0.load(Relaxed), 1, "{text}");
        });
    }
}
