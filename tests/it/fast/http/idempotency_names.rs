//! The names under which a request that is carried out once is found, in both forms of the code and in a cluster.

use std::time::Duration;

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::idempotency::IdempotencyNames;
use regatta::__internals::redis::{RedisClient, keys};

use crate::support::cluster_client as cluster;
use crate::support::redis::{TestRedis, connect};
use crate::support::redis_cluster::TestRedisCluster;

/// A name of the key of this test.
fn name(of: &str) -> String {
    keys::idempotency_name("p", "key", of)
}

async fn find(redis: &RedisClient, names: &[&str], own: usize, fingerprint: &str, record: &str) -> String {
    let keys: Vec<String> = names.iter().map(|of| name(of)).collect();
    let lifetime = Duration::from_secs(60);
    redis
        .find_record(&IdempotencyNames { keys: &keys, own_count: own, fingerprint, record, lifetime })
        .await
        .unwrap()
}

/// What holds of one server or cluster, under names that begin with `way`.
async fn names_lead_to_one_record(redis: &RedisClient, way: &str) {
    let of = |name: &str| format!("{way}-{name}");
    let (user, session, anonymous) = (of("user"), of("session"), of("anonymous"));
    let (user, session, anonymous) = (user.as_str(), session.as_str(), anonymous.as_str());
    assert_eq!(find(redis, &[anonymous], 1, "f1", "first").await, "first");
    assert_eq!(find(redis, &[anonymous], 1, "f1", "another").await, "first");
    // Of the same request, whatever its client is called now, and from then on under that name too.
    assert_eq!(find(redis, &[session, anonymous], 1, "f1", "second").await, "first");
    assert_eq!(find(redis, &[user, session], 1, "f1", "third").await, "first");
    assert_eq!(find(redis, &[user], 1, "f1", "fourth").await, "first");
    // Another request: its own name says no, and a weaker one says nothing.
    assert_eq!(find(redis, &[user], 1, "f2", "fifth").await, "first");
    let other = of("other");
    assert_eq!(find(redis, &[&other, session, anonymous], 1, "f2", "sixth").await, "sixth");
    assert_eq!(find(redis, &[&other], 1, "f2", "seventh").await, "sixth");
    // A look leaves no name.
    let seen = of("seen");
    assert_eq!(find(redis, &[&of("looker"), &seen], 1, "f3", "eighth").await, "eighth");
    assert_eq!(find(redis, &[&seen], 1, "f3", "ninth").await, "ninth");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_all_names_of_a_key_are_one_call() {
    let cluster = TestRedisCluster::start();
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let redis = cluster::connect(&cluster, mode).await;
        names_lead_to_one_record(&redis, &format!("{mode:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_server_names_lead_to_one_record_and_end() {
    let server = TestRedis::start();
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let redis = connect(&server, "p", mode).await;
        names_lead_to_one_record(&redis, &format!("{mode:?}")).await;
    }
    for key in server.keys().into_iter().filter(|key| key.contains(":io:")) {
        let left: i64 = server.cli(&["PTTL", &key]).parse().unwrap();
        assert!((1..=60_000).contains(&left), "{key}: {left}");
    }
}
