//! What a client may send, and how slowly: everything beyond is a 4xx or a closed connection, never a 500.

use std::time::Duration;

use crate::support::client::{Connection, CookieClient, Failure, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::wait;

/// A fleet with small bounds.
fn bounded(redis: &TestRedis) -> TestFleet {
    let plan = TestFleetBuilder::on(redis)
        .set("REGATTA_HTTP__MAX_HEADER_SIZE", "16KiB")
        .set("REGATTA_HTTP__MAX_BODY_SIZE", "1KiB");
    let plan = plan.set("REGATTA_HTTP__HEADER_TIMEOUT", "500ms").set("REGATTA_HTTP__BODY_TIMEOUT", "500ms");
    plan.set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "700ms").start()
}

/// What comes back for these bytes; a closed connection counts as a refusal without words.
#[track_caller]
fn answer(fleet: &TestFleet, bytes: &[u8]) -> Option<Response> {
    let mut connection = Connection::open(fleet.listen).unwrap();
    // The server may refuse before it has read everything.
    let sent = connection.send(bytes);
    match connection.receive(false) {
        Ok(response) => Some(response),
        Err(Failure::Closed | Failure::Reset) => None,
        Err(failure) => panic!("{failure:?} after {sent:?}"),
    }
}

#[track_caller]
fn still_serves(fleet: &TestFleet) {
    assert_eq!(fleet.get("/hello").status, 200);
    assert_eq!(CookieClient::default().view(fleet.listen).1, 1);
}

#[test]
fn a_header_that_is_too_large_is_refused() {
    let redis = TestRedis::start();
    let fleet = bounded(&redis);
    let large = format!("GET /hello HTTP/1.1\r\nHost: fleet.test\r\nX-Large: {}\r\n\r\n", "x".repeat(40_000));
    assert_eq!(answer(&fleet, large.as_bytes()).map(|response| response.status), Some(431));
    let many: String = (0..2000).map(|n| format!("X-{n}: y\r\n")).collect();
    let many = format!("GET /hello HTTP/1.1\r\nHost: fleet.test\r\n{many}\r\n");
    assert_eq!(answer(&fleet, many.as_bytes()).map(|response| response.status), Some(431));
    let target = format!("GET /{} HTTP/1.1\r\nHost: fleet.test\r\n\r\n", "x".repeat(40_000));
    let refused = answer(&fleet, target.as_bytes()).map(|response| response.status);
    assert!(matches!(refused, Some(414 | 431)), "{refused:?}");
    let just_right = Request::get("/hello").header("X-Large", &"x".repeat(10_000));
    assert_eq!(Connection::open(fleet.listen).unwrap().request(&just_right).unwrap().status, 200);
    still_serves(&fleet);
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let redis = TestRedis::start();
    let fleet = bounded(&redis);
    let form = "application/x-www-form-urlencoded";
    let declared = Request::post("/counters/x").body(form, "x".repeat(5000).as_bytes());
    answer(&fleet, &declared.bytes()).expect("an answer").assert_problem(413);
    let head = "POST /counters/x HTTP/1.1\r\nHost: fleet.test\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let unread = format!("{head}Content-Length: 99999999999\r\n\r\n");
    answer(&fleet, unread.as_bytes()).expect("an answer before the body").assert_problem(413);
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(8));
    answer(&fleet, chunked.as_bytes()).expect("an answer").assert_problem(413);
    let fits = Request::post("/counters/x").body(form, b"by=3");
    assert_eq!(answer(&fleet, &fits.bytes()).unwrap().json()["value"], 3);
    still_serves(&fleet);
}

#[test]
fn slow_headers_are_cut_off() {
    let redis = TestRedis::start();
    let fleet = bounded(&redis);
    let mut silent: Vec<_> = (0..50).map(|_| Connection::open(fleet.listen).unwrap()).collect();
    for connection in &mut silent {
        connection.send(b"GET /hello HTTP/1.1\r\nHost: fleet.test\r\nX-Slow: ").unwrap();
    }
    still_serves(&fleet);
    for connection in &mut silent {
        let rest = connection.rest().expect("it is closed long before the client's patience ends");
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    }
    let mut dripping = Connection::open(fleet.listen).unwrap();
    wait::until("a dripping client is cut off too", Duration::from_secs(10), || dripping.send(b"G").is_err());
    still_serves(&fleet);
}

#[test]
fn slow_bodies_are_cut_off() {
    let redis = TestRedis::start();
    let fleet = bounded(&redis);
    let mut connection = Connection::open(fleet.listen).unwrap();
    let head = "POST /counters/x HTTP/1.1\r\nHost: fleet.test\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    connection.send(format!("{head}Content-Length: 100\r\n\r\nby=").as_bytes()).unwrap();
    match connection.receive(false) {
        Ok(response) => assert!(matches!(response.status, 400 | 408), "{response:?}"),
        Err(failure) => assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure:?}"),
    }
    assert_eq!(fleet.get("/counters/x").json()["value"], 0, "half a body counts nothing");
    still_serves(&fleet);
}

#[test]
fn idle_connections_are_closed() {
    let redis = TestRedis::start();
    let fleet = bounded(&redis);
    let mut connection = Connection::open(fleet.listen).unwrap();
    assert!(connection.request(&Request::get("/hello")).unwrap().keeps_alive());
    assert_eq!(connection.rest().unwrap(), b"", "closed without a word");
    let mut never_used = Connection::open(fleet.listen).unwrap();
    let rest = never_used.rest().unwrap();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
}

#[test]
fn wrong_http_is_refused_and_never_a_500() {
    let redis = TestRedis::start();
    let fleet = bounded(&redis);
    let wrong: &[&[u8]] = &[
        b"GARBAGE\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET / FTP/1.1\r\nHost: x\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x01b\r\n\r\n",
        b"POST /counters/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /counters/x HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /counters/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n",
        b"POST /counters/x HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff\xff\xff\xff\r\n\r\n",
    ];
    for bytes in wrong {
        let shown = String::from_utf8_lossy(bytes);
        if let Some(response) = answer(&fleet, bytes) {
            assert!(
                (400..500).contains(&response.status) || response.status == 505,
                "{shown:?}: {response:?}"
            );
        }
    }
    still_serves(&fleet);
}

#[test]
fn mistakes_of_a_client_are_4xx_problems() {
    let redis = TestRedis::start();
    let fleet = bounded(&redis);
    let cases = [
        ("GET", "/nothing/here", 404),
        ("GET", "/counters/", 404),
        ("DELETE", "/", 405),
        ("PUT", "/counters/x", 405),
        ("POST", "/hello", 405),
        ("BREW", "/hello", 405),
        ("GET", "/heavy?n=nonsense", 400),
        ("GET", "/heavy?n=-1", 400),
        ("GET", "/heavy?n=99999999999999999999", 400),
        ("GET", "/heavy?n=18446744073709551615", 400),
        ("POST", "/counters/x?by=nonsense", 400),
    ];
    for (method, target, status) in cases {
        let response = answer(&fleet, &Request::new(method, target).bytes()).expect(target);
        response.assert_problem(status);
        if status == 405 {
            assert!(response.header("Allow").contains("GET") || target != "/", "{response:?}");
            assert!(!response.header("Allow").is_empty(), "{method} {target}: {response:?}");
        }
    }
    let long = "x".repeat(65);
    for name in [long.as_str(), "a%20b", "a%2Fb", "%00", "%ff", "ä", "a*", "{}"] {
        let response = answer(&fleet, &Request::get(&format!("/counters/{name}")).bytes()).expect(name);
        assert!((400..500).contains(&response.status), "{name}: {response:?}");
    }
    let wrong_kind = Request::post("/counters/x").body("application/xml", b"<by>1</by>");
    let response = answer(&fleet, &wrong_kind.bytes()).unwrap();
    assert!((400..500).contains(&response.status), "{response:?}");
    let wrong_json = Request::post("/counters/x").body("application/json", b"{\"by\": ");
    let response = answer(&fleet, &wrong_json.bytes()).unwrap();
    assert!((400..500).contains(&response.status), "{response:?}");
    still_serves(&fleet);
}

#[test]
fn a_client_that_leaves_early_hurts_nobody() {
    let redis = TestRedis::start();
    let fleet = bounded(&redis);
    for round in 0..40 {
        let mut connection = Connection::open(fleet.listen).unwrap();
        let heavy = Request::get("/heavy?n=100000").bytes();
        let sent = if round % 2 == 0 { &heavy[..] } else { &heavy[..10] };
        connection.send(sent).unwrap();
    }
    still_serves(&fleet);
}

#[test]
fn a_client_that_asks_before_it_sends_is_told_to_go_on() {
    let redis = TestRedis::start();
    let fleet = bounded(&redis);
    let mut connection = Connection::open(fleet.listen).unwrap();
    let head = "POST /counters/x HTTP/1.1\r\nHost: fleet.test\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    connection.send(format!("{head}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(connection.receive(false).unwrap().status, 100);
    connection.send(b"by=4").unwrap();
    assert_eq!(connection.receive(false).unwrap().json()["value"], 4);
}

#[test]
fn connections_beyond_the_bound_wait_and_are_served_later() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis)
        .example("faulty")
        .workers(1)
        .set("REGATTA_HTTP__MAX_CONNECTIONS", "5")
        .start();
    let hello = Request::get("/hello");
    // None of them is idle: an idle one would make room.
    let mut inside: Vec<_> = (0..5).map(|_| Connection::open(fleet.listen).unwrap()).collect();
    for connection in &mut inside {
        connection.send(&Request::get("/slow/1500").bytes()).unwrap();
    }
    wait::let_pass(Duration::from_millis(100));
    let mut outside: Vec<_> = (0..5).map(|_| Connection::open(fleet.listen).unwrap()).collect();
    for connection in &mut outside {
        connection.send(&hello.bytes()).unwrap();
        connection.set_timeout(Duration::from_millis(50));
        assert_eq!(connection.receive(false).unwrap_err(), Failure::TimedOut, "it waits");
    }
    for connection in inside.iter_mut().chain(&mut outside) {
        connection.set_timeout(Duration::from_secs(10));
        assert_eq!(connection.receive(false).unwrap().status, 200);
    }
}

#[test]
fn operators_are_answered_while_visitors_fill_every_place() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_HTTP__MAX_CONNECTIONS", "3").start();
    let _crowd: Vec<_> = (0..20).map(|_| Connection::open(fleet.listen).unwrap()).collect();
    for _ in 0..5 {
        for target in ["/livez", "/readyz", "/metrics"] {
            let mut connection = Connection::open(fleet.admin).unwrap();
            connection.set_timeout(Duration::from_secs(3));
            let response = connection.request(&Request::get(target).header("Connection", "close"));
            assert_eq!(response.expect(target).status, 200, "{target}");
        }
    }
}
