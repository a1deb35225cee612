//! A fleet hears its own news and no others, whatever database it has; and what strangers tell costs it nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, FunctionInterface, PubsubInterface, ServerInterface};
use fred::types::config::{Config, ServerConfig};
use regatta::__internals::broadcasts::BroadcastHub;
use regatta::__internals::config;
use regatta::__internals::config::ConfigInputs;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::{RedisClient, RedisStatus, keys};

use crate::support::broadcasts::{nothing, numbers, settings, text, topic};
use crate::support::redis::{TestRedis, eventually};

/// A worker's connection to a database of this server.
async fn worker(server: &TestRedis, database: u8) -> RedisClient {
    let url = format!("unix://{}?db={database}", server.socket().display());
    let flags = vec![("redis.url".to_owned(), url, "test".to_owned())];
    let url = config::load(&ConfigInputs { flags, ..ConfigInputs::default() }).unwrap().redis.url.unwrap();
    let redis = RedisClient::new(&server.settings("p", ScriptingMode::Auto), &url, "test").unwrap();
    redis.start();
    assert_eq!(redis.wait_for_first_attempt().await, RedisStatus::Up);
    redis
}

fn hub_of(redis: &RedisClient) -> BroadcastHub {
    let hub = BroadcastHub::new(redis.clone(), &settings());
    hub.start();
    hub
}

/// What a worker hears of one kind of common news.
async fn hears(redis: &RedisClient, kind: char) -> Arc<Mutex<Vec<String>>> {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let to = Arc::clone(&heard);
    redis.on_notification(kind, Arc::new(move |text: &str| to.lock().unwrap().push(text.to_owned())));
    eventually("it listens", async || redis.notifications_complete_since().is_some()).await;
    heard
}

#[tokio::test]
async fn fleets_with_one_prefix_on_two_databases_hear_nothing_of_each_other() {
    let server = TestRedis::start();
    let (one, other) = (worker(&server, 0).await, worker(&server, 1).await);
    let (hub_one, hub_other, chat) = (hub_of(&one), hub_of(&other), topic("chat"));
    let mut here = hub_one.subscribe(&chat, None).await.unwrap();
    let mut there = hub_other.subscribe(&chat, None).await.unwrap();
    let (limits, ends) = (hears(&one, 'l').await, hears(&one, 'e').await);
    let own = hears(&other, 'l').await;
    for number in 0..3 {
        hub_other.publish(&chat, &number.to_string()).await.unwrap();
    }
    assert_eq!(numbers(&mut there, 3).await, [0, 1, 2]);
    assert_eq!(other.reset_limit("p:l:a:v:x").await, Ok(false));
    eventually("its own fleet hears it", async || own.lock().unwrap().len() == 1).await;
    other.destroy_session("p", "digest", None, false).await.unwrap();
    nothing(&mut here).await;
    assert!(limits.lock().unwrap().is_empty() && ends.lock().unwrap().is_empty());
    assert_eq!(one.notifications_received(), 0);
    // And a message of its own follows on nothing strange.
    hub_one.publish(&chat, "9").await.unwrap();
    assert_eq!(text(&mut here).await, "9");
    assert_eq!((hub_one.totals().gaps, hub_one.totals().catch_up_reads), (0, 0));
}

#[tokio::test]
async fn what_strangers_tell_is_not_believed_and_costs_next_to_nothing() {
    let server = TestRedis::start();
    let redis = worker(&server, 0).await;
    let (hub, chat) = (hub_of(&redis), topic("chat"));
    let mut here = hub.subscribe(&chat, None).await.unwrap();
    let id = hub.publish(&chat, "0").await.unwrap();
    assert_eq!(text(&mut here).await, "0");
    // The mark of a fleet on another database of this server.
    let spy = listener(&server).await;
    let mut overheard = spy.message_rx();
    spy.subscribe("p:@2:b:chat").await.unwrap();
    spy.ping::<()>(None).await.unwrap();
    hub_of(&worker(&server, 2).await).publish(&chat, "x").await.unwrap();
    let theirs = overheard.recv().await.unwrap().value.as_string().unwrap();
    let mark = theirs.split(' ').next().unwrap();
    assert_eq!(mark.len(), 16, "{theirs}");
    server.cli(&["CONFIG", "RESETSTAT"]);
    let long = "9".repeat(100_000);
    let mut strange = Vec::new();
    for round in 0..200_u32 {
        let next = format!("{id} 99999999999999-{round} forged");
        for news in [
            format!("{mark} {next}"),
            format!(" {next}"),
            next.clone(),
            format!("b chat {next}"),
            format!("{mark} 0-0 {long} x"),
            String::new(),
            "t double".to_owned(),
            "\u{1} \u{1}".to_owned(),
        ] {
            if round < 20 {
                strange.push(["PUBLISH".to_owned(), "p:news".to_owned(), news.clone()]);
            }
            strange.push(["PUBLISH".to_owned(), "p:b:chat".to_owned(), news]);
        }
    }
    server.send(&strange);
    nothing(&mut here).await;
    let looks = server.commands().get("xrange").copied().unwrap_or(0);
    assert!(looks < 60, "{looks} looks at the stream for 1,600 strange messages");
    hub.publish(&chat, "1").await.unwrap();
    assert_eq!(text(&mut here).await, "1");
    assert_eq!(hub.totals().gaps, 0);
}

#[tokio::test]
async fn news_that_are_told_once_more_are_heard_once() {
    let server = TestRedis::start();
    let redis = worker(&server, 0).await;
    let (hub, chat) = (hub_of(&redis), topic("chat"));
    let mut here = hub.subscribe(&chat, None).await.unwrap();
    let spy = listener(&server).await;
    let mut overheard = spy.message_rx();
    spy.subscribe("p:b:chat").await.unwrap();
    spy.ping::<()>(None).await.unwrap();
    for number in 0..3 {
        hub.publish(&chat, &number.to_string()).await.unwrap();
    }
    assert_eq!(numbers(&mut here, 3).await, [0, 1, 2]);
    for _ in 0..3 {
        let news = overheard.recv().await.unwrap().value.as_string().unwrap();
        for _ in 0..5 {
            server.cli(&["PUBLISH", "p:b:chat", &news]);
        }
    }
    nothing(&mut here).await;
    assert_eq!((hub.totals().gaps, hub.totals().delivered), (0, 3));
}

/// A connection that may listen.
async fn listener(server: &TestRedis) -> Client {
    let unix = ServerConfig::Unix { path: server.socket() };
    let version = fred::types::RespVersion::RESP3;
    let client = Client::new(Config { server: unix, version, ..Config::default() }, None, None, None);
    client.init().await.unwrap();
    client
}

/// Says what machines of an earlier release say at each heartbeat.
fn an_earlier_machine_beats(server: &TestRedis, database: &str) {
    let now: u64 = server.cli(&["TIME"]).lines().next().unwrap().parse::<u64>().unwrap() * 1000;
    let seen = keys::libraries_in_use("p");
    server.cli(&["-n", database, "ZADD", &seen, &now.to_string(), "regatta_live_v1"]);
}

#[tokio::test]
async fn workers_of_an_earlier_release_and_of_this_one_hear_each_other() {
    for database in ["0", "3"] {
        let server = TestRedis::start();
        an_earlier_machine_beats(&server, database);
        let redis = worker(&server, database.parse().unwrap()).await;
        let (hub, chat) = (hub_of(&redis), topic("chat"));
        let mut here = hub.subscribe(&chat, None).await.unwrap();
        let limits = hears(&redis, 'l').await;
        // It tells and hears everything on the one channel that it knows.
        let earlier = listener(&server).await;
        earlier.select(database).await.unwrap();
        let mut heard = earlier.message_rx();
        earlier.subscribe("p:news").await.unwrap();
        earlier.ping::<()>(None).await.unwrap();
        let publish = |text: &'static str| {
            let key = keys::topic("p", "chat");
            let args = vec!["p:news", "chat", text, "1000", "3600000"];
            earlier.fcall::<String, _, _, _>("regatta_live_v1_publish", vec![key], args)
        };
        eventually("the old channel is listened to", async || {
            server.cli(&["PUBLISH", "p:news", "l ping"]) == "2"
        })
        .await;
        publish("1").await.unwrap();
        hub.publish(&chat, "2").await.unwrap();
        publish("3").await.unwrap();
        assert_eq!(numbers(&mut here, 3).await, [1, 2, 3], "database {database}");
        redis.reset_limit("p:l:a:v:x").await.unwrap();
        eventually("this release hears its own", async || {
            limits.lock().unwrap().contains(&"p:l:a:v:x".to_owned())
        })
        .await;
        let mut told = Vec::new();
        while let Ok(Ok(message)) = tokio::time::timeout(Duration::from_millis(300), heard.recv()).await {
            told.push(message.value.as_string().unwrap());
        }
        assert!(told.iter().any(|news| news.starts_with("b chat ") && news.ends_with(" 2")), "{told:?}");
        assert!(told.contains(&"l p:l:a:v:x".to_owned()), "{told:?}");
        assert_eq!(hub.totals().gaps, 0);
    }
}
