//! Limits that a program makes inside a fleet, and what the configuration says of them.

use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use regatta::rate_limit::{Key, Quota, RateLimitLayer, RateLimiter};
use regatta::test::{TestApp, TestAppBuilder, Visitor};
use regatta::{Context, Error};

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
