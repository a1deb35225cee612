//! Limits that a program makes inside a fleet, and what the configuration says of them.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use regatta::rate_limit::{Key, Quota, RateLimitLayer, RateLimiter};
use regatta::test::{TestApp, TestAppBuilder, Visitor};
use regatta::{Context, Error};
use tower::ServiceExt;

/// Two limits of 1 request an hour, unless the configuration says something else.
async fn app(cx: Context) -> Router {
    let quota = Quota::per(1, Duration::from_secs(3600)).burst(1);
    let mails = RateLimiter::new(cx.fleet().redis(), "mails", quota);
    let again = mails.clone();
    let send =
        get(async move |Path(to): Path<String>| mails.check(&to).await.map(|_| "").map_err(Error::from));
    let reset =
        get(async move |Path(to): Path<String>| again.reset(&to).await.map(|()| "").map_err(Error::from));
    let site = RateLimitLayer::new(cx.fleet().redis(), "site", quota).key(Key::global());
    Router::new()
        .route("/mail/{to}", send)
        .route("/reset/{to}", reset)
        .route("/site", get(async || "").layer(site))
}

async fn statuses<const N: usize>(visitor: &Visitor, paths: [&str; N]) -> [u16; N] {
    let mut statuses = [0; N];
    for (status, path) in statuses.iter_mut().zip(paths) {
        *status = visitor.get(path).await.status().as_u16();
    }
    statuses
}

#[tokio::test]
async fn a_limiter_counts_by_its_key_whatever_the_configuration_counts_by() {
    let app = TestApp::builder()
        .set("limits.mails.rate", "2/h")
        .set("limits.mails.burst", 2)
        .set("limits.mails.routes", "layer")
        .build(app)
        .await;
    let visitor = app.visitor();
    let sent = statuses(&visitor, ["/mail/ann", "/mail/ann", "/mail/ann", "/mail/ben", "/mail/ben"]).await;
    assert_eq!(sent, [200, 200, 429, 200, 200], "two each, as the configuration says");
    let reset = statuses(&visitor, ["/reset/ann", "/mail/ann", "/mail/ben"]).await;
    assert_eq!(reset, [200, 200, 429], "of one key alone");
}

#[tokio::test]
async fn what_the_configuration_switches_off_denies_nothing() {
    let off = ["mails", "site"].into_iter().fold(TestApp::builder(), |builder, name| {
        let set = |builder: TestAppBuilder, (field, value): (&str, &str)| {
            builder.set(&format!("limits.{name}.{field}"), value)
        };
        [("rate", "1/h"), ("burst", "1"), ("routes", "layer"), ("enabled", "false")]
            .into_iter()
            .fold(builder, set)
    });
    let off = off.build(app).await;
    let paths = ["/mail/ann", "/mail/ann", "/site", "/site"];
    assert_eq!(statuses(&off.visitor(), paths).await, [200; 4]);
    let on = TestApp::new(app).await;
    assert_eq!(statuses(&on.visitor(), paths).await, [200, 429, 200, 429]);
}

#[tokio::test]
#[should_panic(
    expected = "the application cannot start: the policy site can never allow a request that counts for 2"
)]
async fn a_cost_that_can_never_be_allowed_fails_the_boot() {
    TestApp::new(async |cx: Context| {
        let quota = Quota::per(1, Duration::from_secs(3600)).burst(1);
        let site = RateLimitLayer::new(cx.fleet().redis(), "site", quota).key(Key::global());
        Router::new().route("/site", get(async || "").layer(site.cost(2)))
    })
    .await;
}

#[tokio::test]
#[should_panic(
    expected = "the application cannot start: the policy login can never allow a request that counts for 6"
)]
async fn a_cost_above_the_configured_policy_fails_the_boot() {
    let builder = [("rate", "5/h"), ("burst", "5"), ("routes", "layer")]
        .into_iter()
        .fold(TestApp::builder(), |builder, (field, value)| {
            builder.set(&format!("limits.login.{field}"), value)
        });
    builder
        .build(async |cx: Context| {
            let login = cx.rate_limit("login").map(|limit| limit.cost(6));
            login.map(|limit| Router::new().route("/login", get(async || "").layer(limit)))
        })
        .await;
}

#[tokio::test]
async fn a_layer_that_is_made_later_denies_what_it_can_never_allow() {
    async fn late(limits: Context) -> StatusCode {
        let quota = Quota::per(1, Duration::from_secs(3600)).burst(1);
        let site = RateLimitLayer::new(limits.fleet().redis(), "late", quota).key(Key::global()).cost(2);
        let late: Router = Router::new().route("/", get(async || "").layer(site));
        let request = Request::get("/").body(Body::empty()).unwrap();
        late.oneshot(request).await.unwrap().status()
    }
    let app = TestApp::new(async |cx: Context| {
        Router::new().route("/late", get(async move || late(cx.clone()).await))
    })
    .await;
    assert_eq!(app.visitor().get("/late").await.status(), StatusCode::TOO_MANY_REQUESTS);
}
