//! Stopping: what was begun is finished, what was queued is answered, and then no one is there.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::client::{Connection, CookieClient, Failure, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

fn slow(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).example("faulty")
}

/// A request that takes this long, under way in a thread of its own.
fn held(address: SocketAddr, millis: u64) -> thread::JoinHandle<Result<Response, Failure>> {
    let mut connection = Connection::open(address).unwrap();
    connection.send(&Request::get(&format!("/slow/{millis}")).bytes()).unwrap();
    thread::spawn(move || connection.receive(false))
}

/// Requests being answered, the one that asks for it perhaps among them.
fn in_flight(fleet: &TestFleet) -> u64 {
    let json = fleet.operator("/fleet.json").json();
    json["slots"].as_array().unwrap().iter().map(|slot| slot["in_flight"].as_u64().unwrap()).sum()
}

/// That a client saw answers first, then refused connections, and nothing else.
#[track_caller]
fn assert_order(client: &[Result<u16, Failure>]) {
    let answered = client.iter().take_while(|result| matches!(result, Ok(200))).count();
    assert!(answered > 0, "{client:?}");
    let wrong: Vec<_> =
        client[answered..].iter().filter(|result| **result != Err(Failure::Refused)).collect();
    assert!(wrong.is_empty(), "after {answered} answers: {wrong:?}");
}

#[test]
fn term_under_load_answers_and_then_refuses_and_fails_no_request() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let address = fleet.listen;
    let new_connections = ParallelClients::start(4, |_| {
        let mut visitor = CookieClient::default();
        move || visitor.try_request(address, Request::get("/")).map(|response| response.status)
    });
    let kept_connections = ParallelClients::start(4, |_| {
        let mut kept: Option<Connection> = None;
        move || {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Connection::open(address)?,
            };
            let response = connection.request(&Request::get("/hello"))?;
            kept = response.keeps_alive().then_some(connection);
            Ok(response.status)
        }
    });
    wait::until("load", wait::LONG, || new_connections.seen() > 200 && kept_connections.seen() > 200);
    assert_eq!(fleet.stop(), 0);
    let seen = new_connections.seen() + kept_connections.seen();
    wait::until("clients have noticed", wait::LONG, || {
        new_connections.seen() + kept_connections.seen() > seen + 20
    });
    new_connections.stop().iter().for_each(|client| assert_order(client));
    kept_connections.stop().iter().for_each(|client| assert_order(client));
}

#[test]
fn idle_connections_may_be_used_once_more_while_workers_leave() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_DRAIN__IDLE_GRACE", "2s").start();
    let mut idle: Vec<_> = (0..40).map(|_| Connection::open(fleet.listen).unwrap()).collect();
    for connection in &mut idle {
        assert!(connection.request(&Request::get("/hello")).unwrap().keeps_alive());
    }
    fleet.signal(Signal::SIGTERM);
    wait::until("workers drain", wait::LONG, || fleet.log_lines("worker draining").len() == 2);
    for connection in &mut idle {
        let response =
            connection.request(&Request::get("/hello")).expect("a request on an idle connection is answered");
        assert_eq!(response.status, 200);
        if response.keeps_alive() {
            let last = connection.request(&Request::get("/hello")).expect("nor is one that was promised");
            assert!(!last.keeps_alive(), "a draining worker says that it closes");
        }
    }
    assert_eq!(fleet.exit_code(wait::LONG), 0);
}

#[test]
fn a_held_request_is_finished_before_its_worker_leaves() {
    let redis = TestRedis::start();
    let mut fleet = slow(&redis).start();
    let requests: Vec<_> = (0..3).map(|_| held(fleet.listen, 1500)).collect();
    wait::until("they are under way", wait::LONG, || fleet.get("/held").text().trim() != "0");
    assert_eq!(fleet.stop(), 0);
    for request in requests {
        let response = request.join().unwrap().expect("it is answered");
        assert_eq!((response.status, response.text().as_str()), (200, "slow\n"));
    }
    assert_eq!(client::once(fleet.listen, Request::get("/hello")).unwrap_err(), Failure::Refused);
}

#[test]
fn a_half_sent_request_is_finished_before_its_worker_leaves() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).start();
    let before = in_flight(&fleet);
    let mut connection = Connection::open(fleet.listen).unwrap();
    let head = "POST /counters/x HTTP/1.1\r\nHost: fleet.test\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    connection.send(format!("{head}Content-Length: 4\r\n\r\nby").as_bytes()).unwrap();
    wait::until("it has arrived", wait::LONG, || in_flight(&fleet) > before);
    fleet.signal(Signal::SIGTERM);
    wait::until("workers drain", wait::LONG, || !fleet.log_lines("worker draining").is_empty());
    connection.send(b"=5").unwrap();
    let response = connection.receive(false).expect("it is answered");
    assert_eq!(response.json()["value"], 5);
    assert_eq!(fleet.exit_code(wait::LONG), 0);
}

#[test]
fn a_half_sent_header_is_waited_for_before_its_worker_leaves() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).set("REGATTA_DRAIN__IDLE_GRACE", "100ms").start();
    let mut used = Connection::open(fleet.listen).unwrap();
    assert!(used.request(&Request::get("/hello")).unwrap().keeps_alive());
    used.send(b"GET /hello HTTP/1.1\r\nHost: fl").unwrap();
    fleet.signal(Signal::SIGTERM);
    wait::until("workers drain", wait::LONG, || fleet.log_lines("worker draining").len() == 2);
    // Idle connections are closed meanwhile.
    wait::let_pass(Duration::from_millis(600));
    used.send(b"eet.test\r\n\r\n").unwrap();
    let response = used.receive(false).expect("it is answered");
    assert!(response.status == 200 && !response.keeps_alive());
    assert_eq!(fleet.exit_code(wait::LONG), 0);
}

#[test]
fn the_drain_deadline_cuts_what_is_left_and_says_so() {
    let redis = TestRedis::start();
    let plan = slow(&redis).set("REGATTA_DRAIN__TIMEOUT", "1s").set("REGATTA_DRAIN__IDLE_GRACE", "100ms");
    let mut fleet = plan.start();
    let request = held(fleet.listen, 60_000);
    wait::until("it is under way", wait::LONG, || (0..10).any(|_| fleet.get("/held").text().trim() == "1"));
    let begin = Instant::now();
    fleet.stop();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(request.join().unwrap().is_err());
    let cut = fleet.log_lines("connections aborted at drain timeout");
    assert_eq!(
        cut.iter().map(|line| field(line, "count").as_u64()).collect::<Vec<_>>(),
        [Some(1)],
        "{}",
        fleet.log()
    );
}

#[test]
fn quit_stops_at_once() {
    let redis = TestRedis::start();
    let mut fleet = slow(&redis).start();
    let workers = fleet.workers();
    let request = held(fleet.listen, 60_000);
    wait::until("it is under way", wait::LONG, || (0..10).any(|_| fleet.get("/held").text().trim() == "1"));
    fleet.signal(Signal::SIGQUIT);
    fleet.exit_code(Duration::from_secs(3));
    assert!(request.join().unwrap().is_err());
    assert!(!workers.into_iter().any(process::alive));
}

#[test]
fn int_stops_gracefully_and_a_second_one_at_once() {
    let redis = TestRedis::start();
    let mut fleet = slow(&redis).start();
    let request = held(fleet.listen, 60_000);
    wait::until("it is under way", wait::LONG, || (0..10).any(|_| fleet.get("/held").text().trim() == "1"));
    fleet.signal(Signal::SIGINT);
    wait::until("workers drain", wait::LONG, || !fleet.log_lines("worker draining").is_empty());
    fleet.signal(Signal::SIGINT);
    fleet.exit_code(Duration::from_secs(3));
    assert!(request.join().unwrap().is_err());
    drop(fleet);
    let mut idle = TestFleetBuilder::on(&redis).start();
    idle.signal(Signal::SIGINT);
    assert_eq!(idle.exit_code(wait::LONG), 0);
}

#[test]
fn readiness_fails_first_and_visitors_are_served_meanwhile() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).set("REGATTA_DRAIN__GRACE", "2s").start();
    assert_eq!(fleet.operator("/readyz").status, 200);
    fleet.signal(Signal::SIGTERM);
    wait::until("readiness fails", Duration::from_secs(1), || fleet.operator("/readyz").status == 503);
    for _ in 0..20 {
        let response = fleet.get("/hello");
        assert_eq!(response.status, 200);
        assert_eq!(fleet.operator("/livez").status, 200);
    }
    assert_eq!(fleet.exit_code(wait::LONG), 0);
}

#[test]
fn a_fleet_can_be_stopped_while_it_boots() {
    let redis = TestRedis::shared();
    for _ in 0..5 {
        let mut fleet = TestFleetBuilder::on(&redis).workers(3).bind();
        assert_eq!(fleet.stop(), 0, "{}", fleet.log());
    }
}

#[test]
fn signals_without_a_meaning_yet_do_no_harm() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let workers = fleet.workers();
    fleet.signal(Signal::SIGPIPE);
    fleet.signal(Signal::SIGUSR1);
    for _ in 0..10 {
        assert_eq!(fleet.get("/hello").status, 200);
    }
    assert_eq!(fleet.workers(), workers);
}

#[test]
fn a_new_fleet_takes_the_port_at_once() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis);
    let mut first = plan.start();
    let mut visitor = CookieClient::default();
    let mut kept = Connection::open(first.listen).unwrap();
    kept.request(&Request::get("/hello")).unwrap();
    visitor.view(first.listen);
    let (listen, admin) = (first.listen.to_string(), first.admin.to_string());
    assert_eq!(first.stop(), 0);
    let second = plan.set("REGATTA_LISTEN", &listen).set("REGATTA_ADMIN__LISTEN", &admin).start();
    assert_eq!(visitor.view(second.listen).1, 2);
}

#[test]
fn many_stops_are_one() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).start();
    for _ in 0..20 {
        fleet.signal(Signal::SIGTERM);
    }
    assert_eq!(fleet.exit_code(wait::LONG), 0);
}

#[test]
fn a_fleet_whose_workers_have_just_died_stops() {
    let redis = TestRedis::shared();
    for _ in 0..5 {
        let mut fleet = TestFleetBuilder::on(&redis).workers(3).start();
        fleet.workers().into_iter().for_each(|pid| process::signal(pid, Signal::SIGKILL));
        assert_eq!(fleet.stop(), 0, "{}", fleet.log());
    }
}

#[test]
fn a_fleet_whose_private_redis_has_just_died_stops() {
    let mut fleet = TestFleetBuilder::new().start();
    process::signal(fleet.others()[0], Signal::SIGKILL);
    assert_eq!(fleet.stop(), 0, "{}", fleet.log());
}
