//! Broadcasts: every message once, in order and on every worker; a client that comes back goes on where it was.

use std::time::Duration;

use regatta::__internals::broadcasts::{
    BroadcastError, BroadcastHub, MessageId, SubscriptionEvent, TopicName,
};
use regatta::__internals::config::settings::{BroadcastConfig, ScriptingMode};
use regatta::__internals::redis;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::broadcasts::{LONG, gap, hub, hub_with, next, nothing, numbers, settings, text, topic};
use crate::support::redis::{TestRedis, calls, connect, eventually};
use crate::support::wait;

/// Publishes numbers.
async fn publish(hub: &BroadcastHub, topic: &TopicName, numbers: std::ops::Range<usize>) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for number in numbers {
        ids.push(hub.publish(topic, &number.to_string()).await.unwrap());
    }
    ids
}

#[tokio::test]
async fn what_one_worker_publishes_every_worker_s_subscribers_get() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let server = TestRedis::start();
        let (one, other) = (hub(&server, mode).await, hub(&server, mode).await);
        let (chat, news) = (topic("chat"), topic("news"));
        let mut at_one = one.subscribe(&chat, None).await.unwrap();
        let mut at_other = other.subscribe(&chat, None).await.unwrap();
        let mut elsewhere = other.subscribe(&news, None).await.unwrap();
        let strange = ["hello", "", " two  spaces ", "a\nb\r\nc\r", "é\u{1f6a3} \0", "b chat 0-0 9-9 x"];
        for message in strange {
            one.publish(&chat, message).await.unwrap();
        }
        for message in strange {
            assert_eq!(
                (text(&mut at_one).await, text(&mut at_other).await),
                (message.into(), message.into())
            );
        }
        assert_eq!(at_one.last_id(), at_other.last_id());
        other.publish(&news, "this").await.unwrap();
        assert_eq!(text(&mut elsewhere).await, "this");
        nothing(&mut at_one).await;
        assert_eq!((one.subscribers(), other.subscribers()), (1, 2));
    }
}

#[tokio::test]
async fn who_comes_back_resumes_after_any_message_without_gap_or_duplicate() {
    const MESSAGES: usize = 40;
    let server = TestRedis::start();
    let (one, chat) = (hub(&server, ScriptingMode::Auto).await, topic("chat"));
    // A worker that has listened all along, and one that comes later.
    let _there = one.subscribe(&chat, None).await.unwrap();
    let ids = publish(&one, &chat, 0..MESSAGES).await;
    let late = hub(&server, ScriptingMode::Auto).await;
    let _there_too = late.subscribe(&chat, None).await.unwrap();
    for hub in [&one, &late] {
        for (index, id) in ids.iter().enumerate().rev() {
            let mut back = hub.subscribe(&chat, Some(*id)).await.unwrap();
            let missed: Vec<usize> = (index + 1..MESSAGES).collect();
            assert_eq!(numbers(&mut back, missed.len()).await, missed);
            assert_eq!(back.last_id(), ids.last().copied());
        }
        let mut all = hub.subscribe(&chat, Some(MessageId::ZERO)).await.unwrap();
        assert_eq!(numbers(&mut all, MESSAGES).await, (0..MESSAGES).collect::<Vec<_>>());
        nothing(&mut all).await;
        assert_eq!(hub.totals().gaps, 0);
    }
}

#[tokio::test]
async fn many_who_come_back_at_once_are_a_few_reads() {
    const CLIENTS: usize = 500;
    const MISSED: usize = 300;
    let server = TestRedis::start();
    let (one, chat) = (hub(&server, ScriptingMode::Auto).await, topic("chat"));
    let first = publish(&one, &chat, 0..1).await[0];
    publish(&one, &chat, 1..1 + MISSED).await;
    let successor = hub(&server, ScriptingMode::Auto).await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (hub, chat) = (successor.clone(), chat.clone());
        clients.spawn(async move {
            let mut back = hub.subscribe(&chat, Some(first)).await.unwrap();
            numbers(&mut back, MISSED).await
        });
    }
    for missed in clients.join_all().await {
        assert_eq!(missed, (1..=MISSED).collect::<Vec<_>>());
    }
    let reads = calls(&server, "xrange") + calls(&server, "xrevrange");
    assert!(reads <= 10, "{reads} reads for {CLIENTS} clients");
    assert_eq!(successor.subscribers(), 0);
}

#[tokio::test]
async fn who_needs_more_than_a_worker_remembers_reads_it_from_the_stream_while_others_write() {
    // So large that a worker remembers fewer than there are.
    const MESSAGES: usize = 1500;
    const LARGE: usize = 16 << 10;
    let server = TestRedis::start();
    let all = BroadcastConfig { retention_messages: 10_000, ..settings() };
    let (one, other, chat) = (
        hub_with(&server, ScriptingMode::Auto, &all).await,
        hub_with(&server, ScriptingMode::Auto, &all).await,
        topic("chat"),
    );
    let large = |number: usize| format!("{number} {}", "x".repeat(LARGE - 8));
    for number in 0..MESSAGES {
        one.publish(&chat, &large(number)).await.unwrap();
    }
    let mut back = other.subscribe(&chat, Some(MessageId::ZERO)).await.unwrap();
    for number in 0..2 * MESSAGES {
        if number < MESSAGES {
            one.publish(&chat, &large(MESSAGES + number)).await.unwrap();
        }
        let come = text(&mut back).await;
        assert_eq!(come.split(' ').next(), Some(number.to_string().as_str()));
    }
    nothing(&mut back).await;
}

#[tokio::test]
async fn a_history_that_was_trimmed_is_told_and_what_is_left_follows() {
    let server = TestRedis::start();
    let (one, chat) = (hub(&server, ScriptingMode::Auto).await, topic("chat"));
    let ids = publish(&one, &chat, 0..20).await;
    server.cli(&["XTRIM", "p:{b}:topic:chat", "MAXLEN", "5"]);
    let late = hub(&server, ScriptingMode::Auto).await;
    for after in [MessageId::ZERO, ids[0], ids[13]] {
        let mut back = late.subscribe(&chat, Some(after)).await.unwrap();
        gap(&mut back).await;
        assert_eq!(back.last_id(), Some(ids[14]), "where it is whole again");
        assert_eq!(numbers(&mut back, 5).await, [15, 16, 17, 18, 19]);
    }
    // What is trimmed is no longer there, and nothing lay between it and what is.
    for (at, after) in ids.iter().enumerate().skip(14) {
        let mut back = late.subscribe(&chat, Some(*after)).await.unwrap();
        assert_eq!(numbers(&mut back, 19 - at).await, (at + 1..20).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn redis_keeps_about_as_many_as_it_is_to_and_forgets_them_after_a_time() {
    let server = TestRedis::start();
    let kept = BroadcastConfig { retention_messages: 50, ..settings() };
    let (one, chat) = (hub_with(&server, ScriptingMode::Auto, &kept).await, topic("chat"));
    let mut here = one.subscribe(&chat, None).await.unwrap();
    let (ids, read) = tokio::join!(publish(&one, &chat, 0..1000), numbers(&mut here, 1000));
    assert_eq!(read, (0..1000).collect::<Vec<_>>());
    let length: u64 = server.cli(&["XLEN", "p:{b}:topic:chat"]).parse().unwrap();
    assert!((50..=200).contains(&length), "{length} messages");
    let left: u64 = server.cli(&["PTTL", "p:{b}:topic:chat"]).parse().unwrap();
    assert!((1..=3_600_000).contains(&left), "{left} ms");
    // An hour is over.
    server.cli(&["PEXPIRE", "p:{b}:topic:chat", "1"]);
    eventually("the topic is forgotten", async || !server.keys().contains(&"p:{b}:topic:chat".to_owned()))
        .await;
    // A client that was there goes on without a word; one that comes back cannot know.
    let next = publish(&one, &chat, 1000..1001).await[0];
    assert!(next > ids[999]);
    assert_eq!(numbers(&mut here, 1).await, [1000]);
    let other = hub_with(&server, ScriptingMode::Auto, &kept).await;
    let mut back = other.subscribe(&chat, Some(ids[999])).await.unwrap();
    gap(&mut back).await;
    nothing(&mut here).await;
}

#[tokio::test]
async fn a_slow_client_is_told_and_dropped_while_others_get_everything() {
    let server = TestRedis::start();
    let few = BroadcastConfig { max_lag: 10, ..settings() };
    let (one, chat) = (hub_with(&server, ScriptingMode::Auto, &few).await, topic("chat"));
    let mut slow = one.subscribe(&chat, None).await.unwrap();
    let mut quick = one.subscribe(&chat, None).await.unwrap();
    let mut read = Vec::new();
    for number in 0..200 {
        publish(&one, &chat, number..number + 1).await;
        read.extend(numbers(&mut quick, 1).await);
        if number == 2 {
            assert_eq!(numbers(&mut slow, 3).await, [0, 1, 2]);
        }
    }
    assert_eq!(read, (0..200).collect::<Vec<_>>());
    for _ in 0..2 {
        assert!(matches!(next(&mut slow).await, SubscriptionEvent::Lagged));
    }
    // It comes again, and nothing is lost.
    let after = slow.last_id();
    drop(slow);
    let mut again = one.subscribe(&chat, after).await.unwrap();
    assert_eq!(numbers(&mut again, 197).await, (3..200).collect::<Vec<_>>());
    let figures = one.totals();
    assert_eq!((figures.lagged, figures.published, figures.subscribers, figures.topics), (1, 200, 2, 1));
    assert_eq!(figures.delivered, 400);
}

#[tokio::test]
async fn a_client_that_is_ahead_of_its_new_worker_waits_for_what_it_has_not() {
    let server = TestRedis::start();
    let (one, other, chat) =
        (hub(&server, ScriptingMode::Auto).await, hub(&server, ScriptingMode::Auto).await, topic("chat"));
    let mut there = other.subscribe(&chat, None).await.unwrap();
    publish(&one, &chat, 0..1).await;
    assert_eq!(numbers(&mut there, 1).await, [0]);
    // Written by someone who told no one: the worker finds it by looking.
    let newest = server.cli(&["XREVRANGE", "p:{b}:topic:chat", "+", "-", "COUNT", "1"]);
    let before = newest.lines().next().unwrap();
    let ahead = server.cli(&["XADD", "p:{b}:topic:chat", "*", "p", before, "m", "1"]);
    let mut back = other.subscribe(&chat, Some(ahead.parse().unwrap())).await.unwrap();
    publish(&one, &chat, 2..3).await;
    assert_eq!(numbers(&mut back, 1).await, [2]);
    assert_eq!(numbers(&mut there, 2).await, [1, 2]);
    // An id that no one ever gave.
    let future = MessageId::from((1 << 62, 7));
    let mut back = other.subscribe(&chat, Some(future)).await.unwrap();
    gap(&mut back).await;
    assert_eq!(back.last_id(), there.last_id());
    publish(&one, &chat, 3..4).await;
    assert_eq!(numbers(&mut back, 1).await, [3]);
}

#[tokio::test]
async fn what_is_refused_says_which_bound_it_was() {
    let server = TestRedis::start();
    let tight = BroadcastConfig { max_message_size: 4, max_subscribers: 2, max_topics: 1, ..settings() };
    let (one, chat) = (hub_with(&server, ScriptingMode::Auto, &tight).await, topic("chat"));
    let told = |error: BroadcastError| error.to_string();
    let long = told(one.publish(&chat, "12345").await.unwrap_err());
    assert!(long.contains("4 bytes") && long.contains("broadcast.max_message_size"), "{long}");
    let first = one.subscribe(&chat, None).await.unwrap();
    let other = told(one.subscribe(&topic("other"), None).await.unwrap_err());
    assert!(other.contains("broadcast.max_topics"), "{other}");
    let _second = one.subscribe(&chat, None).await.unwrap();
    let third = told(one.subscribe(&chat, None).await.unwrap_err());
    assert!(third.contains("broadcast.max_subscribers"), "{third}");
    drop(first);
    one.subscribe(&chat, None).await.unwrap();
    assert_eq!(one.subscribers(), 1, "whoever is refused or leaves takes no place");

    let plain = hub(&server, ScriptingMode::Plain).await;
    for refused in
        [plain.publish(&chat, "x").await.map(|_| ()), plain.subscribe(&chat, None).await.map(|_| ())]
    {
        assert!(
            matches!(refused, Err(BroadcastError::Redis(redis::RedisError::Unsupported { .. }))),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_topic_nobody_subscribes_to_costs_nothing() {
    let server = TestRedis::start();
    let (one, other, chat) =
        (hub(&server, ScriptingMode::Auto).await, hub(&server, ScriptingMode::Auto).await, topic("chat"));
    let mut there = one.subscribe(&chat, None).await.unwrap();
    drop(other.subscribe(&chat, None).await.unwrap());
    assert_eq!(other.totals().topics, 0);
    publish(&other, &chat, 0..10).await;
    assert_eq!(numbers(&mut there, 10).await, (0..10).collect::<Vec<_>>());
    let figures = other.totals();
    assert_eq!((figures.delivered, figures.subscribers), (0, 0));
}

#[tokio::test]
async fn who_is_here_is_counted_over_all_workers() {
    let server = TestRedis::start();
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let (one, other, chat) = (hub(&server, mode).await, hub(&server, mode).await, topic("chat"));
        let mut here = one.presence(&chat);
        assert_eq!(here.count(), None);
        assert_eq!(timeout(LONG, here.next()).await.unwrap(), 0);
        let first = one.subscribe(&chat, None).await.unwrap();
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(other.subscribe(&chat, None).await.unwrap());
        }
        eventually("all four are here", async || here.next().await == 4).await;
        drop(others.pop());
        assert_eq!(timeout(LONG, here.next()).await.unwrap(), 3);
        // A worker that was killed is forgotten after a while, one that ends at once.
        let dead = connect(&server, "p", mode).await;
        let sums =
            dead.report_presence("dead", Duration::from_millis(1500), &[("chat", Some(40))]).await.unwrap();
        assert_eq!(sums, [43]);
        eventually("the dead are forgotten", async || here.next().await == 3).await;
        drop(others);
        other.shut_down().await;
        assert_eq!(server.cli(&["HLEN", "p:{b}:here:chat"]), "1");
        drop((first, one.presence(&topic("other")), here));
        one.shut_down().await;
        assert!(server.keys().iter().all(|key| !key.contains(":here:")), "{:?}", server.keys());
    }
}

#[tokio::test]
async fn nobody_asks_nothing_and_is_not_asked() {
    let server = TestRedis::start();
    let one = hub(&server, ScriptingMode::Auto).await;
    drop(one.subscribe(&topic("chat"), None).await.unwrap());
    eventually("it said so and took it back", async || {
        !server.keys().iter().any(|key| key.contains(":here:"))
    })
    .await;
    wait::pass(Duration::from_millis(1200)).await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    wait::pass(Duration::from_millis(2500)).await;
    let busy: Vec<_> = server
        .commands()
        .into_iter()
        .filter(|(name, _)| ["fcall", "xrange", "xrevrange"].contains(&name.as_str()))
        .collect();
    assert!(busy.is_empty(), "{busy:?}");
}

#[tokio::test]
async fn an_idle_topic_s_messages_are_not_read_again_and_again() {
    const TOPICS: usize = 20;
    let server = TestRedis::start();
    let (one, mut here) = (hub(&server, ScriptingMode::Auto).await, Vec::new());
    for number in 0..TOPICS {
        let topic = topic(&format!("t{number}"));
        here.push(one.subscribe(&topic, None).await.unwrap());
        one.publish(&topic, &"x".repeat(16 << 10)).await.unwrap();
        text(&mut here[number]).await;
    }
    server.cli(&["CONFIG", "RESETSTAT"]);
    eventually("it looks whether something was missed", async || calls(&server, "xlen") >= TOPICS as u64)
        .await;
    // One empty answer for each look, and nothing is read beside.
    let commands = server.commands();
    let (looks, reads) = (commands["xlen"], commands.get("xrange").copied().unwrap_or(0));
    assert!(reads <= looks, "{reads} reads in {looks} looks");
}

#[tokio::test]
async fn there_are_no_more_topics_than_their_largest_messages_have_room() {
    let server = TestRedis::start();
    let large = BroadcastConfig { max_message_size: 1 << 20, ..settings() };
    let (one, mut here) = (hub_with(&server, ScriptingMode::Auto, &large).await, Vec::new());
    let refused = loop {
        match one.subscribe(&topic(&format!("t{}", here.len())), None).await {
            Ok(subscription) => here.push(subscription),
            Err(error) => break error,
        }
    };
    assert_eq!((refused, here.len()), (BroadcastError::TooManyTopics { limit: 15 }, 15));
    for number in 0..3 {
        for (at, subscription) in here.iter_mut().enumerate() {
            let message = format!("{number} {}", "x".repeat(1_000_000));
            one.publish(&topic(&format!("t{at}")), &message).await.unwrap();
            assert_eq!(text(subscription).await, message);
        }
    }
}

#[tokio::test]
async fn what_is_not_at_hand_is_not_read_in_passing() {
    let server = TestRedis::start();
    let (one, chat) = (hub(&server, ScriptingMode::Auto).await, topic("chat"));
    publish(&one, &chat, 0..3).await;
    let late = hub(&server, ScriptingMode::Auto).await;
    let mut back = late.subscribe(&chat, Some(MessageId::ZERO)).await.unwrap();
    assert!(back.try_next().is_none());
    assert_eq!(numbers(&mut back, 1).await, [0]);
    for number in 1..3 {
        let at_hand = back.try_next();
        assert!(
            matches!(at_hand, Some(SubscriptionEvent::Message(message)) if message.text() == number.to_string())
        );
    }
    assert!(back.try_next().is_none());
    publish(&one, &chat, 3..4).await;
    assert_eq!(numbers(&mut back, 1).await, [3]);
}
