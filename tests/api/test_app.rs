//! What `regatta::test` promises.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Request, StatusCode};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use regatta::session::AuthSession;
use regatta::task::{self, Task, TaskContext, TaskQueue, TaskState};
use regatta::test::TestApp;
use regatta::{App, ClientIp, Context, FleetHandle};
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

async fn app(_: Context) -> App {
    let routes = Router::new()
        .route("/me", get(async |user: AuthSession| Json(user.user_id().map(str::to_owned))))
        .route("/address", get(async |ClientIp(address): ClientIp| address.to_string()))
        .route("/tasks", post(start))
        .route("/panic", get(async || -> &'static str { panic!("on purpose") }));
    App::new(routes)
        .layer(map_response(async |mut response: Response| {
            response.headers_mut().insert("x-outside", HeaderValue::from_static("1"));
            response
        }))
        .task(double)
}

#[derive(Serialize, Deserialize)]
struct Double(u64);

impl Task for Double {
    const NAME: &'static str = "double";
    type Output = u64;
}

async fn double(Double(number): Double, _: TaskContext) -> Result<u64, String> {
    number.checked_mul(2).ok_or_else(|| "too large".to_owned())
}

async fn start(tasks: TaskQueue) -> Result<StatusCode, task::Error> {
    tasks.enqueue(Double(7)).await?;
    Ok(StatusCode::ACCEPTED)
}

#[tokio::test]
async fn a_visitor_is_logged_in_without_a_form_and_has_an_address_of_its_own() {
    let app = TestApp::new(app).await;
    let (ann, ben) = (app.visitor().log_in("ann ä/1").await, app.visitor());
    assert_eq!(ann.get("/me").await.json::<Option<String>>().as_deref(), Some("ann ä/1"));
    assert_eq!(ben.get("/me").await.json::<Option<String>>(), None);
    assert_ne!(ann.get("/address").await.text(), ben.get("/address").await.text());
}

#[tokio::test]
async fn tasks_are_waited_for_and_counted() {
    let app = TestApp::new(app).await;
    for _ in 0..3 {
        assert_eq!(app.visitor().post("/tasks", "").await.status(), StatusCode::ACCEPTED);
    }
    assert_eq!(app.run_tasks().await, 3);
    assert_eq!(app.run_tasks().await, 0);
}

#[tokio::test]
async fn a_handle_waits_for_the_result_or_says_why_there_is_none() {
    let app = TestApp::new(app).await;
    let tasks = app.fleet().tasks();
    let handle = tasks.enqueue(Double(21)).await.unwrap();
    assert_eq!(handle.output().await.unwrap(), 42);
    assert_eq!(handle.output().await.unwrap(), 42, "as long as its record is kept");
    let status = handle.status().await.unwrap().unwrap();
    assert_eq!((status.state(), status.id(), status.name()), (TaskState::Done, handle.id(), "double"));
    let odd = tasks.enqueue(Double(u64::MAX)).await.unwrap().output().await.unwrap_err();
    assert!(matches!(&odd, task::Error::Failed { reason } if reason == "too large"), "{odd:?}");
}

/// Waits on the event loop until it is cancelled, and longer.
#[derive(Serialize, Deserialize)]
struct Stubborn;

impl Task for Stubborn {
    const NAME: &'static str = "stubborn";
    type Output = ();
}

#[tokio::test]
async fn an_async_task_is_told_of_its_cancellation() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let app = TestApp::new(move |_: Context| {
        let told = told.clone();
        let app = App::new(Router::new()).task(move |_: Stubborn, cx: TaskContext| {
            let told = told.clone();
            async move {
                told.send("begun").unwrap();
                cx.cancelled().await;
                assert!(cx.is_cancelled());
                told.send("told").unwrap();
                Err::<(), _>("cancelled")
            }
        });
        std::future::ready(app)
    })
    .await;
    let tasks = app.fleet().tasks();
    let task = tasks.enqueue(Stubborn).await.unwrap();
    assert_eq!(heard.recv().await, Some("begun"));
    assert_eq!(tasks.cancel(task.id()).await.unwrap(), Some(task::Cancelled::Running));
    assert_eq!(heard.recv().await, Some("told"));
    let ended = task.output().await.unwrap_err();
    assert!(matches!(&ended, task::Error::Failed { reason } if reason == "it was cancelled"), "{ended:?}");
}

#[tokio::test]
async fn calls_that_overlap_count_each_task_once() {
    let app = TestApp::new(app).await;
    for _ in 0..3 {
        app.visitor().post("/tasks", "").await;
    }
    let counts = tokio::join!(app.run_tasks(), app.run_tasks(), app.run_tasks());
    assert_eq!(counts.0 + counts.1 + counts.2, 3, "{counts:?}");
}

#[tokio::test]
#[should_panic(expected = "workers.boot_timeout")]
async fn an_application_that_hangs_is_no_test_that_hangs() {
    let builder = TestApp::builder().set("workers.boot_timeout", "200ms");
    builder.build(async |_: Context| -> Router { std::future::pending().await }).await;
}

#[tokio::test]
async fn an_outer_layer_is_around_refusals_too() {
    let app = TestApp::builder().set("http.max_body_size", "1KiB").build(app).await;
    let response = app.visitor().post("/tasks", "x".repeat(2000)).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(response.headers()["x-outside"], "1");
    let response = app.visitor().get("/panic").await;
    assert_eq!(
        (response.status(), &response.headers()["x-outside"]),
        (StatusCode::INTERNAL_SERVER_ERROR, &HeaderValue::from_static("1"))
    );
}

#[tokio::test]
async fn the_router_serves_the_same_application() {
    let app = TestApp::new(app).await;
    let request = Request::get("/me").body(Body::empty()).unwrap();
    let response = app.router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_drain_waits_for_work_that_a_handler_spawned() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let order = async move |fleet: FleetHandle| {
        let counted = Arc::clone(&counted);
        let leaving = fleet.clone();
        fleet.spawn(async move {
            fleet_is_leaving(&leaving).await;
            counted.fetch_add(1, Relaxed);
        });
        StatusCode::ACCEPTED
    };
    let app = TestApp::new(move |_: Context| {
        let order = order.clone();
        async move { Router::new().route("/orders", post(order)) }
    })
    .await;
    for _ in 0..1600 {
        assert_eq!(app.visitor().post("/orders", "").await.status(), StatusCode::ACCEPTED);
    }
    assert_eq!(done.load(Relaxed), 0, "none of them holds up its response");
    app.drain().await;
    assert_eq!(done.load(Relaxed), 1600);
}

#[tokio::test]
async fn a_drain_waits_for_work_that_begins_during_it() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let app = TestApp::new(move |context: Context| {
        let (fleet, counted) = (context.fleet().clone(), Arc::clone(&counted));
        async move {
            App::new(Router::new()).on_drain(async move {
                tokio::task::yield_now().await;
                fleet.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    counted.fetch_add(1, Relaxed);
                });
            })
        }
    })
    .await;
    app.drain().await;
    assert_eq!(done.load(Relaxed), 1);
}

/// Returns a while after the drain has begun.
async fn fleet_is_leaving(fleet: &FleetHandle) {
    fleet.shutdown().wait().await;
    tokio::task::yield_now().await;
}

#[tokio::test]
async fn a_drain_runs_the_hooks() {
    async fn hooked(ran: Arc<AtomicUsize>) -> App {
        let (drain, exit) = (Arc::clone(&ran), Arc::clone(&ran));
        let routes =
            Router::new().route("/", get(async |State(_): State<Arc<AtomicUsize>>| "")).with_state(ran);
        App::new(routes)
            .on_drain(async move { _ = drain.fetch_add(1, Relaxed) })
            .on_exit(async move { _ = exit.fetch_add(10, Relaxed) })
    }
    let ran = Arc::new(AtomicUsize::new(0));
    let given = Arc::clone(&ran);
    let app = TestApp::new(move |_: Context| hooked(Arc::clone(&given))).await;
    assert_eq!(ran.load(Relaxed), 0);
    app.drain().await;
    assert_eq!(ran.load(Relaxed), 11);
}

#[tokio::test]
#[should_panic(expected = "the application cannot start: the harbour is closed")]
async fn an_application_that_cannot_be_built_fails_the_test() {
    TestApp::new(async |_: Context| Err::<Router, _>("the harbour is closed")).await;
}
