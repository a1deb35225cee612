//! The page's stream: what it tells, when it is silent, and what it costs.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::client::{Connection, CookieClient, Failure, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::stream::Stream;
use crate::support::{client, wait};

/// Someone who watches.
struct Watcher(Stream);

impl Watcher {
    fn come(fleet: &TestFleet) -> Self {
        let stream = Stream::open(fleet.listen, "/live");
        let head = &stream.response;
        assert_eq!((head.header("Cache-Control"), head.header("X-Accel-Buffering")), ("no-store", "no"));
        Self(stream)
    }

    /// The next event; comments and hints are passed over.
    fn event(&mut self) -> Result<Value, Failure> {
        loop {
            let block = self.0.block()?.ok_or(Failure::Closed)?;
            if let Some(data) = block.strip_prefix("data: ") {
                return Ok(serde_json::from_str(data).unwrap());
            }
        }
    }

    /// Waits for an event of which this is true.
    #[track_caller]
    fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait::until_some(what, wait::LONG, || self.event().ok().filter(&is))
    }
}

fn requests(seen: &Value) -> u64 {
    seen["slots"].as_array().unwrap().iter().map(|slot| slot["requests"].as_u64().unwrap()).sum()
}

#[test]
fn whoever_watches_sees_views_and_slots_change_and_silence_else() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let mut watcher = Watcher::come(&fleet);
    let first = watcher.event().unwrap();
    assert_eq!((&first["total"], first["slots"].as_array().unwrap().len()), (&0.into(), 2), "{first}");
    let mut visitor = CookieClient::default();
    (0..5).for_each(|_| _ = visitor.view(fleet.listen));
    let seen = watcher.until("five views", |seen| seen["total"] == 5 && requests(seen) >= 6);
    let pids: Vec<_> =
        seen["slots"].as_array().unwrap().iter().map(|slot| slot["pid"].as_u64().unwrap()).collect();
    assert!(fleet.workers().iter().all(|pid| pids.contains(&u64::from(*pid))), "{seen}");
    let mut second = Watcher::come(&fleet);
    assert_eq!(second.event().unwrap()["total"], 5, "whoever comes sees at once how things stand");
    // Its own coming is an event; after it nothing happens.
    watcher.until("the second came", |seen| requests(seen) >= 7);
    second.0.connection.set_timeout(Duration::from_millis(2500));
    while let Ok(seen) = second.event() {
        assert!(requests(&seen) <= 7, "{seen}");
    }
}

#[test]
fn many_watchers_cost_redis_what_one_does_and_none_cost_nothing() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    fleet.get("/");
    // Views are read by GET, which nothing else sends here again and again.
    let reads = || redis.commands().get("get").copied().unwrap_or(0);
    let over = |seconds: u64| {
        let before = reads();
        wait::let_pass(Duration::from_secs(seconds));
        reads() - before
    };
    assert_eq!(over(3), 0, "nobody watches");
    let mut watchers: Vec<_> = (0..50).map(|_| Watcher::come(&fleet)).collect();
    watchers.iter_mut().for_each(|watcher| _ = watcher.event().unwrap());
    let (before, begin) = (reads(), Instant::now());
    wait::until("the fleet is looked at", wait::LONG, || reads() >= before + 3);
    // The machine may stand still: what counts is the time that passed.
    let (many, most) = (reads() - before, begin.elapsed().as_secs() + 2);
    assert!(many <= most, "{many} reads where one watcher costs {most} at most");
    drop(watchers);
    wait::until("the last look", wait::LONG, || over(2) == 0);
}

#[test]
fn the_stream_ends_when_its_worker_leaves_and_goes_on_at_the_successor() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let mut watcher = Watcher::come(&fleet);
    let before = watcher.event().unwrap()["slots"][0]["pid"].clone();
    fleet.signal(nix::sys::signal::Signal::SIGHUP);
    let mut last = String::new();
    while let Some(block) = watcher.0.block().unwrap() {
        last = block;
    }
    assert!(last.starts_with("retry: "), "{last}");
    let mut again = Watcher::come(&fleet);
    let after = again.until("the successor tells", |seen| seen["slots"][0]["state"] == "ready");
    assert_ne!(after["slots"][0]["pid"], before);
}

#[test]
fn the_stream_outlives_redis() {
    let mut redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_REDIS__PATIENCE", "0s").start();
    fleet.get("/");
    let mut watcher = Watcher::come(&fleet);
    watcher.until("a view", |seen| seen["total"] == 1);
    redis.kill();
    fleet.get("/hello");
    let seen = watcher.until("slots are told without Redis", |seen| requests(seen) >= 3);
    assert_eq!(
        (&seen["total"], &seen["here"]),
        (&Value::Null, &Value::Null),
        "what is not known is not shown"
    );
    redis.restart();
    let known = || fleet.get("/").status == 200;
    wait::until("Redis is back", wait::LONG, known);
    (0..3).for_each(|_| _ = fleet.get("/"));
    watcher.until("views are told again", |seen| seen["total"].as_i64().is_some_and(|total| total > 1));
}

#[test]
fn a_quiet_page_is_told_again_how_it_stands() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let mut watcher = Watcher::come(&fleet);
    // Longer than it is silent.
    watcher.0.connection.set_timeout(Duration::from_secs(40));
    let mut last = watcher.until("who is here is known", |seen| seen["here"].is_u64());
    wait::until("nothing happened, and it is told", wait::LONG, || {
        let before = std::mem::replace(&mut last, watcher.event().unwrap());
        before == last
    });
}

#[test]
fn streams_of_other_events_have_their_bound_too() {
    let redis = TestRedis::shared();
    let fleet =
        TestFleetBuilder::on(&redis).workers(1).set("REGATTA_BROADCAST__MAX_SUBSCRIBERS", "2").start();
    let first = Watcher::come(&fleet);
    let _second = Watcher::come(&fleet);
    let refused = fleet.get("/live");
    refused.assert_problem(503);
    let _broadcast = Stream::open(fleet.listen, "/events");
    drop(first);
    wait::until("a place is free", wait::LONG, || {
        let mut connection = Connection::open(fleet.listen).unwrap();
        connection.send(&Request::get("/live").bytes()).unwrap();
        connection.receive(true).unwrap().status == 200
    });
}

#[test]
fn files_of_another_version_are_this_ones_and_not_kept() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let page = client::once(fleet.listen, Request::get("/").header("Accept", "text/html")).unwrap().text();
    let named = |kind: &str| {
        let files = page.split('"').find(|part| part.starts_with("/assets/") && part.ends_with(kind));
        files.expect("the page names it").to_owned()
    };
    for (mine, other) in [
        (named(".css"), "/assets/style.0123456789abcdef.css"),
        (named(".js"), "/assets/live.0123456789abcdef.js"),
    ] {
        let (mine, other) = (fleet.get(&mine), fleet.get(other));
        assert!(mine.header("Cache-Control").contains("immutable"), "{mine:?}");
        assert_eq!((other.status, other.header("Cache-Control")), (200, "no-store"));
        assert_eq!((other.text(), other.header("Content-Type")), (mine.text(), mine.header("Content-Type")));
    }
    assert_eq!(fleet.get("/assets/other.0123456789abcdef.js").status, 404);
    let other = fleet.operator("/fleet/assets/0123456789abcdef.css");
    assert_eq!((other.status, other.header("Cache-Control")), (200, "no-store"));
}
