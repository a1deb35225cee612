//! The connection that receives notifications: opened, checked, and kept subscribed to the channels that have
//! subscribers here.
//!
//! The client library delivers no reply to SUBSCRIBE, and a rejection arrives in place of the next command's reply, or
//! is lost if there is no such command. The server replies in order, so each SUBSCRIBE is followed by a query of the
//! number of this connection's subscriptions.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::{Config, PerformanceConfig};
use fred::types::{ClusterHash, CustomCommand, Message, RespVersion};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::redis::client::{ClientInner, RedisClient};
use crate::redis::error::{RedisError, ServerRejection};
use crate::redis::notifications::bus::NO_WORKER;
use crate::redis::notifications::channels::NotificationChannel;
use crate::redis::notifications::subscriptions::MessageTarget;
use crate::redis::reconnect_pauses::{ReconnectPauses, random_unit};
use crate::redis::server_info::ServerWarning;
use crate::redis::{endpoint, keys};
use crate::sys::clock;

/// How often the connection is checked, and how long a check may take; completeness is assumed for no longer than both.
const PING_INTERVAL: Duration = clock::TICK.saturating_mul(20);
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// Longest wait for one step of opening a connection, and for a subscription.
const SETUP_TIMEOUT: Duration = Duration::from_millis(700);

/// A connection that lived this long resets the reconnect pauses.
const STABLE_AFTER: Duration = Duration::from_secs(2);

/// Pause after a rejection that only other ACL rules end.
const REJECTED_PAUSE: Duration = Duration::from_secs(3);

/// Messages that may have arrived and not been handled yet: more than one read from the socket brings. The client
/// allocates room for them in advance, so the number is small.
const MESSAGE_BACKLOG: usize = 256;

/// Channels in one command.
const CHANNELS_PER_COMMAND: usize = 512;

/// The result of a query on the connection.
enum QueryOutcome {
    /// These channels are subscribed.
    Subscribed(Vec<String>),
    /// The connection works.
    Alive,
    /// Whether this user may publish.
    MayPublish(bool),
}

/// A query under way.
type SubscriptionQuery = BoxFuture<'static, Result<QueryOutcome, RedisError>>;

pub(super) async fn maintain(RedisClient { inner }: RedisClient) {
    // No request waits for this connection, so attempts are never frequent.
    let mut pauses = ReconnectPauses::new(Duration::ZERO, Instant::now());
    loop {
        let started = Instant::now();
        inner.notifications.connected.store(true, Relaxed);
        let error = run_connection(&inner).await;
        inner.notifications.on_connection_lost();
        tracing::debug!(%error, "notifications unavailable: {error}");
        if error.is_unknown_command() {
            report_warning(&inner, Some(ServerWarning::SubscribeDenied));
            tokio::time::sleep(REJECTED_PAUSE).await;
            continue;
        }
        if started.elapsed() >= STABLE_AFTER {
            pauses.on_lost(Instant::now(), true);
        }
        tokio::time::sleep(pauses.next_pause(Instant::now(), random_unit())).await;
    }
}

fn report_warning(inner: &ClientInner, finding: Option<ServerWarning>) {
    inner.notifications.missing_right.send_if_modified(|known| std::mem::replace(known, finding) != finding);
}

/// Receives messages until the connection ends or can no longer be trusted.
async fn run_connection(inner: &Arc<ClientInner>) -> RedisError {
    // RESP3, because a RESP2 connection with subscriptions accepts no other commands.
    let config = match inner.target.endpoint.bootstrap_config() {
        Ok(config) => Config { version: RespVersion::RESP3, ..config },
        Err(error) => return error,
    };
    let performance =
        PerformanceConfig { broadcast_channel_capacity: MESSAGE_BACKLOG, ..endpoint::performance_config() };
    let client = Client::new(config, Some(performance), Some(endpoint::connection_config()), None);
    let mut task = client.connect();
    let error = tokio::select! {
        listened = receive_until_lost(inner, &client) => match listened {
            Err(error) => error,
            Ok(never) => match never {},
        },
        exited = &mut task => match exited {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => RedisError::unavailable("the connection was closed"),
        },
    };
    task.abort();
    error
}

async fn receive_until_lost(
    inner: &Arc<ClientInner>,
    client: &Client,
) -> Result<std::convert::Infallible, RedisError> {
    timeout(2 * SETUP_TIMEOUT, client.wait_for_connect()).await.map_err(|_| RedisError::Timeout)??;
    let redis = RedisClient { inner: Arc::clone(inner) };
    let mut messages = client.message_rx();
    // Without a reply in time the subscription is corrected at a later check.
    let _ = timeout(SETUP_TIMEOUT, redis.earlier_release_sighting()).await.is_ok();
    update_earlier_subscription(inner);
    let mut publish_allowed = may_publish(client.clone(), inner).await?;
    subscribe_pending(inner, client).await?;
    update_completeness(inner, publish_allowed);
    let mut ticks = interval_at(Instant::now() + clock::until_tick(PING_INTERVAL), PING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut step: Option<SubscriptionQuery> = None;
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Ok(message) => on_message(inner, &message),
                // Messages were dropped: from here on none is missed again.
                Err(RecvError::Lagged(count)) => {
                    tracing::debug!(count, "notifications lagged");
                    if publish_allowed {
                        inner.notifications.mark_complete();
                    }
                }
                Err(error @ RecvError::Closed) => return Err(RedisError::unavailable(error.to_string())),
            },
            answered = async { Some(step.as_mut()?.await) }, if step.is_some() => {
                step = None;
                match answered.unwrap_or(Ok(QueryOutcome::Alive))? {
                    QueryOutcome::Subscribed(names) => {
                        inner.notifications.confirm(&names);
                        // There may be more channels; messages before this moment were missed.
                        inner.notifications.channels_changed.notify_one();
                        if names.contains(&keys::notifications_channel(&inner.target.prefix)) && publish_allowed {
                            inner.notifications.mark_complete();
                        }
                    }
                    QueryOutcome::MayPublish(may) => {
                        publish_allowed = may;
                        update_completeness(inner, may);
                    }
                    QueryOutcome::Alive => {}
                }
            }
            () = inner.notifications.channels_changed.notified(), if step.is_none() => step = update_subscriptions(inner, client).await?,
            _ = ticks.tick(), if step.is_none() => {
                tokio::spawn({ let redis = redis.clone(); async move { redis.earlier_release_sighting().await } });
                update_earlier_subscription(inner);
                step = match update_subscriptions(inner, client).await? {
                    Some(step) => Some(step),
                    None if !publish_allowed => Some(query_publish_right(client.clone(), inner)),
                    None => Some(ping(client.clone())),
                };
            }
        }
    }
}

/// Subscribes to every channel that has a subscriber.
async fn subscribe_pending(inner: &ClientInner, client: &Client) -> Result<(), RedisError> {
    loop {
        let (before, batch) = inner.notifications.lock_subscriptions().take_pending(CHANNELS_PER_COMMAND);
        if batch.is_empty() {
            return Ok(());
        }
        subscribe(client.clone(), batch.clone(), before).await?;
        inner.notifications.confirm(&batch);
    }
}

/// All channels are subscribed. No notification is missed only if this user may publish: otherwise the other workers,
/// which have the same user, send none.
fn update_completeness(inner: &ClientInner, publish_allowed: bool) {
    match publish_allowed {
        true if inner.notifications.complete_since().is_none() => inner.notifications.mark_complete(),
        true => {}
        false => drop(inner.notifications.complete_since.send_replace(None)),
    }
    report_warning(inner, (!publish_allowed).then_some(ServerWarning::PublishDenied));
}

/// If this fleet's channels are not those of database 0, subscribes to the common channel there too while workers of
/// earlier releases may be running.
fn update_earlier_subscription(inner: &ClientInner) {
    if inner.target.channel_prefix == inner.target.prefix {
        return;
    }
    let (name, needed) = (
        keys::notifications_channel(&inner.target.prefix),
        inner.earlier_releases.sighting().needs_subscription(),
    );
    let mut channels = inner.notifications.lock_subscriptions();
    match (needed, channels.has_subscriber(&name)) {
        (true, false) => channels.add_subscriber(&name, None, false),
        (false, true) => channels.remove_subscriber(&name, Instant::now()),
        _ => {}
    }
}

/// Unsubscribes from channels without subscribers, and subscribes to some of those that have one.
async fn update_subscriptions(
    inner: &ClientInner,
    client: &Client,
) -> Result<Option<SubscriptionQuery>, RedisError> {
    let (left, (before, pending)) = {
        let mut channels = inner.notifications.lock_subscriptions();
        (channels.take_expired(Instant::now()), channels.take_pending(CHANNELS_PER_COMMAND))
    };
    for batch in left.chunks(CHANNELS_PER_COMMAND) {
        timeout(SETUP_TIMEOUT, client.unsubscribe(batch.to_vec()))
            .await
            .map_err(|_| RedisError::Timeout)??;
    }
    if pending.is_empty() {
        return Ok(None);
    }
    let client = client.clone();
    let query = async move {
        subscribe(client, pending.clone(), before).await.map(|()| QueryOutcome::Subscribed(pending))
    };
    Ok(Some(query.boxed()))
}

/// Subscribes to these channels, in addition to `before` others.
async fn subscribe(client: Client, names: Vec<String>, before: usize) -> Result<(), RedisError> {
    let expected = before + names.len();
    let how_many = CustomCommand::new_static("CLIENT", ClusterHash::FirstKey, false);
    let subscribed = async {
        client.subscribe(names).await?;
        client.custom::<String, _>(how_many, vec!["INFO"]).await
    };
    match timeout(SETUP_TIMEOUT, subscribed).await.map_err(|_| RedisError::Timeout)?.map_err(RedisError::from)
    {
        Ok(info) if subscription_count(&info).is_some_and(|count| count < expected) => {
            let refusal = ServerRejection::AccessDenied;
            Err(RedisError::Rejected {
                rejection: refusal,
                reason: "NOPERM the server does not subscribe to a channel".to_owned(),
            })
        }
        // A server that cannot report the number is assumed to have subscribed.
        Err(RedisError::Rejected { reason, .. }) if reason.to_ascii_lowercase().contains("client") => Ok(()),
        answer => answer.map(|_| ()),
    }
}

/// The number of a connection's subscriptions in the reply to `CLIENT INFO`.
fn subscription_count(info: &str) -> Option<usize> {
    info.split_ascii_whitespace().find_map(|field| field.strip_prefix("sub="))?.parse().ok()
}

fn ping(client: Client) -> SubscriptionQuery {
    let query = async move {
        match timeout(PING_TIMEOUT, client.ping::<()>(None)).await.map_err(|_| RedisError::Timeout)? {
            Ok(()) => Ok(QueryOutcome::Alive),
            Err(error) => match RedisError::from(error) {
                // Any response proves the connection: a busy server must not get more connections.
                RedisError::Rejected { .. } => Ok(QueryOutcome::Alive),
                error => Err(error),
            },
        }
    };
    query.boxed()
}

fn query_publish_right(client: Client, inner: &Arc<ClientInner>) -> SubscriptionQuery {
    let inner = Arc::clone(inner);
    async move { may_publish(client, &inner).await.map(QueryOutcome::MayPublish) }.boxed()
}

/// Whether this user may publish on the fleet's channels. If not, the other workers of the same user send nothing, and
/// no worker can rely on receiving everything.
async fn may_publish(client: Client, inner: &ClientInner) -> Result<bool, RedisError> {
    let channel = NotificationChannel::worker(NO_WORKER).name(&inner.target.channel_prefix);
    let published = client.publish::<(), _, _>(channel, "");
    match timeout(SETUP_TIMEOUT, published).await.map_err(|_| RedisError::Timeout)?.map_err(RedisError::from)
    {
        Err(error) if error.is_unknown_command() => Ok(false),
        Ok(()) | Err(RedisError::Rejected { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn on_message(inner: &ClientInner, message: &Message) {
    inner.notifications.message_count.fetch_add(1, Relaxed);
    let Some(text) = message.value.as_str() else { return };
    let to = inner.notifications.lock_subscriptions().target(&message.channel);
    match to {
        Some(MessageTarget::Common) => inner.notifications.dispatch(
            &without_hash_tags(inner, &text),
            inner.earlier_releases.sighting().needs_subscription(),
        ),
        Some(MessageTarget::Handler(handler)) => handler(&text),
        None => {}
    }
}

/// A message as its handlers expect it: in a cluster the keys in it have hash tags.
fn without_hash_tags<'a>(inner: &ClientInner, message: &'a str) -> Cow<'a, str> {
    let named = inner.target.endpoint.cluster_seeds().and_then(|_| message.split_once(' '));
    let plain = named.and_then(|(kind, key)| Some((kind, keys::plain_name(&inner.target.prefix, key)?)));
    plain.map_or(Cow::Borrowed(message), |(kind, key)| Cow::Owned(format!("{kind} {key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_s_subscriptions_are_read_and_not_guessed() {
        let info = "id=3 addr=/tmp/s:0 name= db=0 sub=12 psub=0 ssub=0 multi=-1 cmd=client|info resp=3";
        assert_eq!(subscription_count(info), Some(12));
        assert_eq!((subscription_count(""), subscription_count("psub=1 sub=x")), (None, None));
    }
}
