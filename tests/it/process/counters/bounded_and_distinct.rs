//! Bounded counters never exceed their bound, unique ones are near the truth.

use std::time::Duration;

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::counters::bounded::BoundedRequest;
use regatta::__internals::counters::{CounterError, CounterName, bounded, distinct};
use regatta::__internals::redis::counter_commands::BoundedOutcome;

use crate::support::client::Request;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::{TestRedis, connect};
use crate::support::{client, parallel_clients, soak};

const MODES: [ScriptingMode; 2] = [ScriptingMode::Fcall, ScriptingMode::Evalsha];

fn post(fleet: &TestFleet, target: &str) -> client::Response {
    client::once(fleet.listen, Request::post(target)).unwrap()
}

#[test]
fn of_a_thousand_seats_a_thousand_are_taken_also_in_a_storm_of_repetitions() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let each = soak::length(200, 1500);
    let granted = parallel_clients::parallel(8, each, |client| {
        // Every client wants a place and asks twice, as if the first answer had got lost.
        let token = format!("{client}-{:?}", std::time::Instant::now());
        let target = format!("/counters/seats?kind=bounded&max=1000&token={}", token.replace(' ', ""));
        let target: String =
            target.chars().filter(|c| c.is_ascii_alphanumeric() || "/?=&-".contains(*c)).collect();
        let (first, again) = (post(&fleet, &target), post(&fleet, &target));
        let granted = first.json()["granted"].as_bool().unwrap();
        assert_eq!(first.status, if granted { 200 } else { 409 }, "{first:?}");
        assert!(!granted || again.json()["granted"] == true, "a seat stays taken: {again:?}");
        granted
    });
    assert_eq!(granted.iter().filter(|granted| **granted).count(), 1000.min(8 * each));
    assert_eq!(fleet.get("/counters/seats?kind=bounded").json()["value"], 1000);
    let back = post(&fleet, "/counters/seats?kind=bounded&by=-10&token=back");
    let again = post(&fleet, "/counters/seats?kind=bounded&by=-10&token=back");
    assert_eq!((back.json()["value"].as_u64(), again.json()["value"].as_u64()), (Some(990), Some(990)));
}

#[test]
fn what_a_kind_needs_is_asked_for() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    for wrong in [
        "kind=bounded",
        "kind=bounded&max=5&by=0",
        "kind=distinct",
        "kind=other",
        "kind=bounded&max=5&token=",
    ] {
        post(&fleet, &format!("/counters/x?{wrong}")).assert_problem(400);
    }
    let form =
        Request::post("/counters/x").body("application/x-www-form-urlencoded", b"kind=bounded&max=5&by=4");
    assert_eq!(client::once(fleet.listen, form).unwrap().json()["value"], 4);
    let refused = post(&fleet, "/counters/x?kind=bounded&max=5&by=2");
    assert_eq!((refused.status, &refused.json()["value"]), (409, &4.into()));
    let seen = post(&fleet, "/counters/x?kind=distinct&item=alice&window=day").json();
    assert_eq!((seen["new"].as_bool(), seen["value"].as_u64()), (Some(true), Some(1)));
    let seen = post(&fleet, "/counters/x?kind=unique&item=alice&window=day").json();
    assert_eq!((seen["new"].as_bool(), seen["value"].as_u64()), (Some(false), Some(1)));
    assert_eq!(fleet.get("/counters/x?kind=unique&window=day").json()["value"], 1);
    assert_eq!(fleet.get("/counters/x?kind=unique").json()["value"], 0, "for ever is another counter");
    let read = fleet.get("/counters/x?kind=distinct&window=day").json();
    assert_eq!((&read["kind"], &read["value"]), (&"distinct".into(), &1.into()), "{read}");
}

#[test]
fn without_server_side_code_batched_additions_are_made_at_once_and_the_rest_is_refused() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_REDIS__MODE", "plain").start();
    for value in 1..=5 {
        assert_eq!(post(&fleet, "/counters/x?kind=batched").status, 200);
        let read = fleet.get("/counters/x?kind=batched").json();
        assert_eq!((read["value"].as_u64(), read["staleness_seconds"].as_f64()), (Some(value), Some(0.0)));
    }
    for refused in ["kind=bounded&max=5", "kind=distinct&item=a"] {
        post(&fleet, &format!("/counters/x?{refused}")).assert_problem(501);
    }
    let keyed = Request::post("/counters/x").header("Idempotency-Key", "k");
    client::once(fleet.listen, keyed).unwrap().assert_problem(501);
    assert_eq!(fleet.get("/counters/x").json()["value"], 5);
}

#[tokio::test]
async fn a_bound_holds_and_nothing_more_is_given_back_than_was_taken() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let name = CounterName::parse("stock").unwrap();
        let take =
            async |count, token| bounded::take(&redis, "p", &name, 10, BoundedRequest { count, token }).await;
        let give = async |count, token| {
            bounded::give_back(&redis, "p", &name, BoundedRequest { count, token }).await
        };
        assert_eq!(take(6, Some("a")).await, Ok(BoundedOutcome::Applied(6)));
        assert_eq!(take(6, Some("a")).await, Ok(BoundedOutcome::AlreadyApplied(6)));
        assert_eq!(take(5, Some("b")).await, Ok(BoundedOutcome::Rejected(6)));
        assert_eq!(
            take(4, Some("b")).await,
            Ok(BoundedOutcome::Applied(10)),
            "what was refused may be tried again"
        );
        assert_eq!(give(3, Some("a")).await, Ok(BoundedOutcome::Applied(7)));
        assert_eq!(give(3, Some("a")).await, Ok(BoundedOutcome::AlreadyApplied(7)));
        assert_eq!(give(100, None).await, Ok(BoundedOutcome::Applied(0)));
        assert_eq!(take(0, None).await, Err(CounterError::InvalidAmount));
        assert_eq!(bounded::get(&redis, "p", &name).await, Ok(0));
    }
}

#[tokio::test]
async fn unique_counters_are_near_the_truth_and_know_their_window() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let name = CounterName::parse("visitors").unwrap();
        let truth = soak::length(20_000, 1_000_000_u64);
        let mut value = 0;
        for chunk in 0..truth / 1000 {
            let items: Vec<String> =
                (0..1000).map(|item| format!("visitor {}", chunk * 1000 + item)).collect();
            let items: Vec<&[u8]> = items.iter().map(String::as_bytes).collect();
            value = distinct::insert(&redis, "p", &name, None, &items, Duration::ZERO).await.unwrap().1;
        }
        let error = value.abs_diff(truth) as f64 / truth as f64;
        assert!(error <= 0.02, "{value} for {truth}");
        soak::log("unique", &format!("{truth} visitors, {mode:?}: {value}, off by {:.2} %", error * 100.0));

        // A worker whose clock stands at 1970 is told which day it is.
        let day = Some(Duration::from_secs(86_400));
        let today = distinct::insert(&redis, "p", &name, day, &[b"a", b"b"], Duration::ZERO).await;
        assert_eq!(today, Ok((true, 2)));
        let again = distinct::insert(
            &redis,
            "p",
            &name,
            day,
            &[b"a"],
            regatta::__internals::sys::clock::wall_clock(),
        )
        .await;
        assert_eq!(again, Ok((false, 2)));
        let key = server.keys().into_iter().find(|key| key.starts_with("p:dw:86400000:")).unwrap();
        let left: u64 = server.cli(&["PTTL", &key]).parse().unwrap();
        assert!((86_400_000..=2 * 86_400_000).contains(&left), "kept for the day after: {left}");
    }
}
