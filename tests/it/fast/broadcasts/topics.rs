//! A worker hears the topics of its own clients and no others, and none is missed for it.

use std::time::Duration;

use regatta::__internals::broadcasts::{BroadcastHub, Subscription, keys as broadcast_keys};
use regatta::__internals::config::settings::{BroadcastConfig, ScriptingMode};
use regatta::__internals::redis::keys;

use crate::support::broadcasts::{next, numbers, settings, text, topic};
use crate::support::redis::{TestRedis, connect, eventually};
use regatta::__internals::request_state::StateClient;

async fn worker(server: &TestRedis) -> (StateClient, BroadcastHub) {
    let redis = connect(server, "p", ScriptingMode::Auto).await;
    let hub = BroadcastHub::new(
        redis.redis().clone(),
        &BroadcastConfig { max_topics: 2000, max_message_size: 1024, ..settings() },
    );
    hub.start();
    (redis, hub)
}

/// How many channels of topics have listeners.
fn channels(server: &TestRedis) -> usize {
    server.cli(&["PUBSUB", "CHANNELS", "p:b:*"]).lines().filter(|line| !line.is_empty()).count()
}

#[tokio::test]
async fn a_worker_whose_clients_want_nothing_hears_nothing() {
    let server = TestRedis::start();
    let (busy_redis, busy) = worker(&server).await;
    let (quiet_redis, quiet) = worker(&server).await;
    let mut here = busy.subscribe(&topic("a"), None).await.unwrap();
    let mut elsewhere = quiet.subscribe(&topic("b"), None).await.unwrap();
    for number in 0..100 {
        quiet.publish(&topic("a"), &number.to_string()).await.unwrap();
        busy.publish(&topic("nobody"), "x").await.unwrap();
    }
    assert_eq!(numbers(&mut here, 100).await, (0..100).collect::<Vec<_>>());
    assert_eq!((quiet_redis.notifications_received(), busy_redis.notifications_received()), (0, 100));
    busy.publish(&topic("b"), "this").await.unwrap();
    assert_eq!(text(&mut elsewhere).await, "this");
    assert_eq!(quiet_redis.notifications_received(), 1);
    assert_eq!(channels(&server), 2);
}

#[tokio::test]
async fn a_topic_that_everybody_has_left_is_no_longer_heard_after_a_moment() {
    let server = TestRedis::start();
    let (redis, hub) = worker(&server).await;
    let first = hub.subscribe(&topic("a"), None).await.unwrap();
    let second = hub.subscribe(&topic("a"), None).await.unwrap();
    drop(first);
    drop(second);
    // A client that comes back in that moment finds it heard.
    let mut back = hub.subscribe(&topic("a"), None).await.unwrap();
    hub.publish(&topic("a"), "1").await.unwrap();
    assert_eq!(text(&mut back).await, "1");
    drop(back);
    eventually("it is left", async || channels(&server) == 0).await;
    let heard = redis.notifications_received();
    hub.publish(&topic("a"), "2").await.unwrap();
    let mut again = hub.subscribe(&topic("a"), None).await.unwrap();
    hub.publish(&topic("a"), "3").await.unwrap();
    assert_eq!((text(&mut again).await, redis.notifications_received()), ("3".into(), heard + 1));
}

#[tokio::test]
async fn more_topics_than_one_command_takes_are_heard_again_after_a_loss() {
    const TOPICS: usize = 700;
    let server = TestRedis::start();
    let (redis, hub) = worker(&server).await;
    let (_, other) = worker(&server).await;
    let mut all: Vec<Subscription> = Vec::new();
    for number in 0..TOPICS {
        all.push(hub.subscribe(&topic(&number.to_string()), None).await.unwrap());
    }
    for round in 0..2 {
        eventually("all are heard", async || {
            channels(&server) == TOPICS && redis.notifications_complete_since().is_some()
        })
        .await;
        for (number, subscription) in all.iter_mut().enumerate().step_by(13) {
            other.publish(&topic(&number.to_string()), &round.to_string()).await.unwrap();
            assert_eq!(numbers(subscription, 1).await, [round]);
        }
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        // What is published meanwhile comes, too.
        other.publish(&topic("5"), "9").await.unwrap();
        assert_eq!(numbers(&mut all[5], 1).await, [9]);
    }
    assert_eq!(hub.totals().gaps, 0);
}

#[tokio::test]
async fn what_is_published_while_somebody_subscribes_comes_once_or_was_there_before() {
    let server = TestRedis::start();
    let (_, publisher) = worker(&server).await;
    let go_on = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let until = std::sync::Arc::clone(&go_on);
    let publishing = tokio::spawn(async move {
        for number in 0_usize.. {
            if !until.load(std::sync::atomic::Ordering::Relaxed) {
                return number;
            }
            publisher.publish(&topic("a"), &number.to_string()).await.unwrap();
        }
        0
    });
    for _ in 0..20 {
        let (_, hub) = worker(&server).await;
        let mut here = hub.subscribe(&topic("a"), None).await.unwrap();
        let read = numbers(&mut here, 50).await;
        assert!(read.windows(2).all(|pair| pair[1] == pair[0] + 1), "{read:?}");
        assert_eq!(hub.totals().gaps, 0);
    }
    go_on.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(publishing.await.unwrap() > 50);
}

#[tokio::test]
async fn names_of_topics_are_no_other_channel_s() {
    let server = TestRedis::start();
    let (_, hub) = worker(&server).await;
    let names = ["news", "w:x", "b:a", ":", "a:b", "p:b:a", "@1:b:a"];
    let mut all = Vec::new();
    for name in names {
        all.push(hub.subscribe(&topic(&name.replace('@', "-")), None).await.unwrap());
    }
    for (name, subscription) in names.iter().zip(&mut all) {
        hub.publish(&topic(&name.replace('@', "-")), name).await.unwrap();
        assert_eq!(text(subscription).await, *name);
    }
    for subscription in &mut all {
        assert!(tokio::time::timeout(Duration::from_millis(20), next(subscription)).await.is_err());
    }
    assert_ne!(broadcast_keys::channel("news").name("p"), keys::notifications_channel("p"));
}
