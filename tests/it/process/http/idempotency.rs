//! `Idempotency-Key`: a request that is sent again is carried out once.

use std::time::Duration;

use crate::support::client::{CookieClient, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, parallel_clients, wait};

/// Keys that cannot be guessed: of a client without a cookie they are all that is known.
const UUID: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";
const DEAD: &str = "dead978e-40d5-43e8-bc93-6894a57f9324";
const LONG: &str = "1099978e-40d5-43e8-bc93-6894a57f9324";

const RUNNING: &str = "urn:regatta:problem:idempotency-request-in-progress";

fn keyed(target: &str, key: &str) -> Request {
    Request::post(target).header("Idempotency-Key", key)
}

/// As often as a test asks.
fn often(plan: TestFleetBuilder) -> TestFleetBuilder {
    plan.set("REGATTA_LIMITS__IDEMPOTENCY__RATE", "1000/s").set("REGATTA_LIMITS__IDEMPOTENCY__BURST", "1000")
}

fn send(fleet: &TestFleet, request: Request) -> Response {
    client::once(fleet.listen, request).unwrap()
}

#[test]
fn a_repetition_gets_the_first_response_and_counts_nothing() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(3).start();
    let (quoted, bare) = (format!("\"{UUID}\""), UUID);
    let first = send(&fleet, keyed("/counters/orders?by=5", &quoted));
    assert_eq!((first.status, first.header("Idempotency-Replayed")), (200, ""));
    for _ in 0..10 {
        let again = send(&fleet, keyed("/counters/orders?by=5", bare));
        assert_eq!(
            (again.status, again.header("Idempotency-Replayed"), &again.body),
            (200, "true", &first.body)
        );
        assert_eq!(again.header("Content-Type"), first.header("Content-Type"));
    }
    let other = send(&fleet, keyed("/counters/orders?by=6", bare));
    assert_eq!(other.assert_problem(422)["type"], "urn:regatta:problem:idempotency-key-reused");
    for (target, body) in [("/counters/orders", "by=7"), ("/counters/orders", "by=8")] {
        let form = keyed(target, "with a body").body("application/x-www-form-urlencoded", body.as_bytes());
        assert_eq!(send(&fleet, form).status, if body == "by=7" { 200 } else { 422 });
    }
    assert_eq!(
        send(&fleet, Request::post("/counters/orders")).json()["value"],
        13,
        "without a key it is another one"
    );
    send(&fleet, keyed("/counters/orders", "")).assert_problem(400);
    // A safe method needs none.
    let read = send(&fleet, Request::get("/counters/orders").header("Idempotency-Key", bare));
    assert_eq!((read.json()["value"].as_u64(), read.header("Idempotency-Replayed")), (Some(13), ""));
}

#[test]
fn a_client_that_leaves_and_comes_again_finds_its_request_carried_out() {
    let redis = TestRedis::start();
    let fleet = often(TestFleetBuilder::on(&redis).example("faulty")).start();
    let request = || keyed("/once/300", UUID);
    let mut gone = client::Connection::open(fleet.listen).unwrap();
    gone.send(&request().bytes()).unwrap();
    let counted = || redis.keys().into_iter().find(|key| key.ends_with(":c:once"));
    wait::until("it is under way", wait::LONG, || counted().is_some());
    drop(gone);
    let mut answer = send(&fleet, request());
    wait::until("it is done", wait::LONG, || {
        answer = send(&fleet, request());
        answer.status != 409
    });
    assert_eq!(
        (answer.status, answer.text(), answer.header("Idempotency-Replayed")),
        (200, "1".into(), "true")
    );
    assert_eq!(redis.cli(&["GET", &counted().unwrap()]), "1");
}

#[test]
fn keys_are_a_clients_own() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let from = |address: &str| keyed("/counters/mine", "k").header("X-Forwarded-For", address);
    assert_eq!(send(&fleet, from("192.0.2.1")).json()["value"], 1);
    assert_eq!(send(&fleet, from("192.0.2.2")).json()["value"], 2);
    send(&fleet, from("192.0.2.1")).assert_problem(409);
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    assert_eq!(visitor.request(fleet.listen, keyed("/counters/mine", "k")).json()["value"], 3);
    let again = visitor.request(fleet.listen, keyed("/counters/mine", "k"));
    assert_eq!((again.json()["value"].as_u64(), again.all("Set-Cookie").len()), (Some(3), 0));
}

#[test]
fn of_many_at_once_one_is_carried_out() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(3).example("faulty").start();
    let answers = parallel_clients::parallel(10, 1, |_| send(&fleet, keyed("/once/400", UUID)));
    let (done, running): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(!done.is_empty() && done.iter().all(|answer| answer.text() == "1"), "{done:?}");
    for answer in running {
        assert_eq!(answer.assert_problem(409)["type"], RUNNING);
        assert!(["1", "2"].contains(&answer.header("Retry-After")));
    }
    assert_eq!(send(&fleet, keyed("/once/400", UUID)).text(), "1");
}

#[test]
fn what_failed_may_be_tried_again() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).example("faulty").start();
    for _ in 0..3 {
        let failed = send(&fleet, keyed("/panic", "p"));
        assert_eq!((failed.status, failed.header("Idempotency-Replayed")), (500, ""));
    }
}

#[test]
fn a_request_whose_worker_died_is_carried_out_by_another_one_when_its_lease_is_over() {
    let redis = TestRedis::start();
    let fleet = often(TestFleetBuilder::on(&redis).workers(1).example("faulty")).start();
    let address = fleet.listen;
    let first = std::thread::spawn(move || client::once(address, keyed("/once/2000", DEAD)));
    let counted = || redis.cli(&["GET", &format!("{}:c:once", fleet.plan().prefix())]) == "1";
    wait::until("it is being carried out", wait::LONG, counted);
    fleet.crash(fleet.workers()[0]);
    assert!(first.join().unwrap().is_err(), "its worker was killed");
    let running = send(&fleet, keyed("/once/2000", DEAD));
    assert_eq!(running.assert_problem(409)["type"], RUNNING);
    let again = wait::until_some("the lease is over", wait::LONG, || {
        let answer = send(&fleet, keyed("/once/2000", DEAD));
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(again.text(), "2");
    // It takes longer than its lease could be, and keeps it.
    let long = std::thread::spawn(move || client::once(address, keyed("/once/6500", LONG)).unwrap());
    wait::let_pass(Duration::from_millis(6000));
    send(&fleet, keyed("/once/6500", LONG)).assert_problem(409);
    assert_eq!(long.join().unwrap().text(), "3");
    assert_eq!(send(&fleet, keyed("/once/6500", LONG)).text(), "3");
}

#[test]
fn without_redis_a_key_cannot_be_kept_and_without_a_lifetime_it_means_nothing() {
    let mut redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_REDIS__PATIENCE", "0s");
    let off = plan.clone().set("REGATTA_IDEMPOTENCY__TTL", "0s").start();
    assert_eq!(send(&off, keyed("/counters/x", "k")).json()["value"], 1);
    assert_eq!(send(&off, keyed("/counters/x", "k")).json()["value"], 2);
    drop(off);
    let fleet = plan.start();
    redis.kill();
    let away = send(&fleet, keyed("/counters/x?kind=batched", "k"));
    away.assert_problem(503);
    assert!(!away.header("Retry-After").is_empty());
    assert_eq!(
        send(&fleet, Request::post("/counters/x?kind=batched")).status,
        200,
        "a batched addition needs no Redis"
    );
}
