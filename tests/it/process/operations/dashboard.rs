//! The operators' page over HTTP: who may do what, what a stream is, and where the page is not.

use std::time::Duration;

use serde_json::Value;

use crate::support::client::{Connection, CookieClient, Request, Response};
use crate::support::dashboard::{TOKEN, plan};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, soak, wait};

fn form(target: &str, body: &str) -> Request {
    Request::post(target).body("application/x-www-form-urlencoded", body.as_bytes())
}

/// An operator who has shown the token, and what the operator's forms carry.
fn operator(fleet: &TestFleet) -> (CookieClient, String) {
    let mut operator = CookieClient::default();
    let body = format!("operators-token={}", TOKEN.replace(' ', "+"));
    let response = operator.request(fleet.admin, form("/fleet/sign-in", &body));
    assert_eq!((response.status, response.header("Location")), (303, "/fleet"), "{response:?}");
    let cookie = response.header("Set-Cookie");
    assert!(cookie.contains("; Path=/fleet; Max-Age=43200; HttpOnly; SameSite=Strict"), "{cookie}");
    assert!(!cookie.contains("token") && !cookie.contains("Secure"), "{cookie}");
    let page = operator.request(fleet.admin, Request::get("/fleet")).text();
    let field = |name: &str| {
        let (_, rest) = page.split_once(&format!("name=\"{name}\"")).unwrap();
        let value = rest.split_once(" value=\"").unwrap().1;
        value.split('"').next().unwrap().to_owned()
    };
    let carried = format!("{}&instance={}", field("form-token"), field("instance"));
    (operator, carried)
}

fn slots(fleet: &TestFleet) -> usize {
    let document = fleet.operator("/fleet.json").json();
    document["slots"].as_array().unwrap().iter().filter(|slot| slot["state"] == "ready").count()
}

#[test]
fn a_button_needs_a_cookie_a_form_of_its_own_and_its_own_site() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let (mut ann, token) = operator(&fleet);
    let (mut bob, of_bob) = operator(&fleet);
    assert_ne!(token, of_bob);
    let scale = |token: &str| form("/fleet/scale", &format!("form-token={token}&workers=3"));
    let verbs = ["/fleet/scale", "/fleet/reload", "/fleet/restart", "/fleet/sign-out"];
    for verb in verbs {
        let stranger =
            client::once(fleet.admin, form(verb, &format!("form-token={token}&workers=3"))).unwrap();
        stranger.assert_problem(403);
        ann.request(fleet.admin, form(verb, "workers=3&slot=0")).assert_problem(403);
        ann.request(fleet.admin, form(verb, &format!("form-token={of_bob}&workers=3"))).assert_problem(403);
        let get = ann.request(fleet.admin, Request::get(verb));
        assert_eq!((get.status, get.header("Allow")), (405, "POST"), "{verb}");
        let json = Request::post(verb).body("application/json", b"{\"workers\":3}");
        ann.request(fleet.admin, json).assert_problem(415);
        let good = || form(verb, &format!("form-token={token}&workers=3&slot=0"));
        for (name, value) in [
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Site", "same-site"),
            ("Origin", "http://evil.test"),
            ("Origin", "null"),
        ] {
            ann.request(fleet.admin, good().header(name, value)).assert_problem(403);
        }
    }
    for wrong in ["", "0", "-1", "many", "99999999999999999999"] {
        let body = format!("form-token={token}&workers={wrong}");
        ann.request(fleet.admin, form("/fleet/scale", &body)).assert_problem(400);
    }
    // Another instance's page, which a load balancer has brought here.
    let (own, _) = token.split_once("&instance=").unwrap();
    for elsewhere in [own.to_owned(), format!("{own}&instance=other.1.2")] {
        ann.request(fleet.admin, scale(&elsewhere)).assert_problem(409);
    }
    let large = format!("form-token={token}&workers={}", "3".repeat(5000));
    ann.request(fleet.admin, form("/fleet/scale", &large)).assert_problem(413);
    assert_eq!(slots(&fleet), 2, "nothing of all this did anything");

    let done = ann.request(
        fleet.admin,
        scale(&token).header("Origin", "http://localhost").header("Sec-Fetch-Site", "same-origin"),
    );
    assert_eq!(
        (done.status, done.header("Location"), done.header("Cache-Control")),
        (303, "/fleet", "no-store")
    );
    assert_eq!(slots(&fleet), 3);
    assert!(
        !bob.request(fleet.admin, Request::get("/fleet")).text().contains("class=\"flash\""),
        "it is told to Ann"
    );
    assert!(ann.request(fleet.admin, Request::get("/fleet")).text().contains("3 workers serve"));
    let refused = ann.request(fleet.admin, form("/fleet/restart", &format!("form-token={token}&slot=7")));
    assert_eq!(refused.status, 303);
    let page = ann.request(fleet.admin, Request::get("/fleet")).text();
    assert!(
        page.contains("class=\"flash\" role=\"status\" tabindex=\"-1\" autofocus data-is=\"error\""),
        "{page}"
    );
}

#[test]
fn a_cookie_outlives_the_worker_that_gave_it_and_ends_with_the_sign_out() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let (mut ann, token) = operator(&fleet);
    let (mut bob, of_bob) = operator(&fleet);
    let cookies = ann.cookies.clone();
    assert_eq!(ann.request(fleet.admin, form("/fleet/sign-out", &format!("form-token={token}"))).status, 303);
    assert!(ann.cookies.is_empty() && !cookies.is_empty());
    let scale = form("/fleet/scale", &format!("form-token={token}&workers=3"));
    ann.request(fleet.admin, scale).assert_problem(403);
    fleet.signal(nix::sys::signal::Signal::SIGHUP);
    wait::until("the workers are others", wait::LONG, || !fleet.log_lines("reload done").is_empty());
    let page = bob.request(fleet.admin, Request::get("/fleet")).text();
    assert!(page.contains("name=\"form-token\""), "a cookie outlives the worker that gave it");
    // And so does the text of a page, although no other page has the same.
    let own = of_bob.split('&').next().unwrap();
    assert!(!page.contains(own), "{page}");
    let wrong = bob.request(fleet.admin, form("/fleet/restart", &format!("form-token={of_bob}&slot=7")));
    assert_eq!(wrong.status, 303, "the form is taken");
}

#[test]
fn wrong_tokens_are_refused_and_counted() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).workers(1).start();
    let attempt = |token: &str| {
        client::once(fleet.admin, form("/fleet/sign-in", &format!("operators-token={token}"))).unwrap()
    };
    let foreign = form("/fleet/sign-in", &format!("operators-token={}", TOKEN.replace(' ', "+")));
    client::once(fleet.admin, foreign.header("Sec-Fetch-Site", "cross-site")).unwrap().assert_problem(403);
    for _ in 0..5 {
        let refused = attempt("a+guess");
        assert_eq!((refused.status, refused.header("Set-Cookie")), (403, ""));
        assert!(refused.text().contains("That is not the token.") && !refused.text().contains("a guess"));
    }
    // Whatever a header says of who asks.
    let forged = form("/fleet/sign-in", "operators-token=x").header("X-Forwarded-For", "203.0.113.9");
    let refused = client::once(fleet.admin, forged).unwrap();
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.header("Retry-After").parse::<u64>().is_ok_and(|seconds| (1..=5).contains(&seconds)));
    assert_eq!(attempt(&TOKEN.replace(' ', "+")).status, 429, "not even the right one");
    assert!(!fleet.log().contains(TOKEN) && !fleet.log().contains("a guess"));
}

#[test]
fn without_a_token_there_are_no_buttons_and_the_page_says_what_gives_them() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let page = fleet.operator("/fleet").text();
    assert!(
        page.contains("dashboard.token") && !page.contains("<form") && !page.contains("<button"),
        "{page}"
    );
    let shown = client::once(fleet.admin, form("/fleet/sign-in", "operators-token=")).unwrap();
    assert_eq!((shown.status, shown.header("Set-Cookie")), (403, ""));
    let order = client::once(fleet.admin, form("/fleet/scale", "workers=3&form-token=")).unwrap();
    assert!(order.assert_problem(403)["detail"].as_str().unwrap().contains("dashboard.token"));
}

#[test]
fn the_public_address_has_it_only_where_that_is_wanted() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    for target in ["/fleet", "/fleet/events", "/fleet.json"] {
        fleet.get(target).assert_problem(404);
    }
    client::once(fleet.listen, form("/fleet/sign-in", "operators-token=x")).unwrap().assert_problem(404);
    drop(fleet);
    let fleet = plan(&redis).set("REGATTA_DASHBOARD__PUBLIC", "true").start();
    let page = fleet.get("/fleet");
    assert_eq!(page.status, 200);
    assert!(page.header("Set-Cookie").is_empty(), "no visitor's session is made");
    fleet.get("/fleet.json").assert_problem(404);
    let body = format!("operators-token={}", TOKEN.replace(' ', "+"));
    let tls = form("/fleet/sign-in", &body).header("X-Forwarded-Proto", "https");
    let signed_in = client::once(fleet.listen, tls).unwrap();
    assert_eq!(signed_in.status, 303);
    assert!(signed_in.header("Set-Cookie").contains("SameSite=Strict; Secure"), "{signed_in:?}");
}

#[test]
fn a_name_that_another_site_may_have_bent_is_refused() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).set("REGATTA_ADMIN__ALLOWED_HOSTS", "fleet.example.org").start();
    let ask = |target: &str, host: &str| -> Response {
        let mut connection = Connection::open(fleet.admin).unwrap();
        let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        connection.send(text.as_bytes()).unwrap();
        connection.receive(false).unwrap()
    };
    for good in ["127.0.0.1:3001", "[::1]", "localhost", "fleet.example.org:3001"] {
        assert_eq!(ask("/fleet", good).status, 200, "{good}");
    }
    for target in ["/fleet", "/fleet/events", "/livez"] {
        let refused = ask(target, "evil.test:3001");
        assert!(refused.assert_problem(421)["detail"].as_str().unwrap().contains("admin.allowed_hosts"));
    }
}

/// The next event of a stream, as JSON.
fn event(connection: &mut Connection, buffered: &mut String) -> Value {
    loop {
        if let Some((event, rest)) = buffered.split_once("\n\n") {
            let (event, rest) = (event.to_owned(), rest.to_owned());
            *buffered = rest;
            if let Some(data) = event.strip_prefix("data: ") {
                return serde_json::from_str(data).unwrap();
            }
            assert!(event.starts_with("retry: "), "{event}");
            continue;
        }
        *buffered += &String::from_utf8(connection.chunk().unwrap().expect("it goes on")).unwrap();
    }
}

#[test]
fn a_stream_is_the_page_first_and_then_what_changes_once_a_second() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let mut connection = Connection::open(fleet.admin).unwrap();
    connection.send(&Request::get("/fleet/events").bytes()).unwrap();
    let head = connection.receive(true).unwrap();
    assert_eq!((head.status, head.header("Content-Type")), (200, "text/event-stream"));
    assert_eq!((head.header("Cache-Control"), head.header("X-Accel-Buffering")), ("no-store", "no"));
    let mut buffered = String::new();
    let first = event(&mut connection, &mut buffered);
    assert!(first["events"].as_array().is_some_and(|events| !events.is_empty()), "{first}");
    assert_eq!(first["instances"][0]["slots"].as_array().unwrap().len(), 2);
    assert_eq!((&first["state"], &first["redis"]), (&Value::from("serving"), &Value::from("up")));
    let mut later = event(&mut connection, &mut buffered);
    wait::until("nothing happens any more", wait::LONG, || {
        later = event(&mut connection, &mut buffered);
        later["events"].is_null()
    });
    assert_ne!(first["at"], later["at"]);
    let size = serde_json::to_string(&later).unwrap().len();
    soak::log("dashboard, bytes a second for two workers", &size.to_string());
    // At the end it asks to come again, and ends like any other response.
    fleet.signal(nix::sys::signal::Signal::SIGHUP);
    let rest: Vec<_> = std::iter::from_fn(|| connection.chunk().unwrap()).flatten().collect();
    let rest = String::from_utf8(rest).unwrap();
    let last = rest.trim_end().rsplit("\n\n").next().unwrap();
    let retry = last.strip_prefix("retry: ").and_then(|ms| ms.parse::<u64>().ok());
    assert!(retry.is_some_and(|ms| (50..=1000).contains(&ms)), "{rest}");
}

#[test]
fn as_many_streams_as_may_be_leave_room_for_probes() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).workers(1).start();
    let open = || {
        let mut connection = Connection::open(fleet.admin).unwrap();
        connection.send(&Request::get("/fleet/events").bytes()).unwrap();
        let status = connection.receive(true).unwrap().status;
        (connection, status)
    };
    let mut streams: Vec<_> = (0..32).map(|_| open()).collect();
    assert!(streams.iter().all(|(_, status)| *status == 200));
    assert_eq!(open().1, 503);
    assert_eq!(fleet.operator("/readyz").status, 200);
    streams.clear();
    wait::until("a place is free again", wait::LONG, || open().1 == 200);
}

#[test]
fn the_page_and_its_files_have_the_headers_they_need_and_are_small() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let begun = std::time::Instant::now();
    let page = fleet.operator("/fleet");
    let took = begun.elapsed();
    let policy = page.header("Content-Security-Policy");
    assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!((page.header("Cache-Control"), page.header("X-Frame-Options")), ("no-store", "DENY"));
    let text = page.text();
    let mut size = text.len();
    let files = text.split(['"']).filter(|part| part.starts_with("/fleet/assets/"));
    let files: Vec<_> = files.map(str::to_owned).collect();
    assert_eq!(files.len(), 3);
    for file in files {
        let file = fleet.operator(&file);
        assert!(file.header("Cache-Control").contains("immutable"), "{file:?}");
        size += file.body.len();
    }
    let elsewhere = ["src=\"http", "href=\"http", "src=\"//", "href=\"//", "url("];
    assert!(elsewhere.iter().all(|way| !text.contains(way)), "nothing is loaded from elsewhere: {text}");
    soak::log("dashboard, page weight", &format!("{:.1} KB in 4 files, not compressed", size as f64 / 1e3));
    soak::log("dashboard, time to the whole page", &format!("{:.1} ms", took.as_secs_f64() * 1e3));
}

#[test]
fn nothing_is_computed_while_nobody_watches() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    // Sessions are asked for in each computation, and by no one else.
    let asked = || {
        let stats = redis.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_pfcount:")).unwrap_or_default();
        line.split(['=', ',']).nth(1).and_then(|calls| calls.parse::<u64>().ok()).unwrap_or(0)
    };
    let mut connection = Connection::open(fleet.admin).unwrap();
    connection.send(&Request::get("/fleet/events").bytes()).unwrap();
    connection.receive(true).unwrap();
    let before = asked();
    wait::until("it is computed while somebody watches", wait::LONG, || asked() > before + 1);
    drop(connection);
    let mut last = asked();
    let mut since = std::time::Instant::now();
    wait::until("nothing is computed for three seconds", wait::LONG, || {
        if asked() != last {
            (last, since) = (asked(), std::time::Instant::now());
        }
        since.elapsed() > Duration::from_secs(3)
    });
}

#[test]
fn figures_travel_with_a_heartbeat_and_cause_none() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "60s").start();
    let key = format!("{}:{{fleet}}:machines", fleet.plan().prefix());
    let said = || {
        let all = redis.cli(&["HVALS", &key]);
        let line = all.lines().find(|line| line.contains("\"host\""))?.to_owned();
        let document: Value = serde_json::from_str(line.splitn(3, ' ').nth(2)?).ok()?;
        Some((line.split(' ').next()?.to_owned(), document))
    };
    let (at, document) = wait::until_some("both workers are told as ready", wait::LONG, || {
        said().filter(|(_, document)| {
            let slots = document["slots"].as_array().unwrap();
            slots.len() == 2 && slots.iter().all(|slot| slot["state"] == "ready")
        })
    });
    assert!(document["figures"]["memory_bytes"].is_u64(), "{document}");
    assert!(document["slots"][1]["figures"]["starts"].is_u64(), "{document}");
    let begun = std::time::Instant::now();
    wait::until("the workers are busy for three looks", wait::LONG, || {
        fleet.get("/hello");
        begun.elapsed() > Duration::from_millis(1800)
    });
    assert_eq!(said().unwrap().0, at, "it spoke again");
}
