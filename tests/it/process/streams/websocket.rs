//! WebSockets as their clients meet them: opened by those who may, heard by all, and closed with a reason.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request as Http;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::client::Request;
use crate::support::fleet::TestFleet;
use crate::support::redis::TestRedis;
use crate::support::sockets::{CLOSE, Frame, PING, PONG, WebSocketClient};
use crate::support::stream::{Stream, connections, publish};
use crate::support::{client, stream, wait};

/// A socket at every worker of the fleet.
#[track_caller]
fn everywhere(fleet: &TestFleet, target: &str, workers: usize) -> Vec<WebSocketClient> {
    let mut met = BTreeMap::new();
    wait::until("a socket at every worker", wait::LONG, || {
        let socket = WebSocketClient::open(fleet.listen, target);
        met.entry(socket.response.worker()).or_insert(socket);
        met.len() == workers
    });
    met.into_values().collect()
}

fn said(text: &str) -> Frame {
    Frame::text(&json!({ "message": text }).to_string())
}

#[test]
fn what_one_says_all_hear_on_every_worker() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(2).start();
    let mut sockets = everywhere(&fleet, "/ws?topic=quay", 2);
    let mut stream = Stream::open(fleet.listen, "/events?topic=quay");
    let _other = WebSocketClient::open(fleet.listen, "/ws");
    for (n, text) in ["ahoy", "\"quoted\" \\ \n ü \u{0} \u{1f6a3}", ""].into_iter().enumerate().take(2) {
        sockets[n].send(&said(text)).unwrap();
        let event = stream.event();
        assert_eq!(event.data, text);
        for socket in &mut sockets {
            assert_eq!(socket.json(), json!({"id": event.id, "topic": "quay", "message": text}));
        }
    }
    let id = publish(fleet.listen, "quay", "by request");
    for socket in &mut sockets {
        assert_eq!(socket.json(), json!({"id": id, "topic": "quay", "message": "by request"}));
    }
}

#[test]
fn whoever_comes_again_goes_on_where_it_was() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(1).start();
    let ids: Vec<_> = (0..5).map(|n| publish(fleet.listen, "news", &n.to_string())).collect();
    let mut socket = WebSocketClient::open(fleet.listen, &format!("/ws?after={}", ids[1]));
    for n in 2..5 {
        assert_eq!(socket.json()["message"], n.to_string());
    }
    assert_eq!(socket.after, ids[1]);
    // It is cut off before anything came, and comes again.
    let begin = WebSocketClient::open(fleet.listen, "/ws").after;
    assert_eq!(begin, ids[4]);
    let mut early = WebSocketClient::open(fleet.listen, &format!("/ws?after={begin}"));
    let mut stranger = WebSocketClient::open(fleet.listen, "/ws?after=nonsense");
    assert_eq!(stranger.json(), json!({"gap": true, "after": ids[4]}));
    publish(fleet.listen, "news", "5");
    for socket in [&mut socket, &mut early, &mut stranger] {
        assert_eq!(socket.json()["message"], "5");
    }
}

#[test]
fn only_a_handshake_of_our_own_pages_opens_one() {
    let redis = TestRedis::shared();
    let plan =
        stream::plan(&redis).workers(1).set("REGATTA_WEBSOCKET__ALLOWED_ORIGINS", "https://friend.test");
    let fleet = plan.start();
    let open = |headers: &[(&str, &str)]| WebSocketClient::try_open(fleet.listen, "/ws", headers);
    for origin in ["http://localhost", "https://localhost", "https://friend.test"] {
        assert!(open(&[("Origin", origin)]).is_ok(), "{origin}");
    }
    for origin in ["https://evil.test", "null", "http://friend.test", "http://localhost.evil.test", ""] {
        open(&[("Origin", origin)]).unwrap_err().assert_problem(403);
    }
    let plain = fleet.get("/ws");
    plain.assert_problem(426);
    let told = ["Upgrade", "Sec-WebSocket-Version"].map(|name| plain.header(name).to_owned());
    assert_eq!(told, ["websocket", "13"]);
    let ask = |request: Request| client::once(fleet.listen, request).unwrap();
    ask(Request::post("/ws")).assert_problem(405);
    let handshake = |version: &str, key: &str| {
        let request = Request::get("/ws").header("Connection", "Upgrade").header("Upgrade", "websocket");
        let request = request.header("Sec-WebSocket-Version", version).header("Sec-WebSocket-Key", key);
        client::Connection::open(fleet.listen).unwrap().request(&request).unwrap()
    };
    assert_eq!(handshake("13", "dGhlIHNhbXBsZSBub25jZQ==").status, 101);
    let old = handshake("8", "dGhlIHNhbXBsZSBub25jZQ==");
    old.assert_problem(426);
    assert_eq!(old.header("Sec-WebSocket-Version"), "13");
    for key in ["", "c2hvcnQ=", "not base64 at all", "dGhlIHNhbXBsZSBub25jZQ"] {
        handshake("13", key).assert_problem(400);
    }
    assert_eq!(
        open(&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]).unwrap_err().status,
        400,
        "two keys"
    );
    assert_eq!(WebSocketClient::try_open(fleet.listen, "/ws?topic=a%20b", &[]).unwrap_err().status, 400);
}

#[test]
fn whoever_says_too_much_is_told_and_then_sent_away() {
    let redis = TestRedis::shared();
    let fleet =
        stream::plan(&redis).workers(1).set("REGATTA_WEBSOCKET__MAX_MESSAGES_PER_SECOND", "5").start();
    let mut loud = WebSocketClient::open(fleet.listen, "/ws");
    let mut calm = WebSocketClient::open(fleet.listen, "/ws");
    let begin = Instant::now();
    let mut errors = 0;
    wait::until("it is sent away", wait::LONG, || {
        for _ in 0..20 {
            if loud.send(&Frame::ping("")).is_err() {
                return true;
            }
        }
        loop {
            loud.set_timeout(Duration::from_millis(5));
            match loud.frame() {
                Ok(frame) if frame.opcode == CLOSE => {
                    assert_eq!(frame.code(), Some(1008), "{frame:?}");
                    return true;
                }
                Ok(frame) => errors += usize::from(frame.payload.starts_with(b"{\"error\":")),
                Err(client::Failure::TimedOut) => return false,
                Err(_) => return true,
            }
        }
    });
    assert_eq!(errors, 1, "it was told once");
    assert!(begin.elapsed() > Duration::from_secs(1), "it had time to hear of it");
    calm.send(&said("I may")).unwrap();
    assert_eq!(calm.json()["message"], "I may");
}

#[test]
fn what_is_no_message_is_answered_and_nothing_else_happens() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(1).set("REGATTA_BROADCAST__MAX_MESSAGE_SIZE", "100");
    let fleet = plan.start();
    let mut socket = WebSocketClient::open(fleet.listen, "/ws");
    let large = said(&"x".repeat(101));
    let wrong =
        ["", "hello", "{}", "[]", "{\"message\": 7}", "{\"message\": null}", "{\"message\": \"a\"} x"];
    for frame in wrong.map(Frame::text).iter().chain([&large]) {
        socket.send(frame).unwrap();
        let answer = socket.json();
        assert!(answer["error"].is_string(), "{frame:?}: {answer}");
    }
    socket.send(&Frame::ping("are you there?")).unwrap();
    let pong = socket.frame().unwrap();
    assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, &b"are you there?"[..]));
    socket.send(&said("a word")).unwrap();
    assert_eq!(socket.json()["message"], "a word");
}

#[test]
fn a_client_that_answers_no_ping_is_closed_and_one_that_does_is_not() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(1).set("REGATTA_BROADCAST__KEEP_ALIVE_INTERVAL", "300ms");
    let fleet = plan.set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "500ms").start();
    let mut dead = WebSocketClient::open(fleet.listen, "/ws");
    let mut alive = WebSocketClient::open(fleet.listen, "/ws");
    let begin = Instant::now();
    // It answers, so it stays for longer than an idle connection may.
    for _ in 0..5 {
        let ping = alive.frame().unwrap();
        assert_eq!(ping.opcode, PING);
        alive.send(&Frame::new(PONG, ping.payload)).unwrap();
    }
    assert!(begin.elapsed() > Duration::from_millis(1200), "{:?}", begin.elapsed());
    let mut pings = 0;
    let end = loop {
        match dead.frame().unwrap() {
            frame if frame.opcode == PING => pings += 1,
            frame => break frame,
        }
    };
    assert_eq!((end.opcode, end.code(), pings), (CLOSE, Some(1008), 1));
    publish(fleet.listen, "news", "you are still here");
    assert_eq!(alive.json()["message"], "you are still here");
}

#[test]
fn a_client_that_vanishes_is_forgotten() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(1).start();
    for n in 0..3 {
        let mut socket = WebSocketClient::open(fleet.listen, "/ws");
        wait::until("it is counted", wait::LONG, || connections(&fleet) == 1);
        match n {
            0 => drop(socket),
            1 => {
                socket.send(&Frame::close(1001, "leaving")).unwrap();
                assert_eq!(socket.close_code(), Some(1001));
            }
            _ => {
                // In the midst of a frame.
                socket.send_raw(&Frame::text("half").head(1000, Some([1, 2, 3, 4]))).unwrap();
                drop(socket);
            }
        }
        wait::until("nobody is left", wait::LONG, || connections(&fleet) == 0);
    }
}

#[test]
fn a_reload_closes_sockets_and_loses_nothing() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(2).set("REGATTA_WORKERS__CANARY_PERIOD", "300ms");
    let fleet = plan.set("REGATTA_DRAIN__TIMEOUT", "30s").start();
    let mut sockets = everywhere(&fleet, "/ws", 2);
    let before: Vec<_> = sockets.iter().map(|socket| socket.response.worker()).collect();
    let first = publish(fleet.listen, "news", "before");
    for socket in &mut sockets {
        assert_eq!(socket.json()["id"], first);
    }
    let begin = Instant::now();
    fleet.signal(Signal::SIGHUP);
    for socket in &mut sockets {
        assert_eq!(socket.close_code(), Some(1012));
    }
    publish(fleet.listen, "news", "meanwhile");
    for _ in sockets {
        let mut again = WebSocketClient::open(fleet.listen, &format!("/ws?after={first}"));
        assert_eq!(again.json()["message"], "meanwhile");
        assert!(!before.contains(&again.response.worker()), "{before:?}");
    }
    wait::until("the old workers are gone", wait::LONG, || {
        fleet.workers().iter().all(|pid| !before.contains(pid))
    });
    assert!(begin.elapsed() < Duration::from_secs(15), "sockets hold no drain up: {:?}", begin.elapsed());
}

#[test]
fn a_client_that_answers_nothing_does_not_hold_its_worker() {
    let redis = TestRedis::shared();
    let mut fleet = stream::plan(&redis).workers(1).set("REGATTA_DRAIN__TIMEOUT", "60s").start();
    let mut deaf = WebSocketClient::open(fleet.listen, "/ws");
    // Its stop waits 15 s only; the close frame is not answered.
    assert_eq!(fleet.stop(), 0);
    let last = deaf.frame().unwrap();
    assert_eq!((last.opcode, last.code()), (CLOSE, Some(1012)));
    assert_eq!(fleet.log_lines("connections aborted").len(), 0);
}

#[test]
fn whoever_falls_behind_is_told_and_finds_what_it_missed() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(1).set("REGATTA_BROADCAST__MAX_LAG", "8");
    let fleet = plan.set("REGATTA_BROADCAST__RETENTION_MESSAGES", "10000").start();
    let mut slow = WebSocketClient::open(fleet.listen, "/ws");
    let mut quick = WebSocketClient::open(fleet.listen, "/ws");
    // Published well within the ten seconds after which a client that takes nothing is cut off.
    let (large, count) = ("x".repeat(15_000), 300);
    for n in 0..count {
        publish(fleet.listen, "news", &format!("{n} {large}"));
        assert!(quick.json()["message"].as_str().unwrap().starts_with(&format!("{n} ")));
    }
    let number = |frame: &Frame| -> (String, usize) {
        let told: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
        let text = told["message"].as_str().unwrap();
        (told["id"].as_str().unwrap().to_owned(), text.split(' ').next().unwrap().parse().unwrap())
    };
    let (mut last, mut next) = (String::new(), 0);
    let end = loop {
        let frame = slow.next().unwrap();
        if frame.opcode == CLOSE {
            break frame;
        }
        let (id, at) = number(&frame);
        assert_eq!(at, next);
        (last, next) = (id, next + 1);
    };
    assert_eq!(end.code(), Some(1013), "{end:?}");
    assert!(next < count, "it took everything: make the test's messages larger");
    let mut again = WebSocketClient::open(fleet.listen, &format!("/ws?after={last}"));
    for at in next..count {
        assert_eq!(number(&again.next().unwrap()).1, at);
    }
}

#[test]
fn a_socket_keeps_its_place_in_a_concurrency_limit_until_it_ends() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(2).set("REGATTA_LIMITS__SOCKETS__CONCURRENCY", "2");
    let fleet = plan.set("REGATTA_LIMITS__SOCKETS__ROUTES", "/ws").start();
    let first = WebSocketClient::open(fleet.listen, "/ws");
    let _second = WebSocketClient::open(fleet.listen, "/ws");
    WebSocketClient::try_open(fleet.listen, "/ws", &[]).unwrap_err().assert_problem(429);
    drop(first);
    wait::until("its place is free", wait::LONG, || {
        WebSocketClient::try_open(fleet.listen, "/ws", &[]).is_ok()
    });
}

#[test]
fn http2_opens_none_and_says_so() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(1).start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = Http::get(format!("http://{}/ws", fleet.listen)).body(Body::empty()).unwrap();
    let response = runtime.block_on(client.request(request)).unwrap();
    assert_eq!(response.status().as_u16(), 505);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
}
