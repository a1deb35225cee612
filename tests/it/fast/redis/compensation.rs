//! What a cluster's node granted before another one refused is taken back once, however often that is said.

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, FunctionInterface};
use fred::types::config::{Config, ServerConfig};
use regatta::__internals::config::settings::ScriptingMode;

use crate::support::redis::{TestRedis, connect};

fn doubles(numbers: &[f64]) -> Bytes {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[tokio::test]
async fn what_is_taken_back_twice_is_taken_back_once() {
    let server = TestRedis::start();
    let _loaded = connect(&server, "p", ScriptingMode::Fcall).await;
    let unix = ServerConfig::Unix { path: server.socket() };
    let client = Client::new(Config { server: unix, ..Config::default() }, None, None, None);
    client.init().await.unwrap();
    let now: u64 = server.cli(&["TIME"]).lines().next().unwrap().parse::<u64>().unwrap() * 1_000_000;
    server.cli(&["SET", "p:c:total", "5"]);
    server.cli(&["HSET", "p:s:d", "_c", "1", "_t", "1", "_v", "4"]);
    server.cli(&["SET", "p:l:a:v:x", &(now + 60_000_000).to_string()]);
    let undo = async |name: &str| {
        let keys = ["p:l:a:v:x", "p:s:d", "p:c:total", &format!("p:l:a:v:x:m:{name}")].map(str::to_owned);
        let numbers = doubles(&[1000.0, 1000.0, 0.0, 0.0, 1_000_000.0, 100_000_000.0, 1.0]);
        let args =
            vec![Bytes::from_static(b"v"), numbers, Bytes::new(), Bytes::from("2"), Bytes::from("60000")];
        client.fcall::<i64, _, _, _>("regatta_cluster_v3_undo", keys.to_vec(), args).await.unwrap()
    };
    let stand = || {
        let used: u64 = server.cli(&["GET", "p:l:a:v:x"]).parse().unwrap();
        (server.cli(&["GET", "p:c:total"]), server.cli(&["HGET", "p:s:d", "_v"]), used)
    };
    assert_eq!((undo("one").await, undo("one").await, undo("one").await), (1, 0, 0));
    let (total, views, used) = stand();
    assert_eq!((total.as_str(), views.as_str()), ("3", "3"));
    assert_eq!(undo("another").await, 1, "another request's is another one");
    let (total, views, left) = stand();
    assert_eq!((total.as_str(), views.as_str()), ("1", "2"));
    assert_eq!(used - left, 1_000_000);
    assert_ne!(server.cli(&["PTTL", "p:l:a:v:x:m:one"]), "-1", "its mark is forgotten");
}
