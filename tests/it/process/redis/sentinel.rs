//! A primary that changes: Sentinels tell who it is, and the fleet follows by itself.

use std::time::{Duration, Instant};

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis_sentinel::TestSentinelSetup;
use crate::support::wait;

fn plan(watched: &TestSentinelSetup) -> TestFleetBuilder {
    TestFleetBuilder::new().set("REGATTA_REDIS__URL", &watched.url())
}

#[test]
fn a_failover_under_load_is_503_for_a_while_and_never_500() {
    let mut watched = TestSentinelSetup::start();
    let fleet = plan(&watched).start();
    assert_eq!(fleet.get("/").status, 200);
    let address = fleet.listen;
    let load = ParallelClients::start(4, move |_| {
        let mut visitor = CookieClient::default();
        move || visitor.try_request(address, Request::get("/")).map_or(0, |response| response.status)
    });
    wait::until("the load runs", wait::LONG, || load.seen() > 100);
    let before = watched.primary();
    watched.servers[0].kill();
    let begin = Instant::now();
    wait::until("the Sentinels have another primary", wait::LONG, || watched.primary() != before);
    let elected = begin.elapsed();
    wait::until("visits are served again", wait::LONG, || fleet.get("/").status == 200);
    let back = begin.elapsed();
    wait::let_pass(Duration::from_millis(500));
    let seen: Vec<u16> = load.stop().into_iter().flatten().collect();
    let odd: Vec<_> = seen.iter().filter(|status| !matches!(**status, 200 | 503)).collect();
    assert!(odd.is_empty(), "{} of {} were neither 200 nor 503: {:?}", odd.len(), seen.len(), odd.first());
    eprintln!("sentinel failover: elected after {elected:?}, served after {back:?}, {} requests", seen.len());
    assert_eq!(seen.last(), Some(&200));
}

#[test]
fn a_sentinel_that_is_gone_is_not_missed() {
    let mut watched = TestSentinelSetup::start();
    let url = watched.url();
    watched.lose_sentinel();
    let fleet = TestFleetBuilder::new().set("REGATTA_REDIS__URL", &url).start();
    assert_eq!(fleet.get("/").status, 200);
    let (code, said) = TestFleetBuilder::new().set("REGATTA_REDIS__URL", &url).args(&["check"]).run();
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_service_that_nobody_watches_is_named() {
    let watched = TestSentinelSetup::start();
    let url = watched.url().replace("mymaster", "nothing");
    let (code, said) = TestFleetBuilder::new().set("REGATTA_REDIS__URL", &url).args(&["check"]).run();
    assert!(code == 69 && said.contains("redis-sentinel://"), "{code} {said}");
}

#[test]
fn a_primary_that_hung_and_wakes_up_is_not_written_to() {
    let watched = TestSentinelSetup::start();
    let fleet = plan(&watched).start();
    assert_eq!(fleet.get("/").status, 200);
    let before = watched.primary();
    watched.servers[0].stop();
    wait::until("the Sentinels have another primary", wait::LONG, || watched.primary() != before);
    wait::until("visits are served again", wait::LONG, || fleet.get("/").status == 200);
    watched.servers[0].cont();
    for _ in 0..50 {
        assert_eq!(fleet.get("/").status, 200);
    }
    let total = watched.servers[1].cli(&["GET", "regatta:c:@views"]);
    wait::until("the old primary follows the new one", wait::LONG, || {
        watched.servers[0].cli(&["GET", "regatta:c:@views"]) == total
    });
}
