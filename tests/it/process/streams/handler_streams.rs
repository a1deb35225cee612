//! Streams of events of an application's own handlers, made with axum's `Sse`, in a fleet that knows them by their kind.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Failure, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::stream::Stream;
use crate::support::{client, wait};

fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).example("faulty").set("REGATTA_WORKERS__CANARY_PERIOD", "300ms")
}

#[track_caller]
fn hint(block: &str) -> u64 {
    block.strip_prefix("retry: ").unwrap_or_else(|| panic!("{block:?} is no hint")).parse().unwrap()
}

/// All blocks of a stream, up to its end, which has to be clean.
#[track_caller]
fn blocks(stream: &mut Stream) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(block) = stream.block().unwrap() {
        all.push(block);
    }
    all
}

#[test]
fn a_reload_ends_a_stream_between_two_events_and_says_when_to_come_again() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).set("REGATTA_DRAIN__TIMEOUT", "60s").start();
    let mut streams: Vec<_> = (0..8).map(|_| Stream::open(fleet.listen, "/ticks/close/1000000")).collect();
    for stream in &mut streams {
        assert!((500..=1500).contains(&hint(&stream.block().unwrap().unwrap())));
        assert_eq!(stream.event().id, "0");
        assert_eq!(stream.response.header("X-Accel-Buffering"), "no");
        assert_eq!(stream.response.header("Cache-Control"), "no-cache", "the handler's own stays");
    }
    let begin = Instant::now();
    let before = fleet.workers();
    fleet.signal(Signal::SIGHUP);
    for stream in &mut streams {
        let all = blocks(stream);
        let (last, events) = all.split_last().unwrap();
        assert!((50..=1000).contains(&hint(last)), "{last}");
        for (n, event) in events.iter().enumerate() {
            assert!(event.contains(&format!("id: {}", n + 1)) && event.contains("data: tick"), "{event}");
        }
    }
    wait::until("the old worker is gone", wait::LONG, || {
        fleet.workers().iter().all(|pid| !before.contains(pid))
    });
    assert!(begin.elapsed() < Duration::from_secs(30), "streams hold no drain up: {:?}", begin.elapsed());
    assert!(fleet.log_lines("connections aborted").is_empty(), "{}", fleet.log());
}

#[test]
fn an_operators_stream_ends_as_well_and_takes_no_place_of_visitors() {
    let redis = TestRedis::shared();
    let plan = plan(&redis).workers(1).set("REGATTA_BROADCAST__MAX_SUBSCRIBERS", "1");
    let fleet = plan.set("REGATTA_DRAIN__TIMEOUT", "60s").start();
    let visitor = Stream::open(fleet.listen, "/ticks/close/1000000");
    let mut operator = Stream::open(fleet.admin, "/ticks/close/1000000");
    operator.event();
    fleet.signal(Signal::SIGHUP);
    let all = blocks(&mut operator);
    assert!((50..=1000).contains(&hint(all.last().unwrap())));
    drop(visitor);
}

#[test]
fn a_stop_ends_streams_and_waits_for_none() {
    let redis = TestRedis::shared();
    let mut fleet = plan(&redis).workers(1).set("REGATTA_DRAIN__TIMEOUT", "60s").start();
    let mut stream = Stream::open(fleet.listen, "/ticks/close/1000000");
    stream.event();
    assert_eq!(fleet.stop(), 0);
    let all = blocks(&mut stream);
    assert!((50..=1000).contains(&hint(all.last().unwrap())));
}

#[test]
fn a_stream_that_is_to_finish_is_complete_over_a_reload() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).set("REGATTA_DRAIN__TIMEOUT", "30s").start();
    let mut stream = Stream::open(fleet.listen, "/ticks/finish/100");
    stream.block().unwrap();
    assert_eq!(stream.event().id, "0");
    fleet.signal(Signal::SIGHUP);
    let events = blocks(&mut stream).into_iter().filter(|block| block.contains("data: tick")).count();
    assert_eq!(events, 99);
}

#[test]
fn a_stream_that_is_to_finish_and_does_not_ends_shortly_before_the_drain() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).set("REGATTA_DRAIN__TIMEOUT", "3s").start();
    let mut stream = Stream::open(fleet.listen, "/ticks/finish/1000000");
    stream.event();
    fleet.signal(Signal::SIGHUP);
    let all = blocks(&mut stream);
    assert!((50..=1000).contains(&hint(all.last().unwrap())));
    assert!(fleet.log_lines("connections aborted").is_empty(), "{}", fleet.log());
}

#[test]
fn beyond_the_bound_streams_are_refused_with_a_time_to_come_again() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).set("REGATTA_BROADCAST__MAX_SUBSCRIBERS", "3").start();
    let mut streams: Vec<_> = (0..3).map(|_| Stream::open(fleet.listen, "/ticks/close/1000000")).collect();
    for _ in 0..3 * 16 {
        let refused = client::get(fleet.listen, "/ticks/close/1000000");
        refused.assert_problem(503);
        assert_eq!(refused.header("Retry-After"), "1");
    }
    streams.iter_mut().for_each(|stream| _ = stream.event());
    drop(streams.pop());
    wait::until("a place is free", wait::LONG, || {
        let mut connection = Connection::open(fleet.listen).unwrap();
        connection.send(&Request::get("/ticks/close/1").bytes()).unwrap();
        connection.receive(true).unwrap().status == 200
    });
}

#[test]
fn a_client_that_is_gone_gives_its_place_back_although_nothing_is_said() {
    let redis = TestRedis::shared();
    let plan = plan(&redis).workers(1).set("REGATTA_BROADCAST__MAX_SUBSCRIBERS", "1");
    let fleet = plan.set("REGATTA_BROADCAST__KEEP_ALIVE_INTERVAL", "200ms").start();
    let mut silent = Stream::open(fleet.listen, "/silence");
    hint(&silent.block().unwrap().unwrap());
    for _ in 0..3 {
        assert_eq!(silent.block().unwrap().as_deref(), Some(":"));
    }
    drop(silent);
    wait::until("its place is free", wait::LONG, || {
        let mut connection = Connection::open(fleet.listen).unwrap();
        connection.send(&Request::get("/silence").bytes()).unwrap();
        match connection.receive(true) {
            Ok(response) => response.status == 200,
            Err(Failure::TimedOut) => panic!("no answer"),
            Err(_) => false,
        }
    });
}
