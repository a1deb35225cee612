//! WebSockets of an application's own handlers in a fleet: bounded, counted, and closed so that their clients come back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::exposition::sum;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::sockets::{BINARY, CLOSE, Frame, TEXT, WebSocketClient};
use crate::support::{client, wait};

const TALK: &str = "/talk/close";

fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).example("faulty").set("REGATTA_WORKERS__CANARY_PERIOD", "300ms")
}

/// A socket at every worker of the fleet.
#[track_caller]
fn everywhere(fleet: &TestFleet, workers: usize) -> Vec<WebSocketClient> {
    let mut met = BTreeMap::new();
    wait::until("a socket at every worker", wait::LONG, || {
        let socket = WebSocketClient::handshake(fleet.listen, TALK);
        met.entry(socket.response.worker()).or_insert(socket);
        met.len() == workers
    });
    met.into_values().collect()
}

#[track_caller]
fn echoes(socket: &mut WebSocketClient, text: &str) {
    socket.send(&Frame::text(text)).unwrap();
    assert_eq!(socket.text(), text);
}

fn open_streams(fleet: &TestFleet) -> f64 {
    sum(&fleet.operator("/metrics").text(), "regatta_streams_open", &[])
}

#[test]
fn beyond_the_bound_sockets_are_refused_and_the_others_unharmed() {
    const BOUND: usize = 8;
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).set("REGATTA_BROADCAST__MAX_SUBSCRIBERS", &BOUND.to_string()).start();
    let mut open = Vec::new();
    for n in 0..BOUND * 16 {
        match WebSocketClient::try_handshake(fleet.listen, TALK, &[]) {
            Ok(socket) => open.push(socket),
            Err(answer) => {
                assert!(n >= BOUND, "only {n} have a place");
                answer.assert_problem(503);
                assert_eq!(answer.header("Retry-After"), "1");
            }
        }
    }
    assert_eq!(open.len(), BOUND);
    assert_eq!(open_streams(&fleet), BOUND as f64);
    for (n, socket) in open.iter_mut().enumerate() {
        echoes(socket, &format!("still here {n}"));
    }
    // Streams of events have places of the same number.
    client::get(fleet.listen, "/ticks/close/1000").assert_problem(503);
    drop(open);
    wait::until("the places are free", wait::LONG, || open_streams(&fleet) == 0.0);
    echoes(&mut WebSocketClient::handshake(fleet.listen, TALK), "again");
}

#[test]
fn a_reload_closes_every_socket_with_1012_and_holds_no_worker() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(2).set("REGATTA_DRAIN__TIMEOUT", "60s").start();
    let mut sockets = everywhere(&fleet, 2);
    sockets.extend((0..30).map(|_| WebSocketClient::handshake(fleet.listen, TALK)));
    for socket in &mut sockets {
        echoes(socket, "before");
    }
    let before = fleet.workers();
    let begin = Instant::now();
    fleet.signal(Signal::SIGHUP);
    for socket in &mut sockets {
        assert_eq!(socket.close_code(), Some(1012));
    }
    let mut again = WebSocketClient::handshake(fleet.listen, TALK);
    assert!(!before.contains(&again.response.worker()));
    echoes(&mut again, "after");
    wait::until("the old workers are gone", wait::LONG, || {
        fleet.workers().iter().all(|pid| !before.contains(pid))
    });
    assert!(begin.elapsed() < Duration::from_secs(30), "sockets hold no drain up: {:?}", begin.elapsed());
    assert!(fleet.log_lines("connections aborted").is_empty(), "{}", fleet.log());
}

#[test]
fn a_stop_does_not_wait_for_clients_that_answer_nothing_or_read_nothing() {
    let redis = TestRedis::shared();
    let mut fleet = plan(&redis).workers(1).set("REGATTA_DRAIN__TIMEOUT", "60s").start();
    let mut deaf = WebSocketClient::handshake(fleet.listen, TALK);
    let mut full = WebSocketClient::handshake(fleet.listen, TALK);
    // It asks for more than the kernel's buffers hold, and reads nothing of it.
    let large = Frame::new(BINARY, vec![7; 16_000]).bytes(Some([0; 4]));
    full.set_timeout(Duration::from_millis(500));
    while full.send_raw(&large).is_ok() {}
    assert_eq!(fleet.stop(), 0);
    let last = deaf.frame().unwrap();
    assert_eq!((last.opcode, last.code()), (CLOSE, Some(1012)));
    assert!(fleet.log_lines("connections aborted").is_empty(), "{}", fleet.log());
}

#[test]
fn a_socket_that_is_to_finish_goes_on_until_shortly_before_the_drain_ends() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).set("REGATTA_DRAIN__TIMEOUT", "4s").start();
    let mut socket = WebSocketClient::handshake(fleet.listen, "/talk/finish");
    let mut ready = WebSocketClient::handshake(fleet.listen, TALK);
    fleet.signal(Signal::SIGHUP);
    assert_eq!(ready.close_code(), Some(1012));
    let begin = Instant::now();
    let mut echoed = 0;
    let end = loop {
        if socket.send(&Frame::text("go on")).is_err() {
            break None;
        }
        match socket.next().unwrap() {
            frame if frame.opcode == TEXT => echoed += 1,
            frame => break frame.code(),
        }
        wait::pace(Duration::from_millis(50));
    };
    assert_eq!(end, Some(1012));
    assert!(echoed > 10 && begin.elapsed() > Duration::from_secs(2), "{echoed}, {:?}", begin.elapsed());
    drop(socket);
    assert!(fleet.log_lines("connections aborted").is_empty(), "{}", fleet.log());
}

#[test]
fn pages_of_other_origins_open_none() {
    let redis = TestRedis::shared();
    let plan = plan(&redis).workers(1).set("REGATTA_WEBSOCKET__ALLOWED_ORIGINS", "https://friend.test");
    let fleet = plan.start();
    let open = |origin: &str| WebSocketClient::try_handshake(fleet.listen, TALK, &[("Origin", origin)]);
    for origin in ["http://localhost", "https://friend.test"] {
        echoes(&mut open(origin).unwrap(), origin);
    }
    for origin in ["https://evil.test", "null", "https://friend.test.evil.test", "http://friend.test"] {
        open(origin).unwrap_err().assert_problem(403);
    }
    fleet.get(TALK).assert_problem(426);
}

#[test]
fn a_client_that_closes_is_answered_by_a_handler_that_takes_no_message() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).start();
    let mut socket = WebSocketClient::handshake(fleet.listen, "/talk/busy");
    socket.send(&Frame::new(CLOSE, 1000_u16.to_be_bytes().to_vec())).unwrap();
    assert_eq!(socket.close_code(), Some(1000));
}

#[test]
fn what_breaks_the_protocol_closes_its_own_socket_alone() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).start();
    let mut other = WebSocketClient::handshake(fleet.listen, TALK);
    let masked = |frame: Frame| frame.bytes(Some([1, 2, 3, 4]));
    let cases = [
        (Frame::text("not masked").bytes(None), 1002),
        (masked(Frame::text("x").reserved(4)), 1002),
        (masked(Frame::new(0x3, "x")), 1002),
        (masked(Frame::ping("").unfinished()), 1002),
        (masked(Frame::new(TEXT, [0xff])), 1007),
        (masked(Frame::new(TEXT, vec![b'x'; 17 << 10])), 1009),
        (Frame::text("").head(u64::MAX >> 1, Some([0; 4])), 1009),
    ];
    for (bytes, code) in cases {
        let mut socket = WebSocketClient::handshake(fleet.listen, TALK);
        socket.send_raw(&bytes).unwrap();
        assert_eq!(socket.close_code(), Some(code), "{:x?}", &bytes[..bytes.len().min(16)]);
    }
    echoes(&mut other, "unharmed");
    echoes(&mut other, &"x".repeat(16 << 10));
}
