//! Heartbeats in Redis itself: what a machine says, how long it holds, and what a loss of data does to it.

use std::time::Duration;

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::RedisError;
use regatta::__internals::registry;
use regatta::__internals::registry::{InstanceList, InstanceRecord};

use crate::support::redis::{TestRedis, connect, eventually};

/// A lifetime that no test outlives.
const LONG: Duration = Duration::from_secs(60);
/// One that ends while a test waits for it.
const SHORT: Duration = Duration::from_millis(400);

fn machine(id: &str) -> InstanceRecord {
    let libraries = vec!["regatta_v1".to_owned(), "regatta_v2".to_owned()];
    InstanceRecord {
        version: registry::DOCUMENT_VERSION,
        id: id.into(),
        host: id.into(),
        libraries,
        ..InstanceRecord::default()
    }
}

fn ids(machines: &InstanceList) -> Vec<&str> {
    machines.instances.iter().map(|seen| seen.instance.id.as_str()).collect()
}

#[tokio::test]
async fn machines_come_and_go_in_every_mode() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha, ScriptingMode::Plain] {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        assert_eq!(ids(&redis.list_instances().await.unwrap()), Vec::<&str>::new());
        assert_eq!(redis.heartbeat(&machine("a"), LONG).await.unwrap(), 1, "{mode:?}");
        assert_eq!(redis.heartbeat(&machine("b"), LONG).await.unwrap(), 2);
        assert_eq!(redis.heartbeat(&machine("a"), LONG).await.unwrap(), 2, "the same once more");
        let machines = redis.list_instances().await.unwrap();
        assert_eq!((ids(&machines), machines.unreadable), (vec!["a", "b"], 0));
        assert_eq!(machines.instances[1].instance, machine("b"));
        redis.deregister_instance("a").await.unwrap();
        redis.deregister_instance("a").await.unwrap();
        assert_eq!(ids(&redis.list_instances().await.unwrap()), ["b"]);
    }
}

#[tokio::test]
async fn who_is_silent_dies_and_is_dropped_by_the_next_who_speaks() {
    for mode in [ScriptingMode::Auto, ScriptingMode::Plain] {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        redis.heartbeat(&machine("short"), SHORT).await.unwrap();
        redis.heartbeat(&machine("long"), LONG).await.unwrap();
        assert_eq!(ids(&redis.list_instances().await.unwrap()), ["long", "short"]);
        eventually("the silent one is dead", async || {
            ids(&redis.list_instances().await.unwrap()) == ["long"]
        })
        .await;
        assert_eq!(server.cli(&["HEXISTS", "p:{fleet}:machines", "short"]), "1", "reading drops nobody");
        assert_eq!(redis.heartbeat(&machine("long"), LONG).await.unwrap(), 1);
        assert_eq!(server.cli(&["HEXISTS", "p:{fleet}:machines", "short"]), "0");
        assert_eq!(server.cli(&["ZCARD", "p:{fleet}:deaths"]), "1");
    }
}

#[tokio::test]
async fn nothing_but_the_use_of_libraries_is_left_of_a_fleet_that_is_gone() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    redis.heartbeat(&machine("a"), SHORT).await.unwrap();
    eventually("the keys are gone", async || {
        server.keys().iter().all(|key| !key.contains("{fleet}") || key.ends_with(":libraries"))
    })
    .await;
    let used = server.cli(&["ZRANGE", "p:{fleet}:libraries", "0", "-1", "WITHSCORES"]);
    let used: Vec<&str> = used.lines().collect();
    assert_eq!((used[0], used[2]), ("regatta_v1", "regatta_v2"), "{used:?}");
    let now_ms = 1000 * server.cli(&["TIME"]).lines().next().unwrap().parse::<u64>().unwrap();
    assert!(used[1].parse::<u64>().unwrap().abs_diff(now_ms) < 60_000, "{used:?}, {now_ms}");
}

#[tokio::test]
async fn after_a_loss_of_data_the_list_is_not_complete_until_everybody_had_time_to_speak() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let life = 2 * SHORT;
    redis.heartbeat(&machine("a"), life).await.unwrap();
    assert!(!redis.list_instances().await.unwrap().complete, "the first word");
    eventually("it has been told for a lifetime", async || {
        redis.heartbeat(&machine("a"), life).await.unwrap();
        redis.list_instances().await.unwrap().complete
    })
    .await;
    server.cli(&["FLUSHALL"]);
    redis.heartbeat(&machine("a"), life).await.unwrap();
    let machines = redis.list_instances().await.unwrap();
    assert_eq!((ids(&machines), machines.complete), (vec!["a"], false));
}

#[tokio::test]
async fn a_key_of_another_kind_is_an_error_and_nothing_is_written() {
    let keys = ["p:{fleet}:machines", "p:{fleet}:deaths", "p:{fleet}:libraries"];
    for wrong in keys {
        let server = TestRedis::start();
        let redis = connect(&server, "p", ScriptingMode::Auto).await;
        server.cli(&["SET", wrong, "something else"]);
        let before = server.keys();
        let refused = redis.heartbeat(&machine("a"), LONG).await;
        assert!(matches!(refused, Err(RedisError::Rejected { .. })), "{wrong}: {refused:?}");
        assert_eq!(server.keys(), before, "{wrong}");
    }
}

#[tokio::test]
async fn who_only_looks_needs_no_code_on_the_server_and_leaves_none() {
    let server = TestRedis::start();
    let settings = server.settings("p", ScriptingMode::Auto);
    let looker = regatta::__internals::redis::RedisClient::new(&settings, &server.url(), "looker").unwrap();
    let machines = registry::list_instances_one_shot(&looker, LONG).await.unwrap();
    assert_eq!((ids(&machines), machines.complete), (Vec::new(), false));
    assert_eq!((server.keys(), server.cli(&["FUNCTION", "LIST"])), (vec![], String::new()));
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    redis.heartbeat(&machine("a"), LONG).await.unwrap();
    assert_eq!(ids(&registry::list_instances_one_shot(&looker, LONG).await.unwrap()), ["a"]);
    let absent = TestRedis::absent(&[]);
    let nobody = regatta::__internals::redis::RedisClient::new(
        &absent.settings("p", ScriptingMode::Auto),
        &absent.url(),
        "looker",
    )
    .unwrap();
    assert!(matches!(
        registry::list_instances_one_shot(&nobody, LONG).await,
        Err(RedisError::Unavailable { .. })
    ));
}
