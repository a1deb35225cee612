//! Broadcasts as a worker has them, without the worker: a hub over a connection of its own.

use std::time::Duration;

use regatta::__internals::broadcasts::{BroadcastHub, Subscription, SubscriptionEvent, TopicName};
use regatta::__internals::config::settings::{BroadcastConfig, ScriptingMode};
use tokio::time::timeout;

use crate::support::redis::{TestRedis, connect};

/// Longest wait for what must come.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// How long a test looks whether something comes that must not.
pub(crate) const QUIET: Duration = Duration::from_millis(200);

/// The defaults.
pub(crate) fn settings() -> BroadcastConfig {
    BroadcastConfig {
        retention_messages: 1000,
        retention: Duration::from_secs(3600),
        max_message_size: 16 << 10,
        max_lag: 256,
        max_subscribers: 10_000,
        max_topics: 1000,
        keep_alive_interval: Duration::from_secs(15),
    }
}

/// A worker's broadcasts with these settings.
pub(crate) async fn hub_with(
    server: &TestRedis,
    mode: ScriptingMode,
    settings: &BroadcastConfig,
) -> BroadcastHub {
    let hub = BroadcastHub::new(connect(server, "p", mode).await.redis().clone(), settings);
    hub.start();
    hub
}

/// A worker's broadcasts.
pub(crate) async fn hub(server: &TestRedis, mode: ScriptingMode) -> BroadcastHub {
    hub_with(server, mode, &settings()).await
}

pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::parse(name).unwrap()
}

/// What comes next.
pub(crate) async fn next(subscription: &mut Subscription) -> SubscriptionEvent {
    timeout(LONG, subscription.next()).await.expect("nothing comes")
}

/// The next message's text.
pub(crate) async fn text(subscription: &mut Subscription) -> String {
    match next(subscription).await {
        SubscriptionEvent::Message(message) => message.text().to_owned(),
        other => panic!("{other:?} instead of a message after {:?}", subscription.last_id()),
    }
}

/// So many messages, whose texts are numbers.
pub(crate) async fn numbers(subscription: &mut Subscription, count: usize) -> Vec<usize> {
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        numbers.push(text(subscription).await.parse().unwrap());
    }
    numbers
}

/// Asserts that the next event is a gap.
pub(crate) async fn gap(subscription: &mut Subscription) {
    let event = next(subscription).await;
    assert!(matches!(event, SubscriptionEvent::Gap), "{event:?} instead of a gap");
}

/// Asserts that nothing comes for a moment.
pub(crate) async fn nothing(subscription: &mut Subscription) {
    let come = timeout(QUIET, subscription.next()).await;
    assert!(come.is_err(), "{come:?} instead of nothing");
}
