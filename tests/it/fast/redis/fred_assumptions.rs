//! Claims about the client library, tested against it: the reasons for how `redis/connection.rs` uses it.

use std::time::{Duration, Instant};

use fred::clients::{Client, WithOptions};
use fred::error::ErrorKind;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::ConnectHandle;
use fred::types::config::{
    Config, ConnectionConfig, Options, PerformanceConfig, ReconnectPolicy, UnresponsiveConfig,
};

use crate::support::fault_proxy::{FaultProxy, LinkState};
use crate::support::redis::TestRedis;
use crate::support::wait;

const SHORT: Duration = Duration::from_millis(300);

async fn connect(
    proxy: &FaultProxy,
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
async fn within(mut holds: impl FnMut() -> bool) -> bool {
    let since = Instant::now();
    while !holds() && since.elapsed() < Duration::from_secs(3) {
        wait::paced(Duration::from_millis(5)).await;
    }
    holds()
}

#[tokio::test]
async fn a_client_whose_task_has_ended_says_that_it_is_connected() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let (client, task) = connect(&proxy, ConnectionConfig::default(), None).await;
    proxy.reset();
    assert!(within(|| task.is_finished()).await, "without a policy the first lost connection is the end");
    assert!(client.is_connected());
    // Commands queue for no one, and to fail fast is no way out: the state says connected.
    for fail_fast in [false, true] {
        let options = Options { timeout: Some(SHORT), fail_fast, ..Options::default() };
        let answer = client.with_options(&options).get::<Option<String>, _>("k").await;
        assert_eq!(answer.unwrap_err().kind(), &ErrorKind::Timeout);
    }
}

#[tokio::test]
async fn a_bounded_queue_can_wedge_the_client() {
    let server = TestRedis::start();
    for (bound, lives) in [(0, true), (4, false)] {
        let proxy = FaultProxy::before(&server);
        let connection = ConnectionConfig { max_command_buffer_len: bound, ..ConnectionConfig::default() };
        let (client, _task) = connect(&proxy, connection, again()).await;
        proxy.set_link(LinkState::Stalled);
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let (client, large) = (patient(&client), "x".repeat(1 << 20));
                tokio::spawn(async move { client.set::<(), _, _>("k", large, None, None, false).await })
            })
            .collect();
        wait::pass(Duration::from_millis(50)).await;
        proxy.reset();
        proxy.set_link(LinkState::Open);
        for call in calls {
            let _ = call.await.unwrap();
        }
        let mut answered = false;
        for _ in 0..5 {
            answered |= patient(&client).get::<Option<String>, _>("none").await.is_ok();
        }
        assert_eq!((answered, client.is_connected()), (lives, true), "a queue of {bound}");
    }
}

#[tokio::test]
async fn silence_is_not_noticed_while_commands_are_written() {
    let server = TestRedis::start();
    for busy in [false, true] {
        let proxy = FaultProxy::before(&server);
        let unresponsive =
            UnresponsiveConfig { max_timeout: Some(SHORT), interval: Duration::from_millis(50) };
        let connection = ConnectionConfig { unresponsive, ..ConnectionConfig::default() };
        let (client, _task) = connect(&proxy, connection, again()).await;
        let known = proxy.accepted().len();
        proxy.set_link(LinkState::BlackHole);
        let asked = |client: WithOptions<Client>| async move { client.get::<Option<String>, _>("k").await };
        let first = tokio::spawn(asked(patient(&client)));
        let writer = tokio::spawn(async move {
            loop {
                if busy {
                    tokio::spawn(asked(patient(&client)));
                }
                wait::paced(Duration::from_millis(20)).await;
            }
        });
        assert_eq!(within(|| proxy.accepted().len() > known).await, !busy, "busy: {busy}");
        assert!(first.await.unwrap().is_err());
        writer.abort();
    }
}

#[tokio::test]
async fn commands_under_way_are_sent_again_unless_told_otherwise() {
    let server = TestRedis::start();
    for (connection, executed) in [
        (ConnectionConfig::default(), "2"),
        (ConnectionConfig { max_command_attempts: 1, ..ConnectionConfig::default() }, "1"),
    ] {
        let proxy = FaultProxy::before(&server);
        server.cli(&["DEL", "n"]);
        let (client, _task) = connect(&proxy, connection, again()).await;
        proxy.lose_replies("INCR", 1);
        let answer = client.incr::<i64, _>("n").await;
        assert_eq!(answer.is_ok(), executed == "2", "{answer:?}");
        assert_eq!(server.cli(&["GET", "n"]), executed);
    }
}

#[tokio::test]
async fn a_pipeline_is_written_in_turns_and_concurrent_commands_together() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let (client, _task) = connect(&proxy, ConnectionConfig::default(), again()).await;
    let (turns, commands) = (20, 60);
    let before = proxy.counts();
    for _ in 0..turns {
        let pipeline = client.pipeline();
        for key in ["a", "b", "c"] {
            let () = pipeline.get(key).await.unwrap();
        }
        let _: Vec<Option<String>> = pipeline.all().await.unwrap();
    }
    let piped = proxy.counts().since(&before);
    let before = proxy.counts();
    for _ in 0..turns {
        let get = |key: &'static str| client.get::<Option<String>, _>(key);
        let (a, b, c) = tokio::join!(get("a"), get("b"), get("c"));
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
    }
    let joined = proxy.counts().since(&before);
    assert_eq!((piped.total(), joined.total()), (commands, commands));
    assert!(piped.rounds > turns && joined.rounds < piped.rounds, "{piped}; {joined}");
}

#[tokio::test]
async fn a_client_that_may_wait_begins_with_the_delay() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let delay = 2 * SHORT;
    let policy = ReconnectPolicy::new_constant(0, u32::try_from(delay.as_millis()).unwrap());
    let config = Config { fail_fast: false, ..Config::from_url(&proxy.url()).unwrap() };
    let client = Client::new(config, None, None, Some(policy));
    let (since, _task) = (Instant::now(), client.connect());
    client.wait_for_connect().await.unwrap();
    assert!(since.elapsed() >= delay);
}
