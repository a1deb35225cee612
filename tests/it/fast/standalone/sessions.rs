//! Sessions around a plain axum router.

use axum::Router;
use axum::routing::{get, post};
use regatta::rate_limit::{Key, Quota, RateLimitLayer};
use regatta::session::{AuthSession, SameSite, Session, SessionFields, SessionLayer};
use regatta::{Error, Redis};

use crate::fast::standalone::program::{self, Program};
use crate::support::client::{CookieClient, Request};
use crate::support::redis::TestRedis;

async fn add(fields: SessionFields) -> Result<String, Error> {
    Ok(fields.incr("items", 1).await?.to_string())
}

async fn keep(session: Session) -> Result<String, String> {
    let count: u64 = session.get("count").await.map_err(|error| error.to_string())?.unwrap_or_default();
    session.insert("count", count + 1).await.map_err(|error| error.to_string())?;
    Ok(count.to_string())
}

async fn login(mut auth: AuthSession) -> Result<(), Error> {
    Ok(auth.login("ann").await?)
}

async fn me(auth: AuthSession) -> String {
    auth.user_id().unwrap_or("-").to_owned()
}

fn routes() -> Router {
    Router::new()
        .route("/add", post(add))
        .route("/keep", get(keep))
        .route("/login", post(login))
        .route("/me", get(me))
}

fn serve(server: &TestRedis, layer: impl FnOnce(&Redis, Router) -> Router) -> Program {
    let url = server.url();
    Program::serve_without_addresses(async move || {
        let redis = program::connect(url.expose(), "shop").await.unwrap();
        layer(&redis, routes())
    })
}

#[test]
fn a_visitor_keeps_fields_and_login_over_all_programs_that_share_a_redis() {
    let server = TestRedis::start();
    let layer = |redis: &Redis, app: Router| app.layer(SessionLayer::new(redis));
    let (one, other) = (serve(&server, layer), serve(&server, layer));
    let mut visitor = CookieClient::default();
    for (count, program) in [&one, &other, &one].into_iter().enumerate() {
        let answer = visitor.request(program.address, Request::post("/add"));
        assert_eq!(answer.text(), (count + 1).to_string());
        assert_eq!(visitor.request(program.address, Request::get("/keep")).text(), count.to_string());
    }
    let before = visitor.cookies.clone();
    assert_eq!(visitor.request(one.address, Request::get("/me")).text(), "-");
    assert_eq!(visitor.request(one.address, Request::post("/login")).status, 200);
    assert_ne!(visitor.cookies, before, "a login gives another id");
    assert_eq!(visitor.request(other.address, Request::get("/me")).text(), "ann");
    assert_eq!(visitor.request(other.address, Request::post("/add")).text(), "4");
    let stranger = CookieClient { cookies: before };
    assert_eq!(stranger.clone().request(one.address, Request::get("/me")).text(), "-");
}

#[test]
fn many_visitors_whose_addresses_are_unknown_get_sessions() {
    let server = TestRedis::start();
    let program = serve(&server, |redis, app| app.layer(SessionLayer::new(redis)));
    for _ in 0..150 {
        assert_eq!(program.request(Request::post("/add")).text(), "1");
    }
}

#[test]
fn the_cookie_has_the_attributes_that_the_layer_names() {
    let server = TestRedis::start();
    let program = serve(&server, |redis, app| {
        let layer =
            SessionLayer::new(redis).with_name("id").with_secure(true).with_same_site(SameSite::Strict);
        app.layer(layer.with_absolute_timeout(std::time::Duration::from_secs(3600)))
    });
    let cookie = program.request(Request::post("/add")).header("Set-Cookie").to_owned();
    assert!(cookie.starts_with("__Host-id=v1."), "{cookie}");
    assert!(cookie.ends_with("; Path=/; Max-Age=3600; HttpOnly; SameSite=Strict; Secure"), "{cookie}");
    let program = serve(&server, |redis, app| {
        app.layer(SessionLayer::new(redis).with_domain("example.org").with_path("/add").with_secure(false))
    });
    let cookie = program.request(Request::post("/add")).header("Set-Cookie").to_owned();
    assert!(cookie.contains("; Path=/add; Domain=example.org; "), "{cookie}");
}

#[test]
fn keys_of_the_program_sign_and_encrypt() {
    let server = TestRedis::start();
    let keyed = |redis: &Redis, app: Router, key: &str| {
        let layer = SessionLayer::new(redis).with_signing_keys([key.repeat(32)]).unwrap();
        app.layer(layer.with_encryption_keys(["e".repeat(32)]).unwrap())
    };
    let program = serve(&server, |redis, app| keyed(redis, app, "a"));
    let mut visitor = CookieClient::default();
    let mut keep = |program: &Program| visitor.request(program.address, Request::get("/keep")).text();
    assert_eq!([keep(&program), keep(&program)], ["0", "1"]);
    let again = serve(&server, |redis, app| keyed(redis, app, "a"));
    let other = serve(&server, |redis, app| keyed(redis, app, "b"));
    assert_eq!([keep(&again), keep(&other)], ["2", "0"]);
}

#[test]
fn a_limit_outside_of_the_session_layer_is_decided_once_all_the_same() {
    let server = TestRedis::start();
    let program = serve(&server, |redis, app| {
        let limit = RateLimitLayer::new(redis, "all", Quota::per_minute(1).burst(2)).key(Key::global());
        app.layer(SessionLayer::new(redis)).layer(limit)
    });
    let mut visitor = CookieClient::default();
    let answers = [(); 3].map(|()| visitor.request(program.address, Request::post("/add")));
    assert_eq!([&answers[0], &answers[1], &answers[2]].map(|answer| answer.status), [200, 200, 429]);
    assert!(answers[1].header("RateLimit").contains("\"all\""), "{:?}", answers[1]);
    assert_eq!(answers[1].all("RateLimit").len(), 1);
}

#[test]
fn a_limit_inside_counts_by_session() {
    let server = TestRedis::start();
    let program = serve(&server, |redis, app| {
        let limit = RateLimitLayer::new(redis, "each", Quota::per_minute(1).burst(2)).key(Key::session());
        app.route_layer(limit).route("/start", post(add)).layer(SessionLayer::new(redis))
    });
    let visitor = || {
        let mut visitor = CookieClient::default();
        assert_eq!(visitor.request(program.address, Request::post("/start")).text(), "1");
        [(); 3].map(|()| visitor.request(program.address, Request::get("/me")).status)
    };
    assert_eq!([visitor(), visitor()], [[200, 200, 429]; 2]);
}
