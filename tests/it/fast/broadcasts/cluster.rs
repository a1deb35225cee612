//! Broadcasts over a real cluster: news reach listeners at another node, and no move of the topics costs a message.

use std::time::{Duration, Instant};

use regatta::__internals::broadcasts::{BroadcastHub, Subscription, SubscriptionEvent, TopicName};
use regatta::__internals::config::settings::ScriptingMode;

use crate::support::broadcasts::{next, settings, text, topic};
use crate::support::cluster_client::connect;
use crate::support::redis::eventually;
use crate::support::redis_cluster::TestRedisCluster;
use crate::support::wait;

async fn hub(cluster: &TestRedisCluster, mode: ScriptingMode) -> BroadcastHub {
    let hub = BroadcastHub::new(connect(cluster, mode).await, &settings());
    hub.start();
    hub
}

/// Publishes however often it takes.
async fn insist(hub: &BroadcastHub, topic: &TopicName, text: &str) {
    let begun = Instant::now();
    while let Err(error) = hub.publish(topic, text).await {
        assert!(begun.elapsed() < wait::LONG, "nobody takes it: {error}");
        wait::paced(Duration::from_millis(5)).await;
    }
}

/// Reads the numbers after `highest` up to `last`; returns how many gaps there were. Who publishes again what he does not know to be there may
/// publish it twice.
async fn rising(subscription: &mut Subscription, mut highest: usize, last: usize) -> usize {
    let mut gaps = 0;
    while highest < last {
        match next(subscription).await {
            SubscriptionEvent::Message(message) => {
                let number: usize = message.text().parse().unwrap();
                assert!(number == highest || number == highest + 1, "{number} after {highest}");
                highest = number;
            }
            SubscriptionEvent::Gap => gaps += 1,
            SubscriptionEvent::Lagged => panic!("slow"),
        }
    }
    gaps
}

#[tokio::test]
async fn every_worker_hears_of_it_whichever_node_it_listens_to() {
    let cluster = TestRedisCluster::start();
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let mut hubs = Vec::new();
        for _ in 0..4 {
            hubs.push(hub(&cluster, mode).await);
        }
        let (chat, other) = (topic("p:l:chat"), topic("other"));
        let mut everywhere = Vec::new();
        for hub in &hubs {
            for topic in [&chat, &other] {
                everywhere.push(hub.subscribe(topic, None).await.unwrap());
            }
        }
        let texts = ["p:{l:x}", "a\nb {b} \u{e9}", ""];
        for text in texts {
            hubs[0].publish(&chat, text).await.unwrap();
            hubs[1].publish(&other, text).await.unwrap();
        }
        for subscription in &mut everywhere {
            for expected in texts {
                assert_eq!(text(subscription).await, expected);
            }
        }
        let mut here = hubs[2].presence(&chat);
        eventually("all are counted", async || here.next().await == 4).await;
        drop(everywhere);
        let mut back =
            hubs[3].subscribe(&chat, Some(regatta::__internals::broadcasts::MessageId::ZERO)).await.unwrap();
        if mode == ScriptingMode::Evalsha {
            for expected in texts {
                assert_eq!(text(&mut back).await, expected);
            }
        }
        for expected in texts {
            assert_eq!(text(&mut back).await, expected);
        }
        let keys = cluster.keys();
        assert!(keys.contains(&"p:{b}:topic:p:l:chat".to_owned()), "{keys:?}");
    }
}

#[tokio::test]
async fn topics_may_move_to_another_node_while_they_are_used() {
    let cluster = TestRedisCluster::start();
    let (one, other, chat) =
        (hub(&cluster, ScriptingMode::Auto).await, hub(&cluster, ScriptingMode::Auto).await, topic("chat"));
    let mut here = other.subscribe(&chat, None).await.unwrap();
    let moving = one.clone();
    let publisher = tokio::spawn(async move {
        for number in 1..=400 {
            insist(&moving, &topic("chat"), &number.to_string()).await;
        }
    });
    let from = cluster.owner("p:{b}:topic:chat");
    let slot = cluster.slot("p:{b}:topic:chat");
    let to = (from + 1) % 3;
    let moving = tokio::task::spawn_blocking(move || {
        cluster.migrate(&slot, to, || {});
        cluster
    });
    let (cluster, gaps) = tokio::join!(moving, rising(&mut here, 0, 400));
    let cluster = cluster.unwrap();
    assert_eq!(gaps, 0);
    publisher.await.unwrap();
    assert_eq!(cluster.owner("p:{b}:topic:chat"), to);
    assert_eq!(other.totals().gaps, 0);
}

#[tokio::test]
async fn a_node_that_dies_costs_at_most_what_its_replica_had_not() {
    let mut cluster = TestRedisCluster::start();
    let (one, other, chat) =
        (hub(&cluster, ScriptingMode::Auto).await, hub(&cluster, ScriptingMode::Auto).await, topic("chat"));
    // The topics lie where there is a replica.
    let slot = cluster.slot("p:{b}:topic:chat");
    let owner = cluster.owner("p:{b}:topic:chat");
    if owner != 0 {
        cluster.migrate(&slot, 0, || {});
    }
    let mut here = other.subscribe(&chat, None).await.unwrap();
    for number in 1..=20 {
        insist(&one, &chat, &number.to_string()).await;
    }
    assert_eq!(rising(&mut here, 0, 20).await, 0);
    cluster.nodes[0].kill();
    for number in 21..=40 {
        insist(&one, &chat, &number.to_string()).await;
    }
    let gaps = rising(&mut here, 20, 40).await;
    let mut back =
        other.subscribe(&chat, Some(regatta::__internals::broadcasts::MessageId::ZERO)).await.unwrap();
    assert_eq!(rising(&mut back, 0, 40).await, 0, "the replica had it all");
    eprintln!("a node's death: {gaps} gaps told");
}
