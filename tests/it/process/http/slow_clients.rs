//! Clients that take their time, and clients that take too many places: cut by clocks that our own answers do not set
//! back, and never at the cost of others.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::client::{Connection, Failure, Request};
use crate::support::exposition::sum;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::process::private_memory;
use crate::support::redis::TestRedis;
use crate::support::wait;

/// A fleet of one worker that is soon tired of waiting, and trusts no proxy here: it counts clients by address.
fn strict(redis: &TestRedis) -> TestFleetBuilder {
    let plan =
        TestFleetBuilder::on(redis).example("faulty").workers(1).set("REGATTA_PROXY__TRUSTED", "192.0.2.1");
    plan.set("REGATTA_HTTP__HEADER_TIMEOUT", "30s").set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "1s")
}

fn count(fleet: &TestFleet, name: &str, reason: &str) -> f64 {
    sum(&fleet.operator("/metrics").text(), name, &[&format!("reason=\"{reason}\"")])
}

fn closed(fleet: &TestFleet, reason: &str) -> f64 {
    count(fleet, "regatta_connections_closed_total", reason)
}

fn refused(fleet: &TestFleet, reason: &str) -> f64 {
    count(fleet, "regatta_requests_refused_total", reason)
}

/// A connection from one of this machine's many addresses.
fn from(fleet: &TestFleet, last: u8) -> Connection {
    Connection::open_from(IpAddr::from([127, 0, 0, last]), fleet.listen).unwrap()
}

fn hello(connection: &mut Connection) -> u16 {
    connection.request(&Request::get("/hello")).unwrap().status
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// `GET path` on a stream, without Huffman's code: method, scheme and path by their names in the static table.
fn get(stream: u8, path: &str, end: bool) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(&[0x41, 4]);
    block.extend_from_slice(b"test");
    let flags = if end { 5 } else { 4 };
    let mut bytes = vec![0, 0, u8::try_from(block.len()).unwrap(), 1, flags, 0, 0, 0, stream];
    bytes.extend_from_slice(&block);
    bytes
}

/// A connection that speaks HTTP/2 and has sent this.
fn http2(fleet: &TestFleet, more: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(fleet.listen).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    stream.write_all(&[PREFACE, SETTINGS, more].concat()).unwrap();
    stream
}

/// Whether the other side has closed, having read what there is.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 65536];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                let waits =
                    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                return !waits;
            }
        }
    }
}

#[test]
fn an_http2_client_that_only_pings_is_idle() {
    let redis = TestRedis::start();
    let fleet = strict(&redis).start();
    let begun = Instant::now();
    for first in [get(1, "/hello", true), Vec::new()] {
        // One has asked before, the other never does.
        let plan = if first.is_empty() {
            strict(&redis).set("REGATTA_HTTP__HEADER_TIMEOUT", "1s")
        } else {
            strict(&redis)
        };
        let fleet = plan.start();
        let mut stream = http2(&fleet, &first);
        wait::until("it is closed", wait::LONG, || stream.write_all(PING).is_err() || is_closed(&mut stream));
        let reason = if first.is_empty() { "slow_header" } else { "idle" };
        assert_eq!(closed(&fleet, reason), 1.0);
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // A stream that is open is not idle, however long it says nothing.
    let mut busy = http2(&fleet, &get(1, "/slow/3000", true));
    wait::let_pass(Duration::from_secs(2));
    assert!(!is_closed(&mut busy));
}

#[test]
fn floods_of_control_frames_end_their_connection() {
    let redis = TestRedis::start();
    let fleet = strict(&redis).set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "60s").start();
    let priority: &[u8] = &[0, 0, 5, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 10];
    let unknown: &[u8] = &[0, 0, 1, 0xfa, 0, 0, 0, 0, 0, 7];
    for (index, frame) in [SETTINGS, PING, priority, unknown].into_iter().enumerate() {
        let flood = frame.repeat(200);
        let mut stream = http2(&fleet, &get(1, "/hello", true));
        let mut sent = 0;
        wait::until("a flood is cut off", wait::LONG, || {
            sent += 200;
            stream.write_all(&flood).is_err() || (sent > 2000 && is_closed(&mut stream))
        });
        assert!(sent < 200_000, "{sent}");
        wait::until("it is counted", wait::LONG, || closed(&fleet, "control_frames") > index as f64);
    }
    // Many requests, each cancelled at once.
    let mut stream = http2(&fleet, &[]);
    let mut number = 1_u32;
    wait::until("requests that are cancelled at once are a flood too", wait::LONG, || {
        let mut burst = Vec::new();
        for _ in 0..100 {
            let mut one = get(1, "/slow/9000", true);
            one[5..9].copy_from_slice(&number.to_be_bytes());
            burst.extend(one);
            burst.extend([0, 0, 4, 3, 0]);
            burst.extend(number.to_be_bytes());
            burst.extend([0, 0, 0, 8]);
            number += 2;
        }
        stream.write_all(&burst).is_err() || is_closed(&mut stream)
    });
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn a_body_of_a_byte_now_and_then_is_cut_off() {
    let redis = TestRedis::start();
    let fleet = strict(&redis).set("REGATTA_HTTP__MIN_BODY_RATE", "100000").start();
    let mut slow = Connection::open(fleet.listen).unwrap();
    slow.send(b"POST /counters/x HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n").unwrap();
    let begun = Instant::now();
    // Far less than a pause lies between two bytes.
    wait::until("it is given up", wait::LONG, || {
        slow.send(b"x").is_err() || begun.elapsed() > Duration::from_secs(8)
    });
    match slow.receive(false) {
        Ok(response) => assert_eq!(response.status, 408),
        Err(failure) => assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure:?}"),
    }
    assert!(begun.elapsed() >= Duration::from_secs(4), "there is some grace: {:?}", begun.elapsed());
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn a_reader_of_a_byte_now_and_then_is_cut_off() {
    let redis = TestRedis::start();
    let fleet = strict(&redis).start();
    let mut slow = TcpStream::connect(fleet.listen).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    slow.write_all(b"GET /bytes/30000000 HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let mut byte = [0; 1];
    wait::until("it is cut off", wait::LONG, || {
        let _ = slow.read(&mut byte);
        closed(&fleet, "slow_reader") > 0.0
    });
    // In HTTP/2 the connection is free and its one stream is not: the client gives it a byte at a time.
    let mut slow = http2(&fleet, &get(1, "/bytes/30000000", true));
    let update: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    wait::until("it is cut off in HTTP/2 too", wait::LONG, || {
        slow.write_all(update).is_err() || is_closed(&mut slow)
    });
    // hyper had taken all of the body, so that nothing was under way any more.
    assert_eq!((closed(&fleet, "slow_reader"), closed(&fleet, "idle")), (1.0, 1.0));
    // Who takes it steadily gets all of it, though that takes longer than an idle connection may last.
    let mut steady = http2(&fleet, &get(1, "/bytes/300000", true));
    let (mut taken, mut bytes, begun) = (0, [0; 65536], Instant::now());
    while taken < 300_000 {
        if let Ok(count) = steady.read(&mut bytes) {
            assert!(count > 0, "closed after {taken} bytes and {:?}", begun.elapsed());
            taken += count;
        }
        let more = |stream: u8| [0, 0, 4, 8, 0, 0, 0, 0, stream, 0, 0, 0x40, 0];
        steady.write_all(&[more(0), more(1)].concat()).unwrap();
        wait::let_pass(Duration::from_millis(200));
    }
    assert!(begun.elapsed() > Duration::from_secs(2));
    let whole = fleet.get("/bytes/3000000");
    assert_eq!(whole.body.len(), 3_000_000);
}

#[test]
fn unfinished_headers_take_a_bounded_memory() {
    let redis = TestRedis::start();
    let fleet = strict(&redis).set("REGATTA_HTTP__MAX_HEADER_MEMORY", "2MiB").start();
    let before = private_memory(fleet.workers()[0]);
    let head = format!("GET /hello HTTP/1.1\r\nHost: t\r\nX-Large: {}", "x".repeat(31_000));
    let mut connections: Vec<_> = (0..600).map(|_| Connection::open(fleet.listen).unwrap()).collect();
    for connection in &mut connections {
        connection.send(head.as_bytes()).unwrap();
    }
    wait::until("some are refused", wait::LONG, || refused(&fleet, "header_memory") >= 500.0);
    let taken = private_memory(fleet.workers()[0]).saturating_sub(before);
    // 600 of them with their first 8 KiB, and twice what they may take besides.
    assert!(taken < 16 << 20, "{} KiB", taken >> 10);
    // The refusal arrives whole, and one that was spared is served when it ends.
    let statuses: Vec<_> = connections
        .iter_mut()
        .map(|connection| {
            let _ = connection.send(b"\r\n\r\n");
            connection.receive(false).map(|response| response.status)
        })
        .collect();
    let of = |status: u16| statuses.iter().filter(|found| matches!(found, Ok(one) if *one == status)).count();
    assert!(of(431) >= 500, "{statuses:?}");
    assert!(of(200) > 10, "{statuses:?}");
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn a_client_has_its_share_of_the_places() {
    let redis = TestRedis::start();
    let plan = strict(&redis).set("REGATTA_HTTP__MAX_CONNECTIONS_PER_CLIENT", "3");
    let fleet = plan.set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "60s").start();
    let mut own: Vec<_> = (0..3).map(|_| from(&fleet, 2)).collect();
    for connection in &mut own {
        assert_eq!(hello(connection), 200);
        wait::let_pass(Duration::from_millis(200));
    }
    // One more closes its own that has been idle for longest.
    wait::let_pass(Duration::from_millis(200));
    let mut more = from(&fleet, 2);
    assert_eq!(hello(&mut more), 200);
    wait::until("the oldest is closed", wait::LONG, || own[0].is_closed());
    assert!(!own[1].is_closed() && !own[2].is_closed());
    assert_eq!(closed(&fleet, "evicted"), 1.0);
    // Where none is idle it is refused, and others are not.
    for connection in own[1..].iter_mut().chain([&mut more]) {
        connection.send(&Request::get("/slow/3000").bytes()).unwrap();
    }
    wait::until("they are under way", wait::LONG, || {
        from(&fleet, 9).request(&Request::get("/held")).unwrap().text().trim() == "3"
    });
    let refusal = from(&fleet, 2).request(&Request::get("/hello")).unwrap();
    refusal.assert_problem(503);
    assert_eq!(refusal.header("Connection"), "close");
    assert_eq!(refused(&fleet, "client_connections"), 1.0);
    assert_eq!(hello(&mut from(&fleet, 3)), 200);
    for connection in own[1..].iter_mut().chain([&mut more]) {
        assert_eq!(connection.receive(false).unwrap().status, 200);
    }
    // A trusted proxy has any number.
    let fleet =
        TestFleetBuilder::on(&redis).workers(1).set("REGATTA_HTTP__MAX_CONNECTIONS_PER_CLIENT", "1").start();
    let mut proxy: Vec<_> = (0..10).map(|_| from(&fleet, 1)).collect();
    proxy.iter_mut().chain([&mut from(&fleet, 4)]).for_each(|connection| assert_eq!(hello(connection), 200));
}

#[test]
fn idle_connections_make_room_for_new_ones() {
    let redis = TestRedis::start();
    let plan = strict(&redis)
        .set("REGATTA_HTTP__MAX_CONNECTIONS", "8")
        .set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "60s");
    let fleet = plan.set("REGATTA_HTTP__MAX_CONNECTIONS_PER_CLIENT", "100%").start();
    let mut idle: Vec<_> = (0..8).map(|_| from(&fleet, 2)).collect();
    idle.iter_mut().for_each(|connection| assert_eq!(hello(connection), 200));
    wait::let_pass(Duration::from_millis(200));
    for place in 0..8 {
        let begun = Instant::now();
        let mut new = from(&fleet, 3);
        assert_eq!(hello(&mut new), 200, "connection {place}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    wait::until("places were made", wait::LONG, || closed(&fleet, "evicted") >= 1.0);
    // What is under way keeps its place; a new one waits for it.
    let mut busy: Vec<_> = (0..8).map(|_| from(&fleet, 2)).collect();
    for connection in &mut busy {
        connection.send(&Request::get("/slow/1500").bytes()).unwrap();
    }
    let mut new = from(&fleet, 3);
    assert_eq!(hello(&mut new), 200);
    for connection in &mut busy {
        assert_eq!(connection.receive(false).unwrap().status, 200);
    }
}

#[test]
fn a_response_has_to_begin_in_time() {
    let redis = TestRedis::start();
    let fleet = strict(&redis).set("REGATTA_HTTP__REQUEST_TIMEOUT", "500ms").start();
    assert_eq!(fleet.get("/slow/100").status, 200);
    fleet.get("/slow/5000").assert_problem(504);
    // A route says otherwise, either way.
    fleet.get("/hasty/450").assert_problem(504);
    assert_eq!(fleet.get("/hasty/50").status, 200);
    assert_eq!(fleet.get("/patient/900").status, 200);
    // What has begun may take its time.
    assert_eq!(fleet.get("/drip/40").status, 200);
    let mut slow = Connection::open(fleet.listen).unwrap();
    slow.send(b"POST /counters/x HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nx").unwrap();
    slow.receive(false).unwrap().assert_problem(408);
    let fleet = strict(&redis).start();
    assert_eq!(fleet.get("/slow/1500").status, 200, "by default it begins whenever it does");
}

#[test]
fn what_waits_for_the_shared_state_is_told_to_come_again() {
    let redis = TestRedis::start();
    let plan = strict(&redis).set("REGATTA_HTTP__REQUEST_TIMEOUT", "500ms");
    let fleet = plan.set("REGATTA_REDIS__SILENCE_TIMEOUT", "20s").start();
    let mut warm = Connection::open(fleet.listen).unwrap();
    assert_eq!(warm.request(&Request::post("/counters/x")).unwrap().status, 200);
    redis.stop();
    let answer = warm.request(&Request::post("/counters/x")).unwrap();
    redis.cont();
    answer.assert_problem(503);
    assert!(!answer.header("Retry-After").is_empty());
}
