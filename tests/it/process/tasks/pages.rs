//! The shipped application's tasks: started, looked at, followed and cancelled, by programs and by browsers without a
//! script.

use serde_json::{Value, json};

use crate::support::client::{CookieClient, Request, Response, once};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::wait;

const HTML: &str = "text/html,application/xhtml+xml,*/*;q=0.8";
const FORM: &str = "application/x-www-form-urlencoded";

/// More than any test waits for: it is cancelled before.
const LONG: &str = "{\"kind\":\"primes\",\"n\":20000000}";

/// A fleet whose workers take tasks.
fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).set("REGATTA_TASKS__CONCURRENCY", "1")
}

fn send(fleet: &TestFleet, body: &str) -> Response {
    once(fleet.listen, Request::post("/tasks").body("application/json", body.as_bytes())).unwrap()
}

fn ask(fleet: &TestFleet, method: &str, target: &str) -> Response {
    once(fleet.listen, Request::new(method, target)).unwrap()
}

/// Starts a task; its path.
#[track_caller]
fn start(fleet: &TestFleet, body: &str) -> String {
    let begun = send(fleet, body);
    assert_eq!(begun.status, 202, "{begun:?}");
    let path = begun.header("Location").to_owned();
    assert_eq!(path, format!("/tasks/{}", begun.json()["id"].as_str().unwrap()));
    path
}

fn state(fleet: &TestFleet, path: &str) -> String {
    fleet.get(path).json()["state"].as_str().unwrap().to_owned()
}

#[track_caller]
fn until(fleet: &TestFleet, path: &str, wanted: &str) -> Value {
    wait::until_some(&format!("{path} is {wanted}"), wait::LONG, || {
        let task = fleet.get(path).json();
        (task["state"] == wanted).then_some(task)
    })
}

/// Every event of a task, until its stream ends.
fn events(fleet: &TestFleet, path: &str) -> Vec<Value> {
    let stream = fleet.get(&format!("{path}/events"));
    assert_eq!((stream.status, stream.header("Content-Type")), (200, "text/event-stream"), "{stream:?}");
    assert_eq!((stream.header("Cache-Control"), stream.header("X-Accel-Buffering")), ("no-store", "no"));
    let text = stream.text();
    assert!(text.contains("\nid: end\n"), "{text}");
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

#[test]
fn a_task_is_started_followed_and_its_result_is_exact() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).start();
    let path = start(&fleet, "{\"kind\":\"fibonacci\",\"n\":10000}");
    let events = events(&fleet, &path);
    let percents: Vec<_> = events.iter().map(|task| task["percent"].as_u64().unwrap()).collect();
    assert!(percents.is_sorted() && percents.last() == Some(&100), "{percents:?}");
    let last = events.last().unwrap();
    let (value, digits) = (last["result"]["value"].as_str().unwrap(), &last["result"]["digits"]);
    assert_eq!((last["state"].as_str(), digits, value.len()), (Some("done"), &json!(2090), 2090));
    assert!(value.starts_with("33644764876431783266") && value.ends_with("66073310059947366875"), "{value}");
    let looked = fleet.get(&path);
    assert_eq!((&looked.json(), looked.header("Cache-Control")), (last, "no-store"));
    let again = Request::get(&format!("{path}/events")).header("Last-Event-ID", "end");
    assert_eq!(once(fleet.listen, again).unwrap().status, 204, "a browser need not come again");
    let odd = Request::get(&format!("{path}/events")).header("Last-Event-ID", "1700000000000-0");
    assert_eq!(once(fleet.listen, odd).unwrap().status, 200, "an id of another stream does no harm");

    let path = start(&fleet, "{\"kind\":\"primes\",\"n\":100000}");
    assert_eq!(until(&fleet, &path, "done")["result"], json!({"n": 100_000, "count": 9592}));
}

#[test]
fn what_cannot_be_done_is_refused_with_its_reason() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).start();
    let refused = |body: &str| send(&fleet, body).assert_problem(400)["detail"].as_str().unwrap().to_owned();
    assert!(refused("{\"kind\":\"mining\",\"n\":1}").contains("fibonacci, primes"));
    assert!(refused("{\"kind\":\"fibonacci\",\"n\":100001}").contains("0 to 100000"));
    assert!(refused("{\"kind\":\"fibonacci\",\"n\":18446744073709551615}").contains("0 to 100000"));
    assert!(!refused("{").is_empty());
    send(&fleet, "{\"kind\":\"fibonacci\",\"n\":-1}").assert_problem(422);
    ask(&fleet, "POST", "/tasks").assert_problem(400);
    let nobody = format!("/tasks/{}", "0".repeat(32));
    for path in [nobody.as_str(), "/tasks/nonsense", "/tasks/..%2f"] {
        ask(&fleet, "GET", path).assert_problem(404);
        ask(&fleet, "DELETE", path).assert_problem(404);
        ask(&fleet, "GET", &format!("{path}/events")).assert_problem(404);
    }
    let elsewhere = Request::post("/tasks").header("Sec-Fetch-Site", "cross-site");
    let elsewhere = elsewhere.body(FORM, b"kind=fibonacci&n=1");
    once(fleet.listen, elsewhere).unwrap().assert_problem(403);
    assert_eq!(fleet.get("/tasks").json()[0], json!({"kind": "fibonacci", "max": 100_000}));
}

#[test]
fn a_task_is_cancelled_once_and_an_ended_one_is_not() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).start();
    let running = start(&fleet, LONG);
    until(&fleet, &running, "running");
    let queued = start(&fleet, LONG);
    assert_eq!(state(&fleet, &queued), "waiting", "one runs at a time");
    for path in [&queued, &running, &running] {
        assert_eq!(ask(&fleet, "DELETE", path).status, 204);
        assert_eq!(state(&fleet, path), "cancelled");
    }
    let done = start(&fleet, "{\"kind\":\"fibonacci\",\"n\":10}");
    assert_eq!(until(&fleet, &done, "done")["result"]["value"], "55");
    let problem = ask(&fleet, "DELETE", &done).assert_problem(409);
    assert!(problem["detail"].as_str().unwrap().contains("done"), "{problem}");
    assert_eq!(events(&fleet, &running).last().unwrap()["state"], "cancelled");
}

#[test]
fn a_full_queue_and_a_limit_say_when_to_come_again() {
    let redis = TestRedis::shared();
    let plan = plan(&redis).workers(1).set("REGATTA_TASKS__MAX_QUEUED", "2");
    let plan = plan.set("REGATTA_LIMITS__DEFAULT__RATE", "1/min").set("REGATTA_LIMITS__DEFAULT__BURST", "6");
    let fleet = plan.set("REGATTA_LIMITS__DEFAULT__METHODS", "POST").start();
    let running = start(&fleet, LONG);
    until(&fleet, &running, "running");
    let waiting = [start(&fleet, LONG), start(&fleet, LONG)];
    let full = send(&fleet, LONG);
    full.assert_problem(503);
    assert!(full.header("Retry-After").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{full:?}");
    let browser = Request::post("/tasks").header("Accept", HTML).body(FORM, b"kind=primes&n=7");
    let page = once(fleet.listen, browser).unwrap();
    assert_eq!(page.status, 503, "{page:?}");
    assert!(page.text().contains("value=\"7\"") && !page.header("Retry-After").is_empty(), "{page:?}");
    assert_eq!(send(&fleet, LONG).status, 503);
    let denied = send(&fleet, LONG);
    denied.assert_problem(429);
    for path in waiting.iter().chain([&running]) {
        assert_eq!(ask(&fleet, "DELETE", path).status, 204, "whatever is limited, ending work is not");
    }
}

#[test]
fn without_server_side_code_there_are_no_tasks_and_the_page_is_right() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).set("REGATTA_REDIS__MODE", "plain").start();
    send(&fleet, "{\"kind\":\"primes\",\"n\":10}").assert_problem(501);
    let path = format!("/tasks/{}", "0".repeat(32));
    for (method, path) in [("GET", path.clone()), ("DELETE", path.clone()), ("GET", format!("{path}/events"))]
    {
        ask(&fleet, method, &path).assert_problem(501);
    }
    let page = once(fleet.listen, Request::get("/").header("Accept", HTML)).unwrap();
    assert!(page.status == 200 && page.text().contains("</html>"), "{page:?}");
}

#[test]
fn a_browser_without_a_script_starts_looks_and_cancels() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).start();
    let mut visitor = CookieClient::default();
    let mut page = |request: Request| visitor.request(fleet.listen, request.header("Accept", HTML));
    let form = page(Request::get("/tasks"));
    assert!(form.text().contains("<form") && form.text().contains("action=\"/tasks\""), "{form:?}");
    let wrong = page(Request::post("/tasks").body(FORM, b"kind=fibonacci&n=5000000"));
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("value=\"5000000\"") && wrong.text().contains("allows 0 to 100000"));
    let markup = page(Request::post("/tasks").body(FORM, b"kind=%3Cb%3E&n=1"));
    assert!(markup.status == 400 && !markup.text().contains("<b>"), "{markup:?}");

    let begun = page(Request::post("/tasks").body(FORM, b"kind=primes&n=20000000"));
    assert_eq!(begun.status, 303);
    let path = begun.header("Location").to_owned();
    until(&fleet, &path, "running");
    let running = page(Request::get(&path)).text();
    assert!(
        running.contains("http-equiv=\"refresh\"") && running.contains("<progress max=\"100\""),
        "{running}"
    );
    let gone = page(Request::post(&format!("{path}/cancel")).body(FORM, b""));
    assert_eq!((gone.status, gone.header("Location")), (303, path.as_str()));
    let ended = page(Request::get(&path));
    assert!(ended.text().contains("cancelled") && !ended.text().contains("http-equiv"), "{ended:?}");
    assert!(ended.header("Content-Security-Policy").contains("script-src 'self'"), "{ended:?}");
    let late = page(Request::post(&format!("{path}/cancel")).body(FORM, b""));
    assert_eq!(late.status, 303, "the page says what became of it");

    let short =
        page(Request::post("/tasks").body(FORM, b"kind=fibonacci&n=1000")).header("Location").to_owned();
    until(&fleet, &short, "done");
    let done = page(Request::get(&short)).text();
    let value = fleet.get(&short).json()["result"]["value"].as_str().unwrap().to_owned();
    assert!(value.len() == 209 && done.contains(&value), "the whole result is on the page: {done}");
}
