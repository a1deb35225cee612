//! Broadcasts while connections are cut and Redis forgets, restarts or is away: every message once and in order.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use regatta::__internals::broadcasts::{
    BroadcastError, BroadcastHub, MessageId, Subscription, SubscriptionEvent, TopicName,
};
use regatta::__internals::config::settings::{BroadcastConfig, ScriptingMode};
use tokio::task::JoinSet;

use crate::support::broadcasts::{gap, hub, hub_with, next, nothing, numbers, settings, text, topic};
use crate::support::redis::{TestRedis, eventually};
use crate::support::wait;

/// Publishes one message however often it takes; whether it may be there twice.
async fn insist(hub: &BroadcastHub, topic: &TopicName, text: &str) -> (MessageId, bool) {
    let mut doubtful = false;
    let begun = Instant::now();
    loop {
        match hub.publish(topic, text).await {
            Ok(id) => return (id, doubtful),
            Err(BroadcastError::Redis(error)) => {
                assert!(begun.elapsed() < wait::LONG, "nobody takes it: {error}");
                doubtful = true;
            }
            Err(other) => panic!("{other}"),
        }
        wait::paced(Duration::from_millis(5)).await;
    }
}

/// Every message until `end`: (id, text). A gap is a failure.
async fn all(mut subscription: Subscription) -> Vec<(MessageId, String)> {
    let mut read = Vec::new();
    loop {
        match next(&mut subscription).await {
            SubscriptionEvent::Message(message) if message.text() == "end" => return read,
            SubscriptionEvent::Message(message) => read.push((message.id(), message.text().to_owned())),
            other => panic!("{other:?} after {} messages", read.len()),
        }
    }
}

/// What a topic holds: (id, text), by the server itself.
fn stored(server: &TestRedis, topic: &TopicName) -> Vec<(MessageId, String)> {
    let lines = server.cli(&["XRANGE", &format!("p:{{b}}:topic:{topic}"), "-", "+"]);
    let lines: Vec<&str> = lines.lines().collect();
    let entries = lines.chunks_exact(5).map(|entry| (entry[0].parse().unwrap(), entry[4].to_owned()));
    entries.filter(|(_, text)| text != "end").collect()
}

/// 4 publishers, `count` messages over 3 topics, while `disturb` goes on; every subscriber gets what the streams hold.
async fn disturbed(server: &mut TestRedis, count: usize, mut disturb: impl FnMut(&mut TestRedis, usize)) {
    let keep_all = BroadcastConfig { retention_messages: 100_000, max_lag: 65_536, ..settings() };
    let topics: Arc<[TopicName]> = ["a", "b", "c"].map(topic).into();
    let mut hubs = Vec::new();
    for _ in 0..2 {
        hubs.push(hub_with(server, ScriptingMode::Auto, &keep_all).await);
    }
    let mut readers = JoinSet::new();
    for topic in topics.iter() {
        // Of a topic that is empty no one could prove that it was so while news were away.
        insist(&hubs[0], topic, "0").await;
        for hub in &hubs {
            let subscription = hub.subscribe(topic, Some(MessageId::ZERO)).await.unwrap();
            let name = topic.clone();
            readers.spawn(async move { (name, all(subscription).await) });
        }
    }
    let published = Arc::new(AtomicBool::new(false));
    let mut publishers = JoinSet::new();
    for publisher in 0..4_usize {
        let (hub, topics) = (hubs[publisher % hubs.len()].clone(), Arc::clone(&topics));
        publishers.spawn(async move {
            for number in (publisher..count).step_by(4) {
                insist(&hub, &topics[number % topics.len()], &number.to_string()).await;
            }
        });
    }
    let done = Arc::clone(&published);
    let work = async {
        publishers.join_all().await;
        done.store(true, Relaxed);
    };
    let trouble = async {
        let mut round = 0;
        while !published.load(Relaxed) {
            disturb(server, round);
            round += 1;
            wait::paced(Duration::from_millis(40)).await;
        }
        round
    };
    let ((), rounds) = tokio::join!(work, trouble);
    for topic in topics.iter() {
        insist(&hubs[0], topic, "end").await;
    }
    let mut seen = vec![false; count];
    for (topic, read) in readers.join_all().await {
        assert!(read.is_sorted_by(|left, right| left.0 < right.0), "{topic}: order");
        assert_eq!(read, stored(server, &topic), "{topic}");
        read.iter().for_each(|(_, text)| seen[text.parse::<usize>().unwrap()] = true);
    }
    assert!(seen.iter().all(|seen| *seen), "every message that was accepted");
    let read: u64 = hubs.iter().map(|hub| hub.totals().catch_up_reads).sum();
    eprintln!("{count} messages, {rounds} disturbances, {read} reads of what was not heard");
}

#[tokio::test]
async fn four_publishers_lose_nothing_and_reorder_nothing() {
    let mut server = TestRedis::start();
    disturbed(&mut server, 10_000, |_, _| {}).await;
}

#[tokio::test]
async fn news_connections_that_are_killed_again_and_again_cost_no_message() {
    let mut server = TestRedis::start();
    disturbed(&mut server, 10_000, |server, _| {
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    })
    .await;
}

#[tokio::test]
async fn all_connections_that_are_killed_again_and_again_cost_no_message() {
    let mut server = TestRedis::start();
    disturbed(&mut server, 4000, |server, round| {
        server.cli(&["CLIENT", "KILL", "TYPE", if round % 2 == 0 { "normal" } else { "pubsub" }]);
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_is_killed_and_keeps_its_data_costs_no_message() {
    let mut server = TestRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    disturbed(&mut server, 2000, |server, round| {
        if round % 10 == 5 {
            server.restart();
        }
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_forgets_everything_does_not_stop_anybody() {
    let server = TestRedis::start();
    let (one, other, chat) =
        (hub(&server, ScriptingMode::Auto).await, hub(&server, ScriptingMode::Auto).await, topic("chat"));
    let mut here = other.subscribe(&chat, None).await.unwrap();
    for number in 0..200_usize {
        if number % 10 == 5 {
            server.cli(&["FLUSHALL"]);
        }
        one.publish(&chat, &number.to_string()).await.unwrap();
    }
    assert_eq!(numbers(&mut here, 200).await, (0..200).collect::<Vec<_>>());
    nothing(&mut here).await;
    assert_eq!(other.totals().gaps, 0);
}

#[tokio::test]
async fn a_redis_that_restarts_with_nothing_is_told_once_and_goes_on() {
    let mut server = TestRedis::start();
    let (one, chat) = (hub(&server, ScriptingMode::Auto).await, topic("chat"));
    let mut here = one.subscribe(&chat, None).await.unwrap();
    insist(&one, &chat, "1").await;
    assert_eq!(text(&mut here).await, "1");
    server.restart();
    // Whether it held more is not known any more.
    gap(&mut here).await;
    insist(&one, &chat, "2").await;
    assert_eq!(text(&mut here).await, "2");
    let mut back = one.subscribe(&chat, Some(MessageId::ZERO)).await.unwrap();
    assert_eq!(text(&mut back).await, "2");
}

#[tokio::test]
async fn while_redis_is_away_nobody_publishes_and_nobody_leaves() {
    let mut server = TestRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (one, chat) = (hub(&server, ScriptingMode::Auto).await, topic("chat"));
    let mut here = one.subscribe(&chat, None).await.unwrap();
    let (first, _) = insist(&one, &chat, "1").await;
    let (second, _) = insist(&one, &chat, "2").await;
    assert_eq!((text(&mut here).await, text(&mut here).await), ("1".into(), "2".into()));
    server.kill();
    assert!(matches!(one.publish(&chat, "x").await, Err(BroadcastError::Redis(_))));
    // A topic that is known here can be come back to; one that is not, cannot.
    let mut back = one.subscribe(&chat, Some(first)).await.unwrap();
    assert_eq!(text(&mut back).await, "2");
    let mut far_back = one.subscribe(&chat, Some(MessageId::ZERO)).await.unwrap();
    let unknown = one.subscribe(&topic("unknown"), None).await;
    assert!(matches!(unknown, Err(BroadcastError::Redis(_))), "{unknown:?}");
    assert_eq!(one.totals().topics, 1);
    server.restart();
    let (third, _) = insist(&one, &chat, "3").await;
    assert!(third > second);
    for subscription in [&mut here, &mut back] {
        assert_eq!(text(subscription).await, "3");
    }
    assert_eq!(text(&mut far_back).await, "1");
    assert_eq!((text(&mut far_back).await, text(&mut far_back).await), ("2".into(), "3".into()));
}

#[tokio::test]
async fn without_news_messages_come_late_and_all_the_same() {
    let server = TestRedis::start();
    server.cli(&["ACL", "SETUSER", "default", "resetchannels"]);
    let (one, other, chat) =
        (hub(&server, ScriptingMode::Auto).await, hub(&server, ScriptingMode::Auto).await, topic("chat"));
    let mut here = other.subscribe(&chat, None).await.unwrap();
    for number in 0..10 {
        one.publish(&chat, &number.to_string()).await.unwrap();
    }
    assert_eq!(numbers(&mut here, 10).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn something_else_under_a_topic_s_key_concerns_that_topic_only() {
    let server = TestRedis::start();
    let (one, chat, other) = (hub(&server, ScriptingMode::Auto).await, topic("chat"), topic("other"));
    let mut here = one.subscribe(&chat, None).await.unwrap();
    let mut there = one.subscribe(&other, None).await.unwrap();
    server.cli(&["SET", "p:{b}:topic:chat", "something else"]);
    assert!(matches!(one.publish(&chat, "x").await, Err(BroadcastError::Redis(_))));
    server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    one.publish(&other, "1").await.unwrap();
    assert_eq!(text(&mut there).await, "1");
    server.cli(&["DEL", "p:{b}:topic:chat"]);
    eventually("it goes on", async || one.publish(&chat, "2").await.is_ok()).await;
    loop {
        match next(&mut here).await {
            SubscriptionEvent::Message(message) => break assert_eq!(message.text(), "2"),
            SubscriptionEvent::Gap => {}
            SubscriptionEvent::Lagged => panic!("slow"),
        }
    }
}

#[tokio::test]
async fn what_is_no_message_in_a_topic_s_stream_is_passed_over() {
    let server = TestRedis::start();
    let (one, chat) = (hub(&server, ScriptingMode::Auto).await, topic("chat"));
    let mut here = one.subscribe(&chat, None).await.unwrap();
    let foreign = || server.cli(&["XADD", "p:{b}:topic:chat", "*", "who", "knows"]);
    one.publish(&chat, "0").await.unwrap();
    for number in 1..5_usize {
        (0..number).for_each(|_| drop(foreign()));
        one.publish(&chat, &number.to_string()).await.unwrap();
    }
    assert_eq!(numbers(&mut here, 5).await, [0, 1, 2, 3, 4]);
    foreign();
    // Someone who comes later, whose topic ends with such a thing.
    let late = hub(&server, ScriptingMode::Auto).await;
    let mut back = late.subscribe(&chat, Some(MessageId::ZERO)).await.unwrap();
    assert_eq!(numbers(&mut back, 5).await, [0, 1, 2, 3, 4]);
    let mut new = late.subscribe(&chat, None).await.unwrap();
    one.publish(&chat, "5").await.unwrap();
    for subscription in [&mut here, &mut back, &mut new] {
        assert_eq!(numbers(subscription, 1).await, [5]);
    }
    assert_eq!((one.totals().gaps, late.totals().gaps), (0, 0));
}

#[tokio::test]
async fn an_empty_topic_s_redis_that_restarts_with_nothing_is_told() {
    let mut server = TestRedis::start();
    let (one, chat, other) = (hub(&server, ScriptingMode::Auto).await, topic("chat"), topic("other"));
    let mut here = one.subscribe(&chat, None).await.unwrap();
    let mut there = one.subscribe(&other, None).await.unwrap();
    for number in 0..3 {
        one.publish(&other, &number.to_string()).await.unwrap();
    }
    assert_eq!(numbers(&mut there, 3).await, [0, 1, 2]);
    nothing(&mut here).await;
    server.restart();
    // Someone may have published something, and no one knows of it.
    gap(&mut here).await;
    nothing(&mut here).await;
    insist(&one, &chat, "1").await;
    assert_eq!(text(&mut here).await, "1");
}
