//! What strangers can fill, and how they would walk around what keeps them from it.

use std::net::SocketAddr;
use std::thread;

use axum::body::Body;
use axum::http::Request as Http;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use crate::support::client::{Connection, CookieClient, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::{TestRedis, function_calls};
use crate::support::sockets::{Frame, WebSocketClient};
use crate::support::stream::try_publish;
use crate::support::{client, wait};

/// Spellings that a proxy or a layer which normalises paths takes for the same path.
const SPELLINGS: [&str; 12] = [
    "/login",
    "/%6cogin",
    "/%6Cogin",
    "//login",
    "/./login",
    "/x/../login",
    "/login/",
    "/login;v=1",
    "/%2e/login",
    "/x/%2E%2E/login",
    "/%2flogin",
    "http://localhost/login",
];

fn ask(address: SocketAddr, request: Request) -> Response {
    client::once(address, request).unwrap_or_else(|failure| panic!("{failure:?}"))
}

/// A policy of so many requests, none of which comes back in the time of a test.
fn few(plan: TestFleetBuilder, name: &str, burst: u64) -> TestFleetBuilder {
    plan.set(&format!("REGATTA_LIMITS__{name}__RATE"), "1/d")
        .set(&format!("REGATTA_LIMITS__{name}__BURST"), &burst.to_string())
}

fn memory(redis: &TestRedis) -> u64 {
    let info = redis.cli(&["INFO", "memory"]);
    info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
}

#[test]
fn twelve_spellings_of_a_path_are_one_bucket() {
    let redis = TestRedis::shared();
    let plan = few(TestFleetBuilder::on(&redis).workers(1), "DOOR", 12)
        .set("REGATTA_LIMITS__DOOR__ROUTES", "/login");
    let fleet = plan.start();
    for spelling in SPELLINGS {
        assert_ne!(ask(fleet.listen, Request::get(spelling)).status, 429, "{spelling}");
    }
    for spelling in SPELLINGS {
        ask(fleet.listen, Request::get(spelling)).assert_problem(429);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for path in ["/%6cogin", "/x/../login"] {
        let request = Http::get(format!("http://{}{path}", fleet.listen)).body(Body::empty()).unwrap();
        assert_eq!(runtime.block_on(client.request(request)).unwrap().status().as_u16(), 429, "h2 {path}");
    }
    assert_eq!(ask(fleet.listen, Request::get("/log")).status, 404, "a prefix ends at a slash");
    assert_eq!(ask(fleet.listen, Request::get("/loginx")).status, 404);
}

#[test]
fn a_policy_of_get_counts_head_once_and_none_holds_for_another_method() {
    let redis = TestRedis::shared();
    let plan =
        few(TestFleetBuilder::on(&redis).workers(1), "DOOR", 4).set("REGATTA_LIMITS__DOOR__ROUTES", "/hello");
    let fleet = plan.set("REGATTA_LIMITS__DOOR__METHODS", "GET").start();
    for method in ["HEAD", "GET", "HEAD", "GET"] {
        let mut connection = Connection::open(fleet.listen).unwrap();
        connection.send(&Request::new(method, "/hello").bytes()).unwrap();
        assert_eq!(connection.receive(method == "HEAD").unwrap().status, 200, "{method}");
    }
    let mut connection = Connection::open(fleet.listen).unwrap();
    connection.send(&Request::new("HEAD", "/hello").bytes()).unwrap();
    assert_eq!(connection.receive(true).unwrap().status, 429);
    let overridden = Request::post("/hello").header("X-HTTP-Method-Override", "GET");
    assert_eq!(ask(fleet.listen, overridden).status, 405, "what a header says is no method");
}

#[test]
fn a_policy_without_routes_holds_everywhere_and_the_built_in_one_where_state_is_used() {
    let redis = TestRedis::start();
    let plan =
        few(TestFleetBuilder::on(&redis).workers(1), "DEFAULT", 3).unset("REGATTA_LIMITS__DEFAULT__ROUTES");
    let fleet = plan.start();
    for target in ["/hello", "/heavy?n=1", "/nothing/here"] {
        assert_ne!(fleet.get(target).status, 429, "{target}");
    }
    for target in ["/hello", "/heavy?n=1", "/nothing/here", "/", "/health"] {
        fleet.get(target).assert_problem(429);
    }
    assert_eq!(fleet.operator("/livez").status, 200, "operators have no limits");
    let built_in =
        ["RATE", "BURST", "ROUTES"].into_iter().fold(TestFleetBuilder::on(&redis), |plan, field| {
            plan.unset(&format!("REGATTA_LIMITS__DEFAULT__{field}"))
        });
    let fleet = built_in.workers(1).start();
    let before = function_calls(&redis);
    for _ in 0..5 {
        let hello = fleet.get("/hello");
        assert_eq!((hello.status, hello.header("RateLimit")), (200, ""));
    }
    assert_eq!(function_calls(&redis), before, "what uses no state costs no call");
    assert!(fleet.get("/").header("RateLimit").contains("\"default\""));
}

#[test]
fn every_route_that_writes_is_limited_as_shipped() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).shipped_limits().start();
    let json = |target: &str, body: &str| Request::post(target).body("application/json", body.as_bytes());
    let floods = [
        ("login", json("/login", "{\"name\":\"ann\"}"), 20),
        ("logout", Request::post("/logout"), 30),
        ("messages", json("/broadcast", "{\"message\":\"x\"}"), 20),
        ("counters", Request::post("/counters/hits?by=1"), 100),
        ("tasks", json("/tasks", "{\"kind\":\"primes\",\"n\":10}"), 10),
    ];
    for (policy, request, burst) in floods {
        let denied =
            (0..=burst + 60).map(|_| ask(fleet.listen, request.clone())).find(|answer| answer.status == 429);
        let denied = denied.unwrap_or_else(|| panic!("{policy} denied no request"));
        assert_eq!(denied.assert_problem(429)["violated-policies"], json!([policy]));
    }
    let once = |n: usize| Request::post("/nowhere").header("Idempotency-Key", &n.to_string());
    let denied = (0..60).map(|n| ask(fleet.listen, once(n))).find(|answer| answer.status == 429).unwrap();
    assert_eq!(denied.assert_problem(429)["violated-policies"], json!(["idempotency"]));
    assert_eq!(fleet.get("/").status, 200, "who only looks goes on");
}

#[test]
fn messages_over_sockets_and_requests_are_one_limit_and_cost_few_calls() {
    let redis = TestRedis::start();
    let plan = few(TestFleetBuilder::on(&redis).workers(1), "MESSAGES", 12)
        .set("REGATTA_LIMITS__MESSAGES__ROUTES", "/broadcast");
    let fleet = plan.start();
    let said = |text: &str| Frame::text(&json!({ "message": text }).to_string());
    let mut sockets = [0, 1].map(|_| WebSocketClient::open(fleet.listen, "/ws"));
    for n in 0..6 {
        sockets[n % 2].send(&said("x")).unwrap();
        // Both hear it, and only after it was charged.
        sockets.iter_mut().for_each(|socket| while socket.json()["message"] != "x" {});
    }
    // Six of them are left for requests, some of which were drawn for messages and go back after a moment.
    let mut left = 6;
    wait::until("the rest is for requests", wait::LONG, || {
        let answer = try_publish(fleet.listen, "quay", "y");
        assert!(answer.status == 202 || answer.status == 429, "{answer:?}");
        left -= i32::from(answer.status == 202);
        left == 0
    });
    try_publish(fleet.listen, "quay", "y").assert_problem(429);
    let before = function_calls(&redis);
    for _ in 0..10 {
        sockets[0].send(&said("z")).unwrap();
    }
    let mut limited = 0;
    while limited < 10 {
        let heard = sockets[0].json();
        assert_ne!(heard["message"], "z", "it is denied");
        if heard["error"] == "limited" {
            assert!(heard["retry_after_seconds"].as_f64().is_some_and(|seconds| seconds > 1.0), "{heard}");
            limited += 1;
        }
    }
    // One that finds out, at most one more, and one that gives something back.
    assert!(function_calls(&redis) - before <= 4, "{} calls", function_calls(&redis) - before);
}

#[test]
fn a_large_message_counts_for_its_kibibytes() {
    let redis = TestRedis::shared();
    let plan = few(TestFleetBuilder::on(&redis).workers(1), "MESSAGES", 10)
        .set("REGATTA_LIMITS__MESSAGES__ROUTES", "/broadcast");
    let fleet = plan.start();
    let large = "x".repeat(5 * 1024);
    assert_eq!(try_publish(fleet.listen, "a", &large).status, 202);
    assert_eq!(try_publish(fleet.listen, "a", &large).status, 202);
    try_publish(fleet.listen, "a", "y").assert_problem(429);
}

/// What one address may send of each kind in an hour, as shipped.
#[test]
fn an_hour_of_every_flood_takes_less_than_64_mib() {
    let redis = TestRedis::start();
    let fleet =
        TestFleetBuilder::on(&redis).workers(2).set("REGATTA_LIMITS__IDEMPOTENCY__ENABLED", "false").start();
    let flood = |name: &str, count: usize, request: &(dyn Fn(usize) -> Request + Sync)| {
        let before = memory(&redis);
        thread::scope(|scope| {
            for lane in 0..8 {
                let listen = fleet.listen;
                scope.spawn(move || {
                    let mut connection = Connection::open(listen).unwrap();
                    for n in (lane..count).step_by(8) {
                        let answer = connection.request(&request(n)).unwrap();
                        assert!(answer.status < 500, "{answer:?}");
                        if !answer.keeps_alive() {
                            connection = Connection::open(listen).unwrap();
                        }
                    }
                });
            }
        });
        let grown = memory(&redis).saturating_sub(before);
        println!("{name}: {count} requests, {} KiB", grown >> 10);
        assert!(grown <= 64 << 20, "{name}: {grown}");
    };
    let post = |target: &str, body: String| Request::post(target).body("application/json", body.as_bytes());
    // burst + rate × 1 h.
    // A KiB counts for one, so no sizes take more than this one; topics have names of a list, and of a letter and a
    // digit.
    let kib = "x".repeat(1024);
    flood("messages", 20 + 5 * 3600, &|n| {
        let topic = format!("{}{}", char::from(b'a' + u8::try_from(n % 26).unwrap()), n / 26 % 10);
        post("/broadcast", json!({"topic": topic, "message": kib}).to_string())
    });
    flood("logins", 20 + 30 * 60, &|n| post("/login", format!("{{\"name\":\"u{n}\"}}")));
    flood("once", 30 + 30 * 60, &|n| Request::post("/nowhere").header("Idempotency-Key", &n.to_string()));
    // A twentieth: what a task holds before it runs is small, its result is bounded by 21 KB.
    flood("tasks", (10 + 30 * 60) / 20, &|n| post("/tasks", format!("{{\"kind\":\"primes\",\"n\":{n}}}")));
}

/// Fills Redis up to a part of its bound, which is set for that.
fn fill(redis: &TestRedis, percent: u64) {
    let used = memory(redis);
    redis.cli(&["CONFIG", "SET", "maxmemory", &(used * 100 / percent).to_string()]);
}

#[test]
fn in_a_nearly_full_redis_strangers_add_nothing_and_all_else_goes_on() {
    let redis = TestRedis::start();
    // All who come have one address here.
    let plan = TestFleetBuilder::on(&redis)
        .workers(2)
        .shipped_limits()
        .set("REGATTA_LIMITS__MESSAGES__RATE", "1000/s");
    let fleet = plan.start();
    let listen = fleet.listen;
    let publish = |visitor: &mut CookieClient| {
        let body = json!({"topic": "a", "message": "x"}).to_string();
        visitor.request(listen, Request::post("/broadcast").body("application/json", body.as_bytes()))
    };
    let (mut ann, mut stranger) = (CookieClient::default(), CookieClient::default());
    let login = |name: &str| {
        Request::post("/login").body("application/json", json!({ "name": name }).to_string().as_bytes())
    };
    assert_eq!(ann.request(listen, login("ann")).status, 200);
    ann.view(listen);
    fill(&redis, 85);
    wait::until("strangers are told", wait::LONG, || {
        let answer = publish(&mut stranger);
        if answer.status == 503 {
            answer.assert_problem(503);
            assert!(answer.header("Retry-After").parse::<u64>().is_ok_and(|wait| wait >= 10));
        }
        answer.status == 503
    });
    for target in ["/tasks", "/counters/hits?by=1"] {
        let body = json!({"kind": "primes", "n": 3}).to_string();
        let request = Request::post(target).body("application/json", body.as_bytes());
        assert_eq!(ask(listen, request).status, 503, "{target}");
    }
    assert_eq!(publish(&mut ann).status, 202, "who is logged in goes on");
    assert_eq!(CookieClient::default().request(listen, login("bob")).status, 200, "so do logins");
    ann.view(listen);
    assert_eq!(ask(listen, Request::get("/counters/hits")).status, 200, "and reads");
    assert_eq!(ann.request(listen, Request::post("/logout")).status, 204, "and logouts");
    let mut carl = CookieClient::default();
    assert_eq!(carl.request(listen, login("carl")).status, 200);
    // Beyond its bound Redis takes nothing at all.
    redis.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let page = carl.request(listen, Request::get("/").header("Accept", "text/html"));
    assert_eq!((page.status, page.header("Session-State")), (200, "read-only"), "{page:?}");
    assert_eq!(carl.request(listen, Request::get("/me")).status, 200);
    publish(&mut carl).assert_problem(503);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    wait::until("it is as ever", wait::LONG, || publish(&mut stranger).status == 202);
    assert_eq!(carl.request(listen, Request::get("/")).header("Session-State"), "");
}

fn bound_of(fleet: &TestFleet) -> u64 {
    let socket = fleet.plan().folder().join("data/redis.sock");
    let output = std::process::Command::new("redis-cli")
        .args(["-s", socket.to_str().unwrap(), "CONFIG", "GET", "maxmemory*"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let value = |name: &str| lines[lines.iter().position(|line| *line == name).unwrap() + 1];
    assert_eq!(value("maxmemory-policy"), "noeviction");
    value("maxmemory").parse().unwrap()
}

#[test]
fn a_private_redis_has_a_bound_of_the_machines_memory_or_as_it_is_told() {
    let fleet = TestFleetBuilder::new().workers(1).start();
    let bound = bound_of(&fleet);
    assert!(bound >= 64 << 20, "{bound}");
    drop(fleet);
    let fleet = TestFleetBuilder::new().workers(1).set("REGATTA_REDIS__MAXMEMORY", "100MiB").start();
    assert_eq!(bound_of(&fleet), 100 << 20);
}

#[test]
fn check_says_what_a_redis_will_lose_and_that_it_has_no_bound() {
    let redis = TestRedis::start();
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let (code, said) = TestFleetBuilder::on(&redis).args(&["check"]).run();
    assert!(code == 0 && said.contains("noeviction") && said.contains("no maxmemory"), "{code}: {said}");
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1gb"]);
    let (code, said) = TestFleetBuilder::on(&redis).args(&["check"]).run();
    assert!(code == 0 && !said.contains("noeviction") && !said.contains("maxmemory"), "{code}: {said}");
}

#[test]
fn a_proxy_that_is_not_trusted_is_said_once() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).set("REGATTA_PROXY__TRUSTED", "10.9.9.9/32").workers(2);
    let fleet = plan.start();
    assert!(!fleet.operator("/readyz").text().contains("proxy.trusted"));
    for n in 0..50 {
        let request = Request::get("/hello").header("X-Forwarded-For", &format!("9.9.9.{n}"));
        assert_eq!(ask(fleet.listen, request).status, 200);
    }
    let ready = fleet.operator("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("127.0.0.1 is not in proxy.trusted"), "{ready:?}");
    assert_eq!(fleet.log().matches("is not in proxy.trusted").count(), 1, "{}", fleet.log());
    let trusting = TestFleetBuilder::on(&redis).workers(1).start();
    ask(trusting.listen, Request::get("/hello").header("X-Forwarded-For", "9.9.9.9"));
    assert!(!trusting.operator("/readyz").text().contains("proxy.trusted"));
}
