//! Heartbeats in Redis itself: what a machine says, how long it holds, and what a loss of data does to it.

use std::time::Duration;

use regatta::__internals::config::schema::Mode;
use regatta::__internals::redis::Error;
use regatta::__internals::redis::fleet;
use regatta::__internals::redis::fleet::Machine;
use regatta::__internals::redis::fleet::Machines;

use crate::support::redis::RedisServer;
use crate::support::redis::connect;
use crate::support::redis::eventually;

/// A lifetime that no test outlives.
const LONG: Duration = Duration::from_secs(60);
/// One that ends while a test waits for it.
const SHORT: Duration = Duration::from_millis(400);

fn machine(id: &str) -> Machine {
    let libraries = vec!["regatta_v1".to_owned(), "regatta_v2".to_owned()];
    Machine { version: fleet::VERSION, id: id.into(), host: id.into(), libraries, ..Machine::default() }
}

fn ids(machines: &Machines) -> Vec<&str> {
    machines.seen.iter().map(|seen| seen.machine.id.as_str()).collect()
}

#[tokio::test]
async fn machines_come_and_go_in_every_mode() {
    for mode in [Mode::Fcall, Mode::Evalsha, Mode::Plain] {
        let server = RedisServer::start();
        let redis = connect(&server, "p", mode).await;
        assert_eq!(ids(&redis.machines().await.unwrap()), Vec::<&str>::new());
        assert_eq!(redis.beat(&machine("a"), LONG).await.unwrap(), 1, "{mode:?}");
        assert_eq!(redis.beat(&machine("b"), LONG).await.unwrap(), 2);
        assert_eq!(redis.beat(&machine("a"), LONG).await.unwrap(), 2, "the same once more");
        let machines = redis.machines().await.unwrap();
        assert_eq!((ids(&machines), machines.strange), (vec!["a", "b"], 0));
        assert_eq!(machines.seen[1].machine, machine("b"));
        redis.leave("a").await.unwrap();
        redis.leave("a").await.unwrap();
        assert_eq!(ids(&redis.machines().await.unwrap()), ["b"]);
    }
}

#[tokio::test]
async fn who_is_silent_dies_and_is_dropped_by_the_next_who_speaks() {
    for mode in [Mode::Auto, Mode::Plain] {
        let server = RedisServer::start();
        let redis = connect(&server, "p", mode).await;
        redis.beat(&machine("short"), SHORT).await.unwrap();
        redis.beat(&machine("long"), LONG).await.unwrap();
        assert_eq!(ids(&redis.machines().await.unwrap()), ["long", "short"]);
        eventually("the silent one is dead", async || ids(&redis.machines().await.unwrap()) == ["long"])
            .await;
        assert_eq!(server.cli(&["HEXISTS", "p:{fleet}:machines", "short"]), "1", "reading drops nobody");
        assert_eq!(redis.beat(&machine("long"), LONG).await.unwrap(), 1);
        assert_eq!(server.cli(&["HEXISTS", "p:{fleet}:machines", "short"]), "0");
        assert_eq!(server.cli(&["ZCARD", "p:{fleet}:deaths"]), "1");
    }
}

#[tokio::test]
async fn nothing_but_the_use_of_libraries_is_left_of_a_fleet_that_is_gone() {
    let server = RedisServer::start();
    let redis = connect(&server, "p", Mode::Auto).await;
    redis.beat(&machine("a"), SHORT).await.unwrap();
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
    let server = RedisServer::start();
    let redis = connect(&server, "p", Mode::Auto).await;
    let life = 2 * SHORT;
    redis.beat(&machine("a"), life).await.unwrap();
    assert!(!redis.machines().await.unwrap().complete, "the first word");
    eventually("it has been told for a lifetime", async || {
        redis.beat(&machine("a"), life).await.unwrap();
        redis.machines().await.unwrap().complete
    })
    .await;
    server.cli(&["FLUSHALL"]);
    redis.beat(&machine("a"), life).await.unwrap();
    let machines = redis.machines().await.unwrap();
    assert_eq!((ids(&machines), machines.complete), (vec!["a"], false));
}

#[tokio::test]
async fn a_key_of_another_kind_is_an_error_and_nothing_is_written() {
    let keys = ["p:{fleet}:machines", "p:{fleet}:deaths", "p:{fleet}:libraries"];
    for wrong in keys {
        let server = RedisServer::start();
        let redis = connect(&server, "p", Mode::Auto).await;
        server.cli(&["SET", wrong, "something else"]);
        let before = server.keys();
        let refused = redis.beat(&machine("a"), LONG).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{wrong}: {refused:?}");
        assert_eq!(server.keys(), before, "{wrong}");
    }
}

#[tokio::test]
async fn who_only_looks_needs_no_code_on_the_server_and_leaves_none() {
    let server = RedisServer::start();
    let settings = server.settings("p", Mode::Auto);
    let looker = regatta::__internals::redis::Redis::new(&settings, &server.url(), "looker").unwrap();
    let machines = fleet::machines(&looker, LONG).await.unwrap();
    assert_eq!((ids(&machines), machines.complete), (Vec::new(), false));
    assert_eq!((server.keys(), server.cli(&["FUNCTION", "LIST"])), (vec![], String::new()));
    let redis = connect(&server, "p", Mode::Auto).await;
    redis.beat(&machine("a"), LONG).await.unwrap();
    assert_eq!(ids(&fleet::machines(&looker, LONG).await.unwrap()), ["a"]);
    let absent = RedisServer::absent(&[]);
    let nobody =
        regatta::__internals::redis::Redis::new(&absent.settings("p", Mode::Auto), &absent.url(), "looker")
            .unwrap();
    assert!(matches!(fleet::machines(&nobody, LONG).await, Err(Error::Unavailable { .. })));
}
