//! A client that ends its side after its request gets its answer; one that is gone is noticed all the same.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use crate::support::client::{Connection, Request};
use crate::support::exposition::sum;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::stream::{connections, publish};
use crate::support::wait;

/// A connection that has sent this and ended its side.
fn half_closed(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(wait::LONG)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    stream
}

fn all(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: t\r\n\r\n").into_bytes()
}

/// `GET target` over HTTP/2: preface, settings, and the fields by their names in the static table.
fn get_2(target: &str) -> Vec<u8> {
    let length = u8::try_from(target.len()).unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend([0, 0, 4 + length + 3, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 4, length]);
    bytes.extend_from_slice(target.as_bytes());
    bytes.extend([1, 1, b't']);
    bytes
}

fn held(fleet: &TestFleet) -> String {
    fleet.get("/held").text().trim().to_owned()
}

fn in_flight(fleet: &TestFleet) -> f64 {
    sum(&fleet.operator("/metrics").text(), "regatta_requests_in_flight", &[])
}

/// Has the kernel reset the connection.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn what_takes_its_time_is_answered_however_late_the_client_ends_its_side() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).example("faulty").workers(1).start();
    let at_once = half_closed(fleet.listen, &get("/slow/1500"));
    let mut later = TcpStream::connect(fleet.listen).unwrap();
    later.set_read_timeout(Some(wait::LONG)).unwrap();
    later.write_all(&get("/slow/1500")).unwrap();
    let over_2 = half_closed(fleet.listen, &get_2("/slow/1500"));
    wait::until("they are under way", wait::LONG, || held(&fleet) == "3");
    later.shutdown(Shutdown::Write).unwrap();
    for stream in [at_once, later] {
        let text = all(stream);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    }
    // Its status by its place in the static table.
    assert!(all(over_2).contains('\u{fffd}'), "some frame with 0x88 in it");
    let large = all(half_closed(fleet.listen, &get("/bytes/3000000")));
    assert!(large.len() > 3_000_000, "{}", large.len());
    wait::until("their connections are closed", wait::LONG, || connections(&fleet) == 0);
    // A worker that leaves answers it, too.
    let last = half_closed(fleet.listen, &get("/slow/1000"));
    wait::until("it is under way", wait::LONG, || held(&fleet) == "1");
    assert_eq!(fleet.stop(), 0);
    assert!(all(last).starts_with("HTTP/1.1 200 OK\r\n"));
}

#[test]
fn requests_of_one_that_is_reset_are_given_up() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).example("faulty").workers(1).start();
    let mut whole = TcpStream::connect(fleet.listen).unwrap();
    whole.write_all(&get("/slow/60000")).unwrap();
    let half = half_closed(fleet.listen, &get("/slow/60000"));
    let over_2 = half_closed(fleet.listen, &get_2("/slow/60000"));
    wait::until("they are under way", wait::LONG, || in_flight(&fleet) == 3.0);
    [whole, half, over_2].into_iter().for_each(reset);
    wait::until("they are given up", wait::LONG, || in_flight(&fleet) == 0.0);
}

#[test]
fn a_stream_goes_on_for_one_that_listens_and_ends_for_one_that_is_gone() {
    let redis = TestRedis::shared();
    let fleet =
        TestFleetBuilder::on(&redis).workers(1).set("REGATTA_BROADCAST__KEEP_ALIVE_INTERVAL", "60s").start();
    let listeners = || sum(&fleet.operator("/metrics").text(), "regatta_broadcast_subscribers", &[]);
    let mut listening = half_closed(fleet.listen, &get("/events"));
    let gone = [half_closed(fleet.listen, &get("/events")), half_closed(fleet.listen, &get_2("/events"))];
    let mut whole = Connection::open(fleet.listen).unwrap();
    whole.send(&Request::get("/events").bytes()).unwrap();
    wait::until("all listen", wait::LONG, || listeners() == 4.0);
    // To close with something unread would reset it, which is another thing to notice.
    drop(whole);
    gone.into_iter().for_each(|mut stream| {
        let _ = stream.read(&mut [0; 65_536]);
        drop(stream);
    });
    wait::until("those that are gone are noticed long before a heartbeat", wait::LONG, || listeners() == 1.0);
    publish(fleet.listen, "news", "still there?");
    let mut text = String::new();
    while !text.contains("still there?") {
        let mut bytes = [0; 4096];
        let count = listening.read(&mut bytes).unwrap();
        assert!(count > 0, "closed after {text}");
        text += &String::from_utf8_lossy(&bytes[..count]);
    }
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
}
