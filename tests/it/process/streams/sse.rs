//! Streams of events as their clients meet them: whole, in order, from any worker, until the worker leaves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request as Http, Version};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::Signal;

use crate::support::client::{Connection, CookieClient, Failure, Request};
use crate::support::fleet::TestFleet;
use crate::support::redis::TestRedis;
use crate::support::stream::{Stream, connections, publish, try_publish};
use crate::support::{client, stream, wait};

/// A stream at every worker of the fleet.
#[track_caller]
fn everywhere(fleet: &TestFleet, target: &str, workers: usize) -> Vec<Stream> {
    let mut met = BTreeMap::new();
    wait::until("a stream at every worker", wait::LONG, || {
        let stream = Stream::open(fleet.listen, target);
        met.entry(stream.response.worker()).or_insert(stream);
        met.len() == workers
    });
    met.into_values().collect()
}

#[test]
fn a_message_reaches_every_worker_once_and_in_order() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(2).start();
    let mut streams = everywhere(&fleet, "/events?topic=boats", 2);
    let mut other = Stream::open(fleet.listen, "/events");
    let ids: Vec<_> = (0..50).map(|n| publish(fleet.listen, "boats", &format!("boat {n}"))).collect();
    for stream in &mut streams {
        assert_eq!(stream.response.header("Cache-Control"), "no-store");
        assert_eq!(stream.response.header("X-Accel-Buffering"), "no");
        assert_eq!(stream.response.header("Content-Length"), "");
        let hint = stream.block().unwrap().unwrap();
        let milliseconds: u64 = hint.strip_prefix("retry: ").unwrap().parse().unwrap();
        assert!((500..=1500).contains(&milliseconds), "{hint}");
        for (n, id) in ids.iter().enumerate() {
            let event = stream.event();
            assert_eq!((event.name.as_str(), &event.id, event.data), ("message", id, format!("boat {n}")));
        }
    }
    publish(fleet.listen, "news", "of another topic");
    assert_eq!(other.messages(1), ["of another topic"]);
}

#[test]
fn whoever_comes_again_goes_on_where_it_was() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(2).start();
    let ids: Vec<_> = (0..10).map(|n| publish(fleet.listen, "t", &n.to_string())).collect();
    let after = |n: usize| (n + 1..10).map(|n| n.to_string()).collect::<Vec<_>>();
    for (n, id) in ids.iter().enumerate() {
        let mut stream = Stream::resume(fleet.listen, "/events?topic=t", id);
        assert_eq!(stream.messages(9 - n), after(n));
    }
    let mut polyfill = Stream::open(fleet.listen, &format!("/events?topic=t&last_event_id={}", ids[6]));
    assert_eq!(polyfill.messages(3), after(6));
    // A browser sends its first query again, so its header counts.
    let mut both =
        Stream::resume(fleet.listen, &format!("/events?topic=t&last_event_id={}", ids[0]), &ids[7]);
    assert_eq!(both.messages(2), after(7));
    let mut stranger = Stream::resume(fleet.listen, "/events?topic=t", "from somewhere else");
    assert_eq!(stranger.event().name, "gap");
    publish(fleet.listen, "t", "10");
    for stream in [&mut polyfill, &mut both, &mut stranger] {
        assert_eq!(stream.messages(1), ["10"]);
    }
}

#[test]
fn nothing_breaks_out_of_a_message() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(1).start();
    let mut stream = Stream::open(fleet.listen, "/events");
    let nasty = [
        "a\n\nevent: gap\ndata: x\n\n",
        "b\r\rid: 9-9\rretry: 1\r\r",
        "c\r\n\r\ndata: y",
        ": d",
        "\0ü\u{2028}",
    ];
    for text in nasty {
        let id = publish(fleet.listen, "news", text);
        let event = stream.event();
        let lines = text.replace("\r\n", "\n").replace('\r', "\n");
        assert_eq!((event.name.as_str(), event.id, event.data), ("message", id, lines));
    }
    for topic in ["a\nb", "a b", "{b}", "ä", &"x".repeat(65)] {
        try_publish(fleet.listen, topic, "x").assert_problem(400);
    }
    for target in ["/events?topic=a%0Ab", "/events?topic=a%0D%0AX-Y:%20z", "/events?topic=%7Bb%7D"] {
        fleet.get(target).assert_problem(400);
    }
}

#[test]
fn what_cannot_be_sent_is_refused_with_a_reason() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(1).set("REGATTA_BROADCAST__MAX_MESSAGE_SIZE", "1KiB").start();
    let post = |kind: &str, body: &str| {
        client::once(fleet.listen, Request::post("/broadcast").body(kind, body.as_bytes())).unwrap()
    };
    let form = "application/x-www-form-urlencoded";
    assert_eq!(post(form, "topic=a&message=b").status, 202);
    assert_eq!(post(form, "topic=&message=b").json()["topic"], "news");
    assert_eq!(post("application/json", "{\"message\": \"b\"}").json()["topic"], "news");
    post(form, "topic=a").assert_problem(400);
    post("application/json", "{\"message\": \"\"}").assert_problem(400);
    post("application/json", "{\"message\"").assert_problem(400);
    post("application/json", "{\"message\": 7}").assert_problem(422);
    post("text/plain", "hello").assert_problem(415);
    client::once(fleet.listen, Request::post("/broadcast")).unwrap().assert_problem(400);
    assert_eq!(try_publish(fleet.listen, "a", &"x".repeat(1024)).status, 202);
    try_publish(fleet.listen, "a", &"x".repeat(1025)).assert_problem(413);
    fleet.get("/broadcast").assert_problem(405);
}

#[test]
fn other_sites_broadcast_nothing() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(1).start();
    let body = b"message=evil";
    let form = || Request::post("/broadcast").body("application/x-www-form-urlencoded", body);
    let from = |name: &str, value: &str| client::once(fleet.listen, form().header(name, value)).unwrap();
    from("Sec-Fetch-Site", "cross-site").assert_problem(403);
    from("Sec-Fetch-Site", "same-site").assert_problem(403);
    from("Origin", "https://evil.test").assert_problem(403);
    from("Origin", "null").assert_problem(403);
    assert_eq!(from("Origin", "http://localhost").status, 202);
    // A form is accepted only from the visitor it was made for.
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    visitor.request(fleet.listen, form()).assert_problem(403);
}

#[test]
fn a_quiet_stream_shows_that_it_lives_and_is_never_cut_for_being_quiet() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(1).set("REGATTA_BROADCAST__KEEP_ALIVE_INTERVAL", "300ms");
    let fleet = plan.set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "600ms").start();
    let mut stream = Stream::open(fleet.listen, "/events");
    let begin = Instant::now();
    assert!(stream.block().unwrap().unwrap().starts_with("retry: "));
    assert_eq!(stream.block().unwrap().unwrap(), "event: start\nid: 0-0\ndata: 0-0");
    for _ in 0..6 {
        assert_eq!(stream.block().unwrap().unwrap(), ":");
    }
    assert!(begin.elapsed() > Duration::from_millis(1500), "{:?}", begin.elapsed());
    publish(fleet.listen, "news", "still there");
    assert_eq!(stream.messages(1), ["still there"]);
}

#[test]
fn a_client_that_reads_nothing_holds_up_nobody_and_is_cut() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(1).set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "1s");
    let fleet = plan.set("REGATTA_BROADCAST__KEEP_ALIVE_INTERVAL", "200ms").start();
    let mut deaf = Connection::open(fleet.listen).unwrap();
    deaf.send(&Request::get("/events").bytes()).unwrap();
    let mut stream = Stream::open(fleet.listen, "/events");
    let large = "x".repeat(15_000);
    wait::until("both are there", wait::LONG, || connections(&fleet) == 2);
    // More than both ends' kernels take for a client.
    let mut sent = 0;
    wait::until("it is cut", wait::LONG, || {
        publish(fleet.listen, "news", &large);
        sent += 1;
        assert_eq!(stream.messages(1), [large.as_str()]);
        connections(&fleet) == 1
    });
    publish(fleet.listen, "news", "the end");
    assert_eq!(stream.messages(1), ["the end"], "after {sent}");
    drop(deaf);
}

#[test]
fn whoever_falls_behind_is_told_and_finds_what_it_missed() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(1).set("REGATTA_BROADCAST__MAX_LAG", "8");
    let fleet = plan.set("REGATTA_BROADCAST__RETENTION_MESSAGES", "10000").start();
    let mut slow = Stream::open(fleet.listen, "/events");
    let mut quick = Stream::open(fleet.listen, "/events");
    let (large, count) = ("x".repeat(15_000), 1000);
    for n in 0..count {
        publish(fleet.listen, "news", &format!("{n} {large}"));
        assert!(quick.messages(1)[0].starts_with(&format!("{n} ")));
    }
    let number = |data: &str| data.split(' ').next().unwrap().parse::<usize>().unwrap();
    let (mut last, mut next) = (String::new(), 0);
    loop {
        let event = slow.event();
        if event.name == "lagged" {
            break;
        }
        assert_eq!(number(&event.data), next);
        (last, next) = (event.id, next + 1);
    }
    assert_eq!(slow.next(), None, "told last of all");
    assert!(next < count, "it took everything: make the test's messages larger");
    let mut again = Stream::resume(fleet.listen, "/events", &last);
    let rest: Vec<_> = again.messages(count - next).iter().map(|data| number(data)).collect();
    assert_eq!(rest, (next..count).collect::<Vec<_>>());
}

#[test]
fn a_reload_ends_streams_and_loses_nothing() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(2).set("REGATTA_WORKERS__CANARY_PERIOD", "300ms");
    let fleet = plan.set("REGATTA_DRAIN__TIMEOUT", "30s").start();
    let mut streams = everywhere(&fleet, "/events", 2);
    let before: Vec<_> = streams.iter().map(|stream| stream.response.worker()).collect();
    let first = publish(fleet.listen, "news", "before");
    for stream in &mut streams {
        assert_eq!(stream.event().id, first);
    }
    let begin = Instant::now();
    fleet.signal(Signal::SIGHUP);
    let mut hints = Vec::new();
    for stream in &mut streams {
        let mut last = String::new();
        while let Some(block) = stream.block().unwrap() {
            last = block;
        }
        let milliseconds: u64 = last.strip_prefix("retry: ").unwrap().parse().unwrap();
        assert!((50..=1000).contains(&milliseconds), "{last}");
        hints.push(milliseconds);
    }
    publish(fleet.listen, "news", "meanwhile");
    for stream in streams {
        let mut again = Stream::resume(fleet.listen, "/events", &first);
        assert_eq!(again.messages(1), ["meanwhile"]);
        // The connection that the old worker ended can be used up to its end, which the old worker asks for.
        drop(stream);
        assert!(!before.contains(&again.response.worker()), "{before:?}");
    }
    wait::until("the old workers are gone", wait::LONG, || {
        fleet.workers().iter().all(|pid| !before.contains(pid))
    });
    assert!(begin.elapsed() < Duration::from_secs(15), "streams hold no drain up: {:?}", begin.elapsed());
}

#[test]
fn streams_end_with_the_fleet_at_once() {
    let redis = TestRedis::shared();
    let mut fleet = stream::plan(&redis).workers(2).set("REGATTA_DRAIN__TIMEOUT", "60s").start();
    let mut streams = everywhere(&fleet, "/events", 2);
    // Its stop waits 15 s only.
    assert_eq!(fleet.stop(), 0);
    for stream in &mut streams {
        assert_eq!(stream.next(), None);
    }
    assert_eq!(fleet.log_lines("connections aborted").len(), 0);
}

#[test]
fn many_streams_share_a_connection_of_http2() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(1).start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let address: SocketAddr = fleet.listen;
    let open = async |n: usize| {
        let target = format!("http://{address}/events?topic=t{}", n % 2);
        let response = client.request(Http::get(target).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!((response.version(), response.status().as_u16()), (Version::HTTP_2, 200));
        assert!(!response.headers().contains_key("connection"));
        response.into_body()
    };
    runtime.block_on(async {
        let mut bodies = Vec::new();
        for n in 0..40 {
            bodies.push(open(n).await);
        }
        for topic in ["t0", "t1"] {
            tokio::task::spawn_blocking(move || publish(address, topic, topic)).await.unwrap();
        }
        for (n, body) in bodies.iter_mut().enumerate() {
            let mut text = String::new();
            while !text.contains("data: t") {
                let frame = body.frame().await.unwrap().unwrap();
                text += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
            }
            assert!(text.ends_with(&format!("data: t{}\n\n", n % 2)), "{text:?}");
        }
    });
}

#[test]
fn old_clients_and_those_who_only_look_are_served() {
    let redis = TestRedis::shared();
    let fleet =
        stream::plan(&redis).workers(1).set("REGATTA_BROADCAST__KEEP_ALIVE_INTERVAL", "100ms").start();
    let head = client::once(fleet.listen, Request::new("HEAD", "/events")).unwrap();
    assert_eq!((head.status, head.header("Content-Type")), (200, "text/event-stream"));
    let mut old = Connection::open(fleet.listen).unwrap();
    old.send(b"GET /events HTTP/1.0\r\n\r\n").unwrap();
    let response = old.receive(true).unwrap();
    assert_eq!((response.status, response.header("Transfer-Encoding")), (200, ""));
    assert!(String::from_utf8(old.read(9).unwrap()).unwrap().starts_with("retry: "));
    drop(old);
    wait::until("nobody is left", wait::LONG, || connections(&fleet) == 0);
}

#[test]
fn a_stream_keeps_its_place_in_a_concurrency_limit_until_it_ends() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(2).set("REGATTA_LIMITS__STREAMS__CONCURRENCY", "2");
    let fleet = plan.set("REGATTA_LIMITS__STREAMS__ROUTES", "/events").start();
    let first = Stream::open(fleet.listen, "/events");
    let _second = Stream::open(fleet.listen, "/events");
    fleet.get("/events").assert_problem(429);
    drop(first);
    wait::until("its place is free", wait::LONG, || {
        let mut connection = Connection::open(fleet.listen).unwrap();
        connection.send(&Request::get("/events").bytes()).unwrap();
        connection.receive(true).unwrap().status == 200
    });
}

#[test]
fn as_many_subscribe_as_a_worker_takes() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(1).set("REGATTA_BROADCAST__MAX_SUBSCRIBERS", "3");
    let fleet = plan.set("REGATTA_BROADCAST__MAX_TOPICS", "2").start();
    let a = Stream::open(fleet.listen, "/events?topic=a");
    let _b = Stream::open(fleet.listen, "/events?topic=b");
    let refused = fleet.get("/events?topic=c");
    refused.assert_problem(503);
    assert!(refused.header("Retry-After").parse::<u64>().is_ok(), "{refused:?}");
    let _c = Stream::open(fleet.listen, "/events?topic=b");
    fleet.get("/events?topic=b").assert_problem(503);
    drop(a);
    wait::until("there is a place again", wait::LONG, || {
        let mut connection = Connection::open(fleet.listen).unwrap();
        connection.send(&Request::get("/events?topic=c").bytes()).unwrap();
        connection.receive(true).unwrap().status == 200
    });
}

#[test]
fn without_server_side_code_there_are_no_broadcasts() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(1).set("REGATTA_REDIS__MODE", "plain").start();
    try_publish(fleet.listen, "news", "x").assert_problem(501);
    fleet.get("/events").assert_problem(501);
}

#[test]
fn redis_away_is_said_and_streams_stay() {
    let mut redis = TestRedis::start();
    let fleet = stream::plan(&redis).workers(1).start();
    let mut stream = Stream::open(fleet.listen, "/events");
    publish(fleet.listen, "news", "before");
    assert_eq!(stream.messages(1), ["before"]);
    redis.kill();
    wait::until("a publisher is told", wait::LONG, || {
        let response = try_publish(fleet.listen, "news", "lost");
        if response.status == 202 {
            return false;
        }
        response.assert_problem(503);
        true
    });
    redis.restart();
    wait::until("it is published again", wait::LONG, || {
        try_publish(fleet.listen, "news", "after").status == 202
    });
    loop {
        let event = stream.event();
        assert!(["gap", "message"].contains(&event.name.as_str()), "{event:?}");
        if event.data == "after" {
            break;
        }
    }
    stream.connection.set_timeout(Duration::from_millis(1));
    assert_eq!(stream.block(), Err(Failure::TimedOut), "nothing else");
}
