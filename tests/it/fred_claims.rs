//! What was said of the client library, tried against it: the reasons for how `redis/link.rs` uses it.

use std::time::Duration;
use std::time::Instant;

use fred::clients::Client;
use fred::clients::WithOptions;
use fred::interfaces::ClientLike;
use fred::interfaces::KeysInterface;
use fred::types::ConnectHandle;
use fred::types::config::Config;
use fred::types::config::ConnectionConfig;
use fred::types::config::Options;
use fred::types::config::PerformanceConfig;
use fred::types::config::ReconnectPolicy;
use fred::types::config::TcpConfig;
use fred::types::config::UnresponsiveConfig;

use crate::support::proxy::Link;
use crate::support::proxy::Proxy;
use crate::support::redis::RedisServer;

const SHORT: Duration = Duration::from_millis(300);

async fn connect(
    proxy: &Proxy,
    connection: ConnectionConfig,
    policy: Option<ReconnectPolicy>,
) -> (Client, ConnectHandle) {
    let config = Config::from_url(&proxy.url()).unwrap();
    let client = Client::new(config, Some(PerformanceConfig::default()), Some(connection), policy);
    let task = client.connect();
    client.wait_for_connect().await.unwrap();
    (client, task)
}

fn patient(client: &Client) -> WithOptions<Client> {
    client.with_options(&Options { timeout: Some(SHORT), ..Options::default() })
}

fn again() -> Option<ReconnectPolicy> {
    Some(ReconnectPolicy::new_constant(0, 50))
}

/// Waits at most three seconds; whether it became true.
async fn within(mut holds: impl FnMut() -> bool) -> Option<Duration> {
    let since = Instant::now();
    while !holds() {
        if since.elapsed() > Duration::from_secs(3) {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Some(since.elapsed())
}

#[tokio::test]
async fn a_client_whose_task_has_ended_says_that_it_is_connected() {
    let (server, proxy);
    server = RedisServer::start();
    proxy = Proxy::before(&server);
    let (client, task) = connect(&proxy, ConnectionConfig::default(), None).await;
    proxy.reset();
    println!("claim 2: without a policy the task ends after {:?}", within(|| task.is_finished()).await);
    let answer = patient(&client).get::<Option<String>, _>("k").await;
    println!(
        "claim 3: connected {} state {:?}, a command: {answer:?}",
        client.is_connected(),
        client.state()
    );
    let fast = client.with_options(&Options { timeout: Some(SHORT), fail_fast: true, ..Options::default() });
    let since = Instant::now();
    println!("claim fail_fast: {:?} after {:?}", fast.get::<Option<String>, _>("k").await, since.elapsed());
}

#[tokio::test]
async fn a_bounded_queue_can_end_the_client() {
    let server = RedisServer::start();
    let proxy = Proxy::before(&server);
    for bound in [0, 4] {
        let connection = ConnectionConfig { max_command_buffer_len: bound, ..ConnectionConfig::default() };
        let (client, task) = connect(&proxy, connection, again()).await;
        proxy.link(Link::Stalled);
        let calls: Vec<_> = (0..64)
            .map(|n| {
                let client = patient(&client);
                tokio::spawn(async move {
                    client
                        .set::<(), _, _>("k", format!("{n}-{}", "x".repeat(1 << 20)), None, None, false)
                        .await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy.reset();
        proxy.link(Link::Open);
        for call in calls {
            let _ = call.await;
        }
        let well = patient(&client).get::<Option<String>, _>("none").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let later = patient(&client).get::<Option<String>, _>("none").await;
        println!(
            "claim 4, bound {bound}: ended {}, at once {:?}, later {:?}",
            task.is_finished(),
            well.is_ok(),
            later.is_ok()
        );
    }
}

#[tokio::test]
async fn silence_is_not_noticed_while_commands_are_written() {
    let server = RedisServer::start();
    for busy in [false, true] {
        let proxy = Proxy::before(&server);
        let unresponsive =
            UnresponsiveConfig { max_timeout: Some(SHORT), interval: Duration::from_millis(50) };
        let connection = ConnectionConfig { unresponsive, ..ConnectionConfig::default() };
        let (client, _task) = connect(&proxy, connection, again()).await;
        let known = proxy.accepted().len();
        proxy.link(Link::BlackHole);
        let first = tokio::spawn({
            let client = patient(&client);
            async move { client.get::<Option<String>, _>("k").await }
        });
        let writer = busy.then(|| {
            let client = patient(&client);
            tokio::spawn(async move {
                loop {
                    let client = client.clone();
                    tokio::spawn(async move { client.get::<Option<String>, _>("k").await });
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        });
        let noticed = within(|| proxy.accepted().len() > known).await;
        println!("claim 5, busy {busy}: a new connection after {noticed:?}");
        let _ = first.await;
        if let Some(writer) = writer {
            writer.abort();
        }
    }
}

#[tokio::test]
async fn commands_under_way_are_sent_again_unless_told_otherwise() {
    let server = RedisServer::start();
    for attempts in [None, Some(1)] {
        let proxy = Proxy::before(&server);
        server.cli(&["DEL", "n"]);
        let mut connection = ConnectionConfig::default();
        if let Some(attempts) = attempts {
            connection.max_command_attempts = attempts;
        }
        let (client, _task) = connect(&proxy, connection, again()).await;
        proxy.lose_replies("INCR", 1);
        let answer = client.incr::<i64, _>("n").await;
        println!("claim 6, attempts {attempts:?}: {answer:?}, the counter has {}", server.cli(&["GET", "n"]));
    }
}

#[tokio::test]
async fn a_pipeline_is_written_in_turns_and_concurrent_commands_together() {
    let server = RedisServer::start();
    for nodelay in [None, Some(true)] {
        let proxy = Proxy::before(&server);
        let tcp = TcpConfig { nodelay, ..TcpConfig::default() };
        let (client, _task) =
            connect(&proxy, ConnectionConfig { tcp, ..ConnectionConfig::default() }, again()).await;
        let before = proxy.counts();
        for _ in 0..20 {
            let pipeline = client.pipeline();
            for key in ["a", "b", "c"] {
                let () = pipeline.get(key).await.unwrap();
            }
            let _: Vec<Option<String>> = pipeline.all().await.unwrap();
        }
        let piped = proxy.counts().since(&before);
        let before = proxy.counts();
        for _ in 0..20 {
            let get = |key: &'static str| client.get::<Option<String>, _>(key);
            let (a, b, c) = tokio::join!(get("a"), get("b"), get("c"));
            assert!(a.is_ok() && b.is_ok() && c.is_ok());
        }
        println!("claim 7, nodelay {nodelay:?}: pipeline {piped}; joined {}", proxy.counts().since(&before));
    }
}

#[tokio::test]
async fn a_client_that_may_wait_begins_with_the_delay() {
    let server = RedisServer::start();
    for fail_fast in [true, false] {
        let proxy = Proxy::before(&server);
        let config = Config { fail_fast, ..Config::from_url(&proxy.url()).unwrap() };
        let client = Client::new(config, None, None, Some(ReconnectPolicy::new_constant(0, 400)));
        let (since, _task) = (Instant::now(), client.connect());
        client.wait_for_connect().await.unwrap();
        println!("claim 12, fail_fast {fail_fast}: connected after {:?}", since.elapsed());
    }
}
