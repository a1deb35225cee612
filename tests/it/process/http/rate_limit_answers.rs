//! Limits as applications and clients meet them: layers, prices, refunds, headers, and Redis away.

use std::thread;

use sfv::{BareItem, List, ListEntry, Parser};

use crate::support::client::{Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, parallel_clients, wait};

/// Policies by name and setting, beside the generous default one.
fn plan(redis: &TestRedis, settings: &[(&str, &str)]) -> TestFleetBuilder {
    settings.iter().fold(TestFleetBuilder::on(redis), |plan, (name, value)| {
        plan.set(&format!("REGATTA_{}", name.to_uppercase().replace('.', "__")), value)
    })
}

/// The example with its layers.
fn layered(redis: &TestRedis) -> TestFleetBuilder {
    let settings = [
        ("limits.login.rate", "20/h"),
        ("limits.login.burst", "20"),
        ("limits.login.routes", "layer"),
        ("limits.export.concurrency", "2"),
        ("limits.export.concurrency_lease", "1s"),
        ("limits.export.per", "global"),
        ("limits.export.routes", "layer"),
    ];
    plan(redis, &settings).example("limits")
}

fn ask(fleet: &TestFleet, request: Request) -> Response {
    client::once(fleet.listen, request).unwrap_or_else(|failure| panic!("{failure:?}"))
}

/// What is left under a policy, as the response's `RateLimit` says.
#[track_caller]
fn left(response: &Response, policy: &str) -> i64 {
    let text = response.all("RateLimit").join(", ");
    let list: List = Parser::new(&text).parse().unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let named = |entry: &ListEntry| match entry {
        ListEntry::Item(item) if item.bare_item.as_string().is_some_and(|name| name.as_str() == policy) => {
            match item.params.get("r") {
                Some(BareItem::Integer(left)) => Some(i64::from(*left)),
                _ => None,
            }
        }
        _ => None,
    };
    list.iter().find_map(named).unwrap_or_else(|| panic!("{policy} is not in {text:?}"))
}

#[test]
fn a_layer_puts_a_route_under_a_policy_with_its_own_price_and_a_refund_takes_it_back() {
    let redis = TestRedis::start();
    let fleet = layered(&redis).start();
    for left_over in [15, 10, 5, 0] {
        let wrong = ask(&fleet, Request::post("/login/wrong"));
        assert_eq!((wrong.status, left(&wrong, "login")), (200, left_over));
        // Both policies in one call.
        assert!(left(&wrong, "default") > 0);
    }
    let denied = ask(&fleet, Request::post("/login/right"));
    assert_eq!(denied.assert_problem(429)["violated-policies"], serde_json::json!(["login"]));
    assert_eq!(fleet.get("/export/0").status, 200, "the policy is for the layer's routes only");
    redis.cli(&["FLUSHALL"]);
    let other = layered(&redis).start();
    for _ in 0..6 {
        let right = ask(&other, Request::post("/login/right"));
        assert_eq!((right.status, right.text().as_str()), (200, "welcome\n"));
    }
}

#[test]
fn a_price_that_shows_late_is_charged_as_a_whole_or_not_at_all() {
    let redis = TestRedis::start();
    let fleet = layered(&redis).start();
    let five = fleet.get("/rows/5");
    assert_eq!((five.status, left(&five, "login")), (200, 15));
    fleet.get("/rows/16").assert_problem(429);
    let rest = fleet.get("/rows/14");
    assert_eq!((rest.status, left(&rest, "login")), (200, 0), "{rest:?}");
}

#[test]
fn two_at_the_same_time_are_enough_and_a_killed_worker_gives_its_places_back() {
    let redis = TestRedis::start();
    let fleet = layered(&redis).workers(2).start();
    let statuses = parallel_clients::parallel(6, 1, |_| fleet.get("/export/1500").status);
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 2, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 4, "{statuses:?}");
    wait::until("the places are free", wait::LONG, || fleet.get("/export/0").status == 200);
    thread::scope(|scope| {
        for _ in 0..2 {
            // The client that asks below holds a place for a moment, too: until it is had, it is asked for again.
            let ask = || client::once(fleet.listen, Request::get("/export/60000"));
            scope.spawn(move || while ask().is_ok_and(|response| response.status == 429) {});
        }
        wait::until("both places are taken", wait::LONG, || fleet.get("/export/0").status == 429);
        for worker in fleet.workers() {
            fleet.crash(worker);
        }
        wait::until("the places of killed workers are free", wait::LONG, || {
            fleet.get("/export/0").status == 200
        });
    });
}

#[test]
fn a_layer_with_an_unknown_policy_is_a_boot_failure_that_says_so() {
    let redis = TestRedis::shared();
    let (code, log) = plan(&redis, &[]).example("limits").run();
    assert_eq!(code, 70, "{log}");
    assert!(log.contains("no policy is named login: add [limits.login]"), "{log}");
}

#[test]
fn a_header_a_method_and_a_price_choose_the_policy_and_its_subject() {
    let redis = TestRedis::start();
    let settings = [
        ("limits.key.header", "X-API-Key"),
        ("limits.key.rate", "1/h"),
        ("limits.key.burst", "6"),
        ("limits.key.cost", "3"),
        ("limits.key.methods", "post"),
        ("limits.key.routes", "/counters"),
    ];
    let fleet = plan(&redis, &settings).start();
    let post = |key: &str| {
        let request = Request::post("/counters/x?by=1");
        ask(&fleet, if key.is_empty() { request } else { request.header("X-API-Key", key) }).status
    };
    assert_eq!([post("a"), post("a"), post("a")], [200, 200, 429]);
    assert_eq!([post("b"), post("b"), post("b")], [200, 200, 429]);
    assert_eq!([post(""), post(""), post("")], [200, 200, 429]);
    assert_eq!(fleet.get("/counters/x").status, 200, "only POST is limited");
    assert!(redis.keys().iter().all(|key| !key.ends_with(":a")), "a key is not written down");
}

#[test]
fn older_headers_and_none_can_be_had() {
    let redis = TestRedis::shared();
    let limited = [("limits.default.rate", "1/min"), ("limits.default.burst", "2")];
    let style = |style: &str| plan(&redis, &limited).set("REGATTA_HTTP__RATE_LIMIT_HEADERS", style).start();
    let fleet = style("legacy");
    let first = fleet.get("/counters/x");
    let older = |name: &str, response: &Response| response.header(&format!("X-RateLimit-{name}")).to_owned();
    assert_eq!(["Limit", "Remaining", "Reset"].map(|name| older(name, &first)), ["2", "1", "60"]);
    assert!(first.all("RateLimit").is_empty() && first.all("RateLimit-Policy").is_empty());
    drop(fleet);
    let fleet = style("both");
    assert_eq!(left(&fleet.get("/counters/x"), "default"), 1);
    assert_eq!(older("Remaining", &fleet.get("/counters/x")), "0");
    drop(fleet);
    let fleet = style("off");
    let answers: Vec<_> = (0..3).map(|_| fleet.get("/counters/x")).collect();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 429]);
    for answer in &answers {
        assert!(answer.all("RateLimit").is_empty() && answer.all("X-RateLimit-Limit").is_empty());
    }
    assert!(!answers[2].header("Retry-After").is_empty());
}

#[test]
fn a_denied_flood_is_answered_by_the_worker_and_its_wait_gets_shorter() {
    let redis = TestRedis::start();
    let settings = [("limits.default.rate", "1/4s"), ("limits.default.burst", "1")];
    let fleet = plan(&redis, &settings).workers(1).start();
    assert_eq!(fleet.get("/counters/x").status, 200);
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let mut waits = Vec::new();
    wait::until("it is allowed again", wait::LONG, || {
        let response = fleet.get("/counters/x");
        if response.status == 429 {
            response.assert_problem(429);
            assert_eq!(left(&response, "default"), 0);
            waits.push(response.header("Retry-After").parse::<u64>().unwrap());
        }
        response.status == 200
    });
    assert!(waits.is_sorted_by(|before, after| before >= after), "{waits:?}");
    assert!(waits.len() > 20 && waits.first() > waits.last(), "{waits:?}");
    let calls = redis.commands().get("fcall").copied().unwrap_or(0);
    // While no one hears the news a denial is believed for a tenth of a second only.
    assert!(calls < 10, "{calls} commands for {} denied requests", waits.len());
    let metrics = fleet.operator("/metrics").text();
    let here = metrics
        .lines()
        .find(|line| line.starts_with("regatta_requests_rate_limited_from_cache_total{slot=\"0\"}"));
    let here: f64 = here.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap();
    assert!(here > 10.0, "{here}");
}

#[test]
fn without_redis_a_closed_policy_is_503_and_an_insured_one_is_its_share() {
    let mut redis = TestRedis::start();
    let settings = [
        ("limits.closed.rate", "1000/s"),
        ("limits.closed.routes", "/hello"),
        ("limits.closed.on_redis_down", "closed"),
        ("limits.insured.rate", "1/h"),
        ("limits.insured.burst", "10"),
        ("limits.insured.routes", "/health"),
    ];
    let fleet = plan(&redis, &settings).workers(2).start();
    assert_eq!((fleet.get("/hello").status, fleet.get("/health").status), (200, 200));
    redis.kill();
    wait::until("Redis is away for every worker", wait::LONG, || {
        let health = fleet.operator("/fleet.json").json();
        let up = |slot: &serde_json::Value| slot["worker"]["redis_up"].as_bool().unwrap_or(false);
        health["slots"].as_array().is_some_and(|slots| !slots.iter().any(up))
    });
    for _ in 0..10 {
        let closed = fleet.get("/hello");
        let problem = closed.assert_problem(503);
        assert!(problem["type"].as_str().unwrap().ends_with("#temporary-reduced-capacity"), "{problem}");
        assert!(closed.header("Retry-After").parse::<u64>().unwrap() >= 1);
    }
    let statuses: Vec<u16> = (0..60).map(|_| fleet.get("/health").status).collect();
    let (granted, denied) = (
        statuses.iter().filter(|status| **status == 200).count(),
        statuses.iter().filter(|status| **status == 429).count(),
    );
    assert_eq!((granted, granted + denied), (10, 60), "{statuses:?}");
    redis.restart();
    wait::until("what was allowed meanwhile is charged", wait::LONG, || {
        let keys = redis.keys();
        keys.iter().filter(|key| key.contains(":l:insured:") && key.contains(":m:")).count() == 2
    });
    fleet.get("/health").assert_problem(429);
}

#[test]
fn a_limit_in_shadow_is_counted_and_not_told() {
    let redis = TestRedis::shared();
    let settings =
        [("limits.tried.rate", "1/h"), ("limits.tried.burst", "1"), ("limits.tried.shadow", "true")];
    let fleet = plan(&redis, &settings).start();
    for _ in 0..5 {
        let response = fleet.get("/counters/x");
        assert_eq!(response.status, 200);
        assert!(!response.header("RateLimit-Policy").contains("tried"), "{response:?}");
    }
    let metrics = fleet.operator("/metrics").text();
    let shadowed =
        metrics.lines().filter_map(|line| line.strip_prefix("regatta_rate_limit_shadow_denials_total{"));
    let shadowed: f64 = shadowed.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    assert_eq!(shadowed as u64, 4);
}

#[test]
fn an_operator_sees_and_resets_a_limit_and_workers_know_at_once() {
    let redis = TestRedis::shared();
    let plan = plan(&redis, &[("limits.default.rate", "1/h"), ("limits.default.burst", "2")]);
    let fleet = plan.workers(2).start();
    let limits = |words: &[&str]| {
        let words: Vec<_> = ["limits"].iter().chain(words).copied().collect();
        fleet.plan().clone().args(&words).run()
    };
    assert_eq!(limits(&["show", "default", "127.0.0.1"]).1, "default for 127.0.0.1: 2 of 2 left, not in use");
    let statuses: Vec<_> = (0..40).map(|_| fleet.get("/counters/x").status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 2);
    let (code, shown) = limits(&["show", "default", "::ffff:127.0.0.1"]);
    assert!(code == 0 && shown.contains("0 of 2 left, fully replenished in"), "{shown}");
    let (code, shown) = limits(&["reset", "default", "127.0.0.1", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, &shown["reset"], &shown["remaining"]), (0, &true.into(), &2.into()));
    wait::until("it is allowed again", wait::LONG, || fleet.get("/counters/x").status == 200);
    let (code, said) = limits(&["show", "nothing", "127.0.0.1"]);
    assert!(code == 64 && said.contains("there are: default"), "{said}");
    assert_eq!(limits(&["show", "default", "somebody"]).0, 64);
}

#[test]
fn another_policy_holds_after_a_reload_and_what_was_known_of_the_old_one_does_not() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis)
        .unset("REGATTA_LIMITS__DEFAULT__RATE")
        .unset("REGATTA_LIMITS__DEFAULT__BURST");
    let file = plan.folder().join("regatta.toml");
    let write = |burst: u64| {
        std::fs::write(&file, format!("[limits.default]\nrate = \"1/h\"\nburst = {burst}\n")).unwrap();
    };
    write(3);
    let fleet = plan.start();
    let granted = || (0..30).filter(|_| fleet.get("/counters/x").status == 200).count();
    assert_eq!(granted(), 3);
    write(7);
    let (code, said) = fleet.plan().clone().args(&["reload"]).run();
    assert_eq!(code, 0, "{said}");
    assert_eq!(granted(), 7);
}
