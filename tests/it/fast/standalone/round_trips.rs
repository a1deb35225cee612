//! What a request of a plain axum program costs in Redis, counted on the line.

use axum::Router;
use axum::routing::get;
use regatta::Error;
use regatta::counter::Counters;
use regatta::rate_limit::{Quota, RateLimitLayer};
use regatta::session::{PageView, SessionFields, SessionLayer};

use crate::fast::standalone::program::{self, Program};
use crate::support::client::{CookieClient, Request, Response};
use crate::support::fault_proxy::FaultProxy;
use crate::support::redis::TestRedis;

const TIMES: u64 = 5;

async fn set(fields: SessionFields) -> Result<String, Error> {
    Ok(fields.update("name", |_: Option<String>| "ann".to_owned()).await?)
}

async fn name(fields: SessionFields) -> Result<String, Error> {
    Ok(fields.get::<String>("name").await?.unwrap_or_default())
}

async fn all(fields: SessionFields, counters: Counters) -> Result<String, Error> {
    let hits = counters.add("hits", 1).await?;
    Ok(format!("{} {hits}", fields.get::<String>("name").await?.unwrap_or_default()))
}

async fn view(view: PageView) -> String {
    format!("{} {}", view.count(), view.total())
}

async fn hits(counters: Counters) -> Result<String, Error> {
    Ok(counters.add("other", 1).await?.to_string())
}

/// A program behind a counting proxy: its limit is decided before the handler, or with the first use of state.
fn serve(proxy: &FaultProxy, is_deferred: bool) -> Program {
    let url = proxy.url();
    Program::serve(async move || {
        let redis = program::connect(&url, "trips").await.unwrap();
        let quota = Quota::per_second(50).burst(90);
        let limit = RateLimitLayer::new(&redis, if is_deferred { "late" } else { "early" }, quota);
        let limit = if is_deferred { limit.with_first_use() } else { limit };
        Router::new()
            .route("/set", get(set))
            .route("/name", get(name))
            .route("/all", get(all))
            .route("/view", get(view))
            .route("/hits", get(hits))
            .route("/hello", get(|| async { "hello" }))
            .layer(limit)
            .layer(SessionLayer::new(&redis))
    })
}

/// That each of some requests costs so many round trips of one command each.
#[track_caller]
fn costs(proxy: &FaultProxy, kind: &str, rounds: u64, mut act: impl FnMut() -> Response) -> Response {
    assert_eq!(act().status, 200, "{kind}");
    let (counts, answers) = proxy.during(|| (0..TIMES).map(|_| act()).collect::<Vec<_>>());
    assert_eq!((counts.rounds, counts.total()), (rounds * TIMES, rounds * TIMES), "{kind}: {counts}");
    answers.into_iter().next_back().unwrap()
}

#[test]
fn session_limit_and_counter_of_a_request_are_one_round_trip() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let program = serve(&proxy, true);
    let mut visitor = CookieClient::default();
    assert_eq!(visitor.request(program.address, Request::get("/set")).text(), "ann");
    let mut get = |target: &str| visitor.request(program.address, Request::get(target));
    let answer = costs(&proxy, "session, limit and counter", 1, || get("/all"));
    assert_eq!(answer.text(), format!("ann {}", TIMES + 1));
    assert!(answer.header("RateLimit").contains("\"late\""), "{answer:?}");
    let answer = costs(&proxy, "session, limit, view and total", 1, || get("/view"));
    assert_eq!(answer.text(), format!("{0} {0}", TIMES + 1));
    costs(&proxy, "session and limit", 1, || get("/name"));
    costs(&proxy, "limit and counter of a stranger", 1, || program.get("/hits"));
    costs(&proxy, "no state", 0, || program.get("/hello"));
}

#[test]
fn a_limit_before_the_handler_brings_the_session_along() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let program = serve(&proxy, false);
    let mut visitor = CookieClient::default();
    assert_eq!(visitor.request(program.address, Request::get("/set")).text(), "ann");
    let mut get = |target: &str| visitor.request(program.address, Request::get(target));
    assert_eq!(costs(&proxy, "session and limit", 1, || get("/name")).text(), "ann");
    costs(&proxy, "only a limit", 1, || program.get("/hello"));
    costs(&proxy, "a counter after the limit", 2, || get("/all"));
}

#[test]
fn a_denied_client_costs_nothing_and_never_reaches_the_handler() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let url = proxy.url();
    let program = Program::serve(async move || {
        let redis = program::connect(&url, "trips").await.unwrap();
        let limit = RateLimitLayer::new(&redis, "few", Quota::per_minute(1).burst(2));
        Router::new().route("/", get(hits)).layer(limit)
    });
    assert_eq!((program.get("/").text(), program.get("/").text()), ("1".to_owned(), "2".to_owned()));
    let denied = program.get("/");
    let problem = denied.assert_problem(429);
    assert_eq!(problem["violated-policies"], serde_json::json!(["few"]));
    assert!(denied.header("Retry-After").parse::<u64>().unwrap() > 0, "{denied:?}");
    assert!(denied.header("RateLimit-Policy").contains("\"few\";q=2"), "{denied:?}");
    let (counts, answers) = proxy.during(|| [(); 5].map(|()| program.get("/").status));
    assert_eq!((counts.total(), answers), (0, [429; 5]), "{counts}");
}

#[test]
fn a_limit_outside_of_the_session_is_a_call_of_its_own_unless_it_waits_for_the_first_use() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    for (is_deferred, rounds) in [(false, 2), (true, 1)] {
        let url = proxy.url();
        let program = Program::serve(async move || {
            let redis = program::connect(&url, "trips").await.unwrap();
            let limit = RateLimitLayer::new(&redis, "outside", Quota::per_second(50).burst(90));
            let limit = if is_deferred { limit.with_first_use() } else { limit };
            let routes = Router::new().route("/set", get(set)).route("/name", get(name));
            routes.layer(SessionLayer::new(&redis)).layer(limit)
        });
        let mut visitor = CookieClient::default();
        assert_eq!(visitor.request(program.address, Request::get("/set")).text(), "ann");
        let mut get = |target: &str| visitor.request(program.address, Request::get(target));
        let answer = costs(&proxy, "session inside of the limit", rounds, || get("/name"));
        assert_eq!(answer.text(), "ann");
    }
}
