//! Many clients of event streams on few workers: every message once and in order, at a bounded price.
//!
//! Short in every run; 2,000 clients when `REGATTA_SOAK` is set. Figures are printed there, and none is a verdict.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::support::delivery_scenario::DeliveryScenario;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{process, soak, wait};

/// Memory of all workers that no one else has, bytes.
fn memory(fleet: &TestFleet) -> u64 {
    fleet.workers().into_iter().map(process::private_memory).sum()
}

/// Two workers that have done everything once.
fn warm(plan: &TestFleetBuilder) -> TestFleet {
    let fleet = plan.start();
    // So many that the kernel gives each worker some of them.
    let mut stage = DeliveryScenario::open(&[fleet.listen], 24);
    stage.add_publisher(Duration::ZERO, 100, Some(40));
    stage.published();
    stage.close("warm-up");
    fleet
}

#[test]
fn every_client_gets_every_message_once_and_in_order() {
    let clients = soak::length(300, 2000);
    let redis = TestRedis::start();
    let fleet = warm(&TestFleetBuilder::on(&redis).workers(2));
    let before = memory(&fleet);
    let mut stage = DeliveryScenario::with(&[fleet.listen], &["a", "b", "c", "d"], clients);
    let waiting = memory(&fleet);
    for _ in 0..3 {
        stage.add_publisher(Duration::from_millis(2), 100, Some(soak::length(80, 500)));
    }
    stage.published();
    let busy = memory(&fleet);
    let spread =
        fleet.workers().into_iter().map(|pid| stage.subscribers.count(|record| record.worker == Some(pid)));
    let spread: Vec<_> = spread.collect();
    assert!(spread.iter().sum::<usize>() == clients && !spread.contains(&0), "both workers: {spread:?}");
    let balance = stage.close("many clients");
    assert_eq!((balance.cut, balance.unanswered), (0, 0), "{balance}");
    assert!(balance.answered + balance.failed >= 3 * soak::length(80, 500) + 4, "{balance}");
    let each = |now: u64| now.saturating_sub(before) as f64 / clients as f64 / 1024.0;
    let (waiting, busy) = (each(waiting), each(busy));
    soak::log(
        "many clients",
        &format!("memory of a client: {waiting:.1} KiB waiting, {busy:.1} KiB after the load"),
    );
    // A connection with its buffers is some 20 KiB in a debug build; a copy of all history would be far above.
    assert!(busy < 128.0, "{busy:.1} KiB a client");
}

/// Connections to Redis that listen, and all.
fn connections(redis: &TestRedis) -> (usize, usize) {
    let list = redis.cli(&["CLIENT", "LIST"]);
    let listening = |line: &&str| !line.contains(" sub=0 psub=0") || !line.contains(" ssub=0");
    // The asking one does not count.
    (list.lines().filter(listening).count(), list.lines().count() - 1)
}

#[test]
fn redis_sees_as_many_connections_however_many_listen() {
    let redis = TestRedis::start();
    let fleet = warm(&TestFleetBuilder::on(&redis).workers(2));
    let before = connections(&redis);
    assert_eq!(before.0, 2, "one that listens per worker");
    let mut stage = DeliveryScenario::with(&[fleet.listen], &["a", "b", "c", "d", "e", "f"], 120);
    stage.add_publisher(Duration::ZERO, 100, Some(60));
    stage.published();
    assert_eq!(connections(&redis), before);
    stage.close("connections");
}

/// A client that asks for a stream and never reads a byte of it.
fn deaf(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    // Small, so that the worker feels it soon.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"GET /events?topic=news HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    stream
}

/// Some 4 MB of each of two topics, 8 in the long form: far above what the sockets of a client hold. Memory grew by so much.
fn downpour(fleet: &TestFleet, name: &str) -> u64 {
    let before = memory(fleet);
    let mut stage = DeliveryScenario::open(&[fleet.listen], 20);
    stage.add_publisher(Duration::from_millis(2), 8 << 10, Some(soak::length(1000, 2000)));
    stage.published();
    let grown = memory(fleet).saturating_sub(before);
    let balance = stage.close(name);
    assert_eq!(balance.unanswered, 0, "{balance}");
    grown
}

#[test]
fn clients_that_never_read_hold_up_nobody_and_cost_little() {
    let deaf_ones = soak::length(40, 400);
    let redis = TestRedis::start();
    let fleet = warm(&TestFleetBuilder::on(&redis).workers(2));
    let alone = downpour(&fleet, "without deaf clients");
    let held: Vec<_> = (0..deaf_ones).map(|_| deaf(fleet.listen)).collect();
    let grown = downpour(&fleet, "with deaf clients");
    let each = grown / deaf_ones as u64 / 1024;
    let alone = alone / 1024;
    soak::log("deaf clients", &format!("{each} KiB each; what workers remember of the topics: {alone} KiB"));
    // A queue of its own would be 4 MB for each.
    assert!(each < 1024, "{each} KiB each, {alone} KiB without them");
    drop(held);
    let mut stage = DeliveryScenario::open(&[fleet.listen], 20);
    stage.add_publisher(Duration::ZERO, 100, Some(20));
    stage.published();
    stage.close("after the deaf ones");
}

#[test]
fn whoever_comes_and_goes_leaves_nothing_behind() {
    let redis = TestRedis::start();
    let fleet = warm(&TestFleetBuilder::on(&redis).workers(2));
    let descriptors =
        || fleet.workers().into_iter().map(|pid| process::descriptors(pid).len()).sum::<usize>();
    let (before, mut first) = (descriptors(), None);
    for round in 0..soak::length(4, 40) {
        let mut stage = DeliveryScenario::open(&[fleet.listen], 100);
        stage.add_publisher(Duration::ZERO, 1000, Some(20));
        stage.published();
        stage.close("coming and going");
        wait::until("their connections are gone", wait::LONG, || descriptors() <= before);
        // The allocator keeps something of the first rounds.
        if round == 1 {
            first = Some(memory(&fleet));
        }
    }
    let grown = memory(&fleet).saturating_sub(first.unwrap_or_default());
    soak::log("coming and going", &format!("{} KiB more than after the second round", grown / 1024));
    assert!(grown < 8 << 20, "{} KiB", grown / 1024);
}
