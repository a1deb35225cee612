//! The programs do what their first lines say.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use regatta::test::{TestApp, TestRedis, Visitor};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::{api, login, pool, thumbnails, upkeep, views};

#[tokio::test]
async fn each_visitor_has_a_count() {
    let app = TestApp::new(views::app).await;
    let (ann, ben) = (app.visitor(), app.visitor());
    assert!(ann.get("/").await.text().ends_with("Views: 1\n"));
    assert!(ann.get("/").await.text().ends_with("Views: 2\n"));
    assert!(ben.get("/").await.text().ends_with("Views: 1\n"));
}

#[tokio::test]
async fn while_redis_is_away_clients_are_told_when_to_come_again() {
    let app = TestApp::builder().redis(TestRedis::none()).build(views::app).await;
    let response = app.visitor().get("/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
}

/// The token in the form of this page.
async fn csrf(visitor: &Visitor, page: &str) -> String {
    let response = visitor.get(page).await;
    let (_, rest) = response.text().split_once("name=csrf type=hidden value=\"").unwrap();
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn the_page_is_for_members_and_only_pages_of_theirs_log_in_and_out() {
    let app = TestApp::new(login::app).await;
    let ann = app.visitor();
    let turned_away = ann.get("/me").await;
    assert_eq!(turned_away.status(), StatusCode::SEE_OTHER);
    assert_eq!(turned_away.headers()["location"], "/login");

    let form = csrf(&ann, "/login").await;
    let wrong = ann.post("/login", format!("name=ann&password=oars&csrf={form}")).await;
    assert_eq!(wrong.headers()["location"], "/login");
    let forged = ann.post("/login", "name=ann&password=ahoy&csrf=").await;
    assert_eq!(forged.status(), StatusCode::FORBIDDEN);
    let stranger = csrf(&app.visitor(), "/login").await;
    let foreign = ann.post("/login", format!("name=ann&password=ahoy&csrf={stranger}")).await;
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN, "a token of another visitor");
    assert_eq!(ann.get("/me").await.status(), StatusCode::SEE_OTHER);

    let right = ann.post("/login", format!("name=ann&password=ahoy&csrf={form}")).await;
    assert_eq!(right.headers()["location"], "/me");
    assert!(ann.get("/me").await.text().contains("You are ann."));
    let stale = ann.post("/logout", format!("csrf={form}")).await;
    assert_eq!(stale.status(), StatusCode::FORBIDDEN, "a token from before the login");
    let way_out = csrf(&ann, "/me").await;
    assert_eq!(ann.post("/logout", format!("csrf={way_out}")).await.headers()["location"], "/login");
    assert_eq!(ann.get("/me").await.status(), StatusCode::SEE_OTHER);

    let ben = app.visitor().log_in("ben").await;
    assert_eq!(ben.get("/me").await.status(), StatusCode::OK, "a test needs no form");
}

#[tokio::test]
async fn a_pool_is_connected_before_the_first_request_and_closed_at_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let database = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let (mut questions, mut line) = (0, String::new());
        while stream.read_line(&mut line).await.unwrap() > 0 {
            stream.get_mut().write_all(b"+PONG\r\n").await.unwrap();
            line.clear();
            questions += 1;
        }
        questions
    });
    let settings = json!({"database": database.to_string(), "connections": 1});
    let app = TestApp::builder().redis(TestRedis::none()).app_settings(settings).build(pool::app).await;
    assert_eq!(app.visitor().get("/ping").await.text(), "+PONG\r\n");
    app.drain().await;
    assert_eq!(served.await.unwrap(), 1, "the connection was closed after one question");
}

#[tokio::test]
async fn a_limit_is_per_key_and_an_export_costs_more() {
    let limits =
        [("limits.api.per", "header"), ("limits.api.header", "x-api-key"), ("limits.api.rate", "60/h")];
    let more = [("limits.api.burst", "60"), ("limits.api.routes", "layer")];
    let set = |builder: regatta::test::TestAppBuilder, (name, value)| builder.set(name, value);
    let app = limits.into_iter().chain(more).fold(TestApp::builder(), set).build(api::app).await;
    let get = async |path: &str, key: &str| {
        let request = Request::get(path).header("x-api-key", key).body(Body::empty()).unwrap();
        app.visitor().request(request).await.status()
    };
    assert_eq!(get("/export", "ann").await, StatusCode::OK);
    assert_eq!(get("/export", "ann").await, StatusCode::OK);
    assert_eq!(get("/export", "ann").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(get("/search", "ann").await, StatusCode::OK, "10 are left");
    assert_eq!(get("/export", "ben").await, StatusCode::OK);
}

#[tokio::test]
async fn background_work_runs_beside_the_requests_until_the_drain() {
    let settings = json!({"folder": std::env::temp_dir()});
    let app = TestApp::builder().redis(TestRedis::none()).app_settings(settings).build(upkeep::app).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while app.visitor().get("/refreshes").await.text() != "1\n" {
        assert!(Instant::now() < deadline, "the background work has not begun");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    app.drain().await;
}

#[tokio::test]
async fn a_tasks_progress_is_followed_until_its_end_and_stays_ended() {
    let app = TestApp::new(thumbnails::app).await;
    let response = app.visitor().post("/albums/holidays", "").await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let path = response.text().trim().to_owned();
    let events = app.visitor().get(&path).await;
    assert_eq!(events.status(), StatusCode::OK);
    let last = events.text().lines().rfind(|line| line.starts_with("data: ")).unwrap();
    let last: serde_json::Value = serde_json::from_str(&last[6..]).unwrap();
    assert_eq!(
        (&last["state"], &last["percent"], &last["result"]),
        (&json!("done"), &json!(100), &json!(100))
    );
    let again = Request::get(&path).header("last-event-id", "end").body(Body::empty()).unwrap();
    assert_eq!(app.visitor().request(again).await.status(), StatusCode::NO_CONTENT);
}
