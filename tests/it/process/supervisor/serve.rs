//! The main job: visits, no matter which worker serves them, counted once each and kept.

use std::collections::BTreeSet;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::support::client::{Connection, CookieClient, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, parallel_clients, process, wait};

/// A signing key that several fleets are given.
const SECRET: &str = "one key that every fleet of this test is given";

/// The visitor's next views; a Redis that still reads its data makes the request wait.
fn next_views(visitor: &mut CookieClient, fleet: &TestFleet) -> u64 {
    wait::until_some("visits are served", wait::LONG, || {
        let response = visitor.request(fleet.listen, Request::get("/"));
        assert!(matches!(response.status, 200 | 503), "{response:?}");
        (response.status == 200).then(|| response.view().1)
    })
}

#[test]
fn pids_vary_and_views_count_up_over_all_workers() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let mut visitor = CookieClient::default();
    let visits: Vec<_> = (0..60).map(|_| visitor.view(fleet.listen)).collect();
    let views: Vec<_> = visits.iter().map(|(_, views)| *views).collect();
    assert_eq!(views, (1..=60).collect::<Vec<_>>());
    let served: BTreeSet<_> = visits.into_iter().map(|(pid, _)| pid).collect();
    let workers: BTreeSet<_> = fleet.workers().into_iter().collect();
    assert_eq!(workers.len(), 4);
    assert_eq!(served, workers, "60 connections reach every one of 4 workers, all but 1 time in 10^7");
}

#[test]
fn views_persist_over_a_restart_of_the_whole_fleet() {
    let plan = TestFleetBuilder::new();
    let mut visitor = CookieClient::default();
    let mut first = plan.start();
    assert_eq!(first.others().len(), 1, "the private Redis is the only other child");
    for views in 1..=5 {
        assert_eq!(visitor.view(first.listen).1, views);
    }
    let redis = first.others()[0];
    assert_eq!(first.stop(), 0);
    assert!(!process::alive(redis), "the private Redis outlived its fleet");
    let second = plan.start();
    assert_eq!(next_views(&mut visitor, &second), 6);
}

#[test]
fn a_killed_private_redis_is_restarted_and_loses_no_view() {
    let fleet = TestFleetBuilder::new().start();
    let mut visitor = CookieClient::default();
    for views in 1..=5 {
        assert_eq!(visitor.view(fleet.listen).1, views);
    }
    let killed = fleet.others()[0];
    process::signal(killed, Signal::SIGKILL);
    wait::until("another private Redis runs", wait::LONG, || fleet.others().iter().any(|pid| *pid != killed));
    assert_eq!(next_views(&mut visitor, &fleet), 6);
}

#[test]
fn two_fleets_with_one_prefix_share_sessions_counters_and_limits_exactly() {
    let redis = TestRedis::start();
    let shared = |plan: TestFleetBuilder| {
        let plan = plan.set("REGATTA_REDIS__PREFIX", "shared");
        plan.set("REGATTA_LIMITS__HELLO__RATE", "5/h")
            .set("REGATTA_LIMITS__HELLO__BURST", "30")
            .set("REGATTA_LIMITS__HELLO__ROUTES", "/hello")
            .start()
    };
    let fleets = [shared(TestFleetBuilder::on(&redis)), shared(TestFleetBuilder::on(&redis))];
    let mut visitor = CookieClient::default();
    for views in 1..=20 {
        assert_eq!(visitor.view(fleets[views % 2].listen).1, views as u64);
    }
    let added = parallel_clients::parallel(4, 50, |client| {
        let response = client::once(fleets[client % 2].listen, Request::post("/counters/shared")).unwrap();
        response.json()["value"].as_u64().unwrap()
    });
    let distinct: BTreeSet<_> = added.into_iter().collect();
    assert_eq!(distinct, (1..=200).collect(), "every increment has its own value");
    let statuses =
        parallel_clients::parallel(4, 20, |client| client::get(fleets[client % 2].listen, "/hello").status);
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 30, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 50, "{statuses:?}");
}

#[test]
fn a_fleet_with_another_prefix_sees_nothing_of_the_first() {
    let redis = TestRedis::start();
    let with_key = |plan: TestFleetBuilder| plan.set("REGATTA_SESSION__SECRETS", SECRET).start();
    let (first, second) = (with_key(TestFleetBuilder::on(&redis)), with_key(TestFleetBuilder::on(&redis)));
    let mut visitor = CookieClient::default();
    for views in 1..=3 {
        assert_eq!(visitor.view(first.listen).1, views);
    }
    client::once(first.listen, Request::post("/counters/mine?by=7")).unwrap();
    assert_eq!(second.get("/counters/mine").json()["value"], 0);
    assert_eq!(first.get("/counters/mine").json()["value"], 7);
    assert_eq!(visitor.clone().view(second.listen).1, 1, "the session is a stranger's there");
    assert_eq!(visitor.view(first.listen).1, 4);
}

#[test]
fn any_number_of_workers_serves() {
    let redis = TestRedis::start();
    for count in [1, 7] {
        let fleet = TestFleetBuilder::on(&redis).workers(count).start();
        assert_eq!(fleet.workers().len(), count);
        assert_eq!(CookieClient::default().view(fleet.listen).1, 1);
    }
}

#[test]
fn every_answer_names_its_worker() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let workers = fleet.workers();
    for target in
        ["/", "/hello", "/health", "/heavy?n=1000", "/counters/x", "/nothing/here", "/heavy?n=nonsense"]
    {
        assert!(workers.contains(&fleet.get(target).worker()), "{target}");
    }
    for target in ["/livez", "/readyz", "/metrics", "/fleet.json", "/nothing/here"] {
        assert!(workers.contains(&fleet.operator(target).worker()), "{target}");
    }
    let hello = fleet.get("/hello");
    assert_eq!(hello.text(), format!("Handled by worker {}\n", hello.worker()));
    let health = fleet.get("/health").json();
    assert!(workers.contains(&u32::try_from(health["worker"].as_u64().unwrap()).unwrap()), "{health}");
    for part in ["status", "slot", "generation", "uptime_seconds", "memory_bytes", "redis"] {
        assert!(!health[part].is_null(), "{part} is missing in {health}");
    }
}

#[test]
fn the_page_is_html_for_browsers_and_one_line_for_everyone_else() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let mut connection = Connection::open(fleet.listen).unwrap();
    let plain = connection.request(&Request::get("/").header("Accept", "*/*")).unwrap();
    assert!(plain.header("Content-Type").starts_with("text/plain"), "{plain:?}");
    assert_eq!(plain.view().1, 1);
    assert!(plain.keeps_alive());
    let page = connection.request(&Request::get("/").header("Accept", browser)).unwrap();
    assert_eq!(page.status, 200);
    assert!(page.header("Content-Type").starts_with("text/html"), "{page:?}");
    assert!(page.text().contains(&page.worker().to_string()), "the page names its worker");
    assert!(!page.keeps_alive(), "a browser that keeps its connection would always meet the same worker");
    for response in [&plain, &page] {
        assert!(response.all("Vary").iter().any(|names| names.contains("Cookie")), "{response:?}");
        assert!(!response.header("Cache-Control").is_empty(), "{response:?}");
    }
    assert!(page.header("Content-Security-Policy").contains("default-src"), "{page:?}");
    let policy = page.header("Content-Security-Policy");
    assert!(policy.contains("script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let text = page.text();
    assert_eq!(text.matches("<script").count(), 1, "{text}");
    assert!(text.contains("<script src=\"/assets/live."), "nothing inline: {text}");
    let forms = ["action=\"/broadcast\"", "action=\"/tasks\""];
    assert!(forms.iter().all(|form| text.contains(form)), "it works without JavaScript: {text}");
}

#[test]
fn head_answers_like_get_without_a_body() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut connection = Connection::open(fleet.listen).unwrap();
    for target in ["/hello", "/", "/health"] {
        let head = connection.request(&Request::new("HEAD", target)).unwrap();
        assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
        assert!(head.keeps_alive(), "{target}");
    }
    assert_eq!(
        connection.request(&Request::get("/hello")).unwrap().status,
        200,
        "nothing was left in between"
    );
}

#[test]
fn many_requests_on_one_connection_are_all_answered_by_its_worker() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let mut connection = Connection::open(fleet.listen).unwrap();
    let served: BTreeSet<_> =
        (0..100).map(|_| connection.request(&Request::get("/hello")).unwrap().worker()).collect();
    assert_eq!(served.len(), 1);
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut connection = Connection::open(fleet.listen).unwrap();
    let targets = ["/hello", "/counters/bell", "/nothing/here", "/hello"];
    let sent: Vec<u8> = targets.iter().flat_map(|target| Request::get(target).bytes()).collect();
    connection.send(&sent).unwrap();
    let statuses: Vec<_> = targets.iter().map(|_| connection.receive(false).unwrap().status).collect();
    assert_eq!(statuses, [200, 200, 404, 200]);
}

#[test]
fn every_configured_address_is_served() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_LISTEN", "127.0.0.1:0, 127.0.0.2:0").start();
    assert_eq!(fleet.also.len(), 1);
    let mut visitor = CookieClient::default();
    assert_eq!(visitor.view(fleet.listen).1, 1);
    assert_eq!(visitor.view(fleet.also[0]).1, 2);
}

#[test]
fn one_worker_a_core_that_affinity_allows() {
    let redis = TestRedis::start();
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    // Inherited by what this thread starts.
    sched_setaffinity(this_thread, &one).unwrap();
    let fleet = TestFleetBuilder::on(&redis).unset("WEB_CONCURRENCY").start();
    sched_setaffinity(this_thread, &allowed).unwrap();
    assert_eq!(fleet.workers().len(), 1);
}
