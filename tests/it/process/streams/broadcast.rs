//! Broadcasts as clients and operators of a fleet see them.

use nix::sys::signal::Signal;

use crate::support::exposition::sum;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::stream::{Event, Stream, publish};
use crate::support::{process, wait};

/// A figure of all slots.
fn metric(fleet: &TestFleet, name: &str) -> f64 {
    sum(&fleet.operator("/metrics").text(), name, &[])
}

fn is_gap(event: &Event) -> bool {
    event.name == "gap"
}

/// Where a client is told to go on.
fn place(stream: &mut Stream) -> String {
    let block = stream.block().unwrap().unwrap();
    let (id, data) =
        block.strip_prefix("event: start\nid: ").and_then(|rest| rest.split_once('\n')).expect("a place");
    assert_eq!(data.strip_prefix("data: "), Some(id));
    id.to_owned()
}

#[test]
fn a_gap_is_told_once_however_often_its_client_comes_again() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let ids: Vec<_> = (0..5).map(|n| publish(fleet.listen, "t", &n.to_string())).collect();
    let key = format!("{}:{{b}}:topic:t", fleet.plan().prefix());
    assert_eq!(redis.cli(&["XTRIM", &key, "MAXLEN", "1"]), "4");
    let mut stream = Stream::resume(fleet.listen, "/events?topic=t", &ids[1]);
    assert!(is_gap(&stream.event()));
    let event = stream.event();
    assert_eq!((event.data.as_str(), &event.id), ("4", &ids[4]));

    // All of it is gone, and nothing comes that would give the client another place.
    redis.cli(&["DEL", &key]);
    drop(stream);
    wait::until("nobody is there", wait::LONG, || metric(&fleet, "regatta_broadcast_subscribers") == 0.0);
    // A worker that still listens knows that nothing is missing.
    let channel = format!("{}:b:t", fleet.plan().prefix());
    wait::until("no worker listens", wait::LONG, || redis.cli(&["PUBSUB", "CHANNELS", &channel]).is_empty());
    let mut stream = Stream::resume(fleet.listen, "/events?topic=t", &ids[4]);
    assert!(is_gap(&stream.event()));
    let place = place(&mut stream);
    let mut again = Stream::resume(fleet.listen, "/events?topic=t", &place);
    let last = publish(fleet.listen, "t", "5");
    for stream in [&mut stream, &mut again] {
        let event = stream.event();
        assert_eq!((event.data.as_str(), &event.id), ("5", &last));
    }
    wait::until("both gaps are counted", wait::LONG, || {
        metric(&fleet, "regatta_broadcast_gaps_total") == 2.0
    });
}

#[test]
fn totals_outlive_workers_and_who_leaves_is_no_longer_counted() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let mut streams: Vec<_> = (0..8).map(|_| Stream::open(fleet.listen, "/events?topic=t")).collect();
    wait::until("all are counted", wait::LONG, || metric(&fleet, "regatta_broadcast_subscribers") == 8.0);
    for n in 0..10 {
        publish(fleet.listen, "t", &n.to_string());
    }
    streams.iter_mut().for_each(|stream| assert_eq!(stream.messages(10).len(), 10));
    let told = || {
        ["published", "delivered"]
            .map(|what| metric(&fleet, &format!("regatta_broadcast_messages_{what}_total")))
    };
    wait::until("all is told", wait::LONG, || told() == [10.0, 80.0]);
    let key = format!("{}:{{b}}:here:t", fleet.plan().prefix());
    let here = || {
        let words = redis.cli(&["HVALS", &key]);
        words.lines().filter_map(|word| word.split(' ').next()?.parse::<u32>().ok()).sum::<u32>()
    };
    wait::until("each worker says how many are here", wait::LONG, || here() == 8);
    let before = fleet.workers();
    fleet.signal(Signal::SIGHUP);
    wait::until("all slots have new workers", wait::LONG, || {
        let now = fleet.workers();
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
    drop(streams);
    wait::until("nobody is here", wait::LONG, || here() == 0);
    process::signal(fleet.workers()[0], Signal::SIGKILL);
    wait::until("the slot is taken again", wait::LONG, || fleet.workers().len() == 2);
    assert_eq!(told(), [10.0, 80.0]);
    assert_eq!(metric(&fleet, "regatta_broadcast_subscribers"), 0.0);
}
