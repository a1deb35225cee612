//! The connection on which news come: kept, asked whether it lives, and told which channels are wanted.
//!
//! The client library hears no answer to SUBSCRIBE, and a refusal comes in the place of the next command's answer, or is
//! lost where there is none yet. The server answers in order, so each SUBSCRIBE is followed by a question to how many
//! channels this connection has subscribed.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::interfaces::EventInterface;
use fred::interfaces::PubsubInterface;
use fred::types::ClusterHash;
use fred::types::CustomCommand;
use fred::types::Message;
use fred::types::RespVersion;
use fred::types::config::Config;
use fred::types::config::PerformanceConfig;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval_at;
use tokio::time::timeout;

use crate::redis::Inner;
use crate::redis::Redis;
use crate::redis::endpoint;
use crate::redis::error::Error;
use crate::redis::error::Refusal;
use crate::redis::inspect::Finding;
use crate::redis::keys;
use crate::redis::news::NO_WORKER;
use crate::redis::news::channels::To;
use crate::redis::pauses::Pauses;
use crate::redis::pauses::random;
use crate::sys::time;

/// How often the connection is asked whether it lives, and how long it may think; what is heard is trusted for no
/// longer than both.
const PING_EVERY: Duration = time::TICK.saturating_mul(20);
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// Longest wait for one step of a connection's making, and for a subscription.
const SETUP_TIMEOUT: Duration = Duration::from_millis(700);

/// A connection that lived this long begins counting pauses anew.
const SETTLED: Duration = Duration::from_secs(2);

/// Pause after a refusal that only other rules end, and between two looks whether they have changed.
const REFUSED_PAUSE: Duration = Duration::from_secs(3);

/// Messages that may have come and not been heard yet: what one read from the socket brings, and more. The client makes
/// room for them beforehand, so it is not many.
const BACKLOG: usize = 256;

/// Channels in one command.
const BATCH: usize = 512;

/// What a question on the connection was about.
enum Answered {
    /// These channels are heard.
    Heard(Vec<String>),
    /// It lives.
    Alive,
    /// Whether this user may publish.
    MayTell(bool),
}

/// A question under way.
type Step = BoxFuture<'static, Result<Answered, Error>>;

pub(super) async fn keep(inner: Arc<Inner>) {
    // No request waits for it, so it is never in a hurry.
    let mut pauses = Pauses::new(Duration::ZERO, Instant::now());
    loop {
        let begun = Instant::now();
        inner.news.connected.store(true, Relaxed);
        let error = follow(&inner).await;
        inner.news.lost();
        tracing::debug!(%error, "news is not heard: {error}");
        if error.unsupported() {
            refuse(&inner, Some(Finding::Deaf));
            tokio::time::sleep(REFUSED_PAUSE).await;
            continue;
        }
        if begun.elapsed() >= SETTLED {
            pauses.lost(Instant::now(), true);
        }
        tokio::time::sleep(pauses.next(Instant::now(), random())).await;
    }
}

fn refuse(inner: &Inner, finding: Option<Finding>) {
    inner.news.refused.send_if_modified(|known| std::mem::replace(known, finding) != finding);
}

/// Listens until the connection ends or can no longer be trusted.
async fn follow(inner: &Arc<Inner>) -> Error {
    // RESP3, because a connection that listens under RESP2 cannot be asked anything else in the common form.
    let config = match inner.endpoint.any() {
        Ok(config) => Config { version: RespVersion::RESP3, ..config },
        Err(error) => return error,
    };
    let performance = PerformanceConfig { broadcast_channel_capacity: BACKLOG, ..endpoint::performance() };
    let client = Client::new(config, Some(performance), Some(endpoint::connection()), None);
    let mut task = client.connect();
    let error = tokio::select! {
        listened = listen(inner, &client) => match listened {
            Err(error) => error,
            Ok(never) => match never {},
        },
        ended = &mut task => match ended {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => Error::unavailable("the connection was closed"),
        },
    };
    task.abort();
    error
}

async fn listen(inner: &Arc<Inner>, client: &Client) -> Result<std::convert::Infallible, Error> {
    timeout(2 * SETUP_TIMEOUT, client.wait_for_connect()).await.map_err(|_| Error::Timeout)??;
    let redis = Redis { inner: Arc::clone(inner) };
    let mut messages = client.message_rx();
    // Known soon or not at all: what it changes is put right at a later look.
    let _ = timeout(SETUP_TIMEOUT, redis.earlier()).await.is_ok();
    mind_earlier(inner);
    let mut may_tell = may_tell(client.clone(), inner).await?;
    subscribe_to_all(inner, client).await?;
    trust(inner, may_tell);
    let mut ticks = interval_at(Instant::now() + time::until_tick(PING_EVERY), PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut step: Option<Step> = None;
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Ok(message) => hear(inner, &message),
                // Too many at once: from here on everything is heard again.
                Err(RecvError::Lagged(count)) => {
                    tracing::debug!(count, "news came faster than it was heard");
                    if may_tell {
                        inner.news.whole();
                    }
                }
                Err(error @ RecvError::Closed) => return Err(Error::unavailable(error.to_string())),
            },
            answered = async { Some(step.as_mut()?.await) }, if step.is_some() => {
                step = None;
                match answered.unwrap_or(Ok(Answered::Alive))? {
                    Answered::Heard(names) => {
                        inner.news.hears(&names);
                        // There may be more, and what came to be heard late was missed until now.
                        inner.news.work.notify_one();
                        if names.contains(&keys::news(&inner.prefix)) && may_tell {
                            inner.news.whole();
                        }
                    }
                    Answered::MayTell(may) => {
                        may_tell = may;
                        trust(inner, may);
                    }
                    Answered::Alive => {}
                }
            }
            () = inner.news.work.notified(), if step.is_none() => step = tune(inner, client).await?,
            _ = ticks.tick(), if step.is_none() => {
                tokio::spawn({ let redis = redis.clone(); async move { redis.earlier().await } });
                mind_earlier(inner);
                step = match tune(inner, client).await? {
                    Some(step) => Some(step),
                    None if !may_tell => Some(ask_to_tell(client.clone(), inner)),
                    None => Some(ping(client.clone())),
                };
            }
        }
    }
}

/// Subscribes to everything that is wanted now.
async fn subscribe_to_all(inner: &Inner, client: &Client) -> Result<(), Error> {
    loop {
        let (before, batch) = inner.news.channels().ask_for(BATCH);
        if batch.is_empty() {
            return Ok(());
        }
        subscribe(client.clone(), batch.clone(), before).await?;
        inner.news.hears(&batch);
    }
}

/// All that is subscribed to is heard. That is relied on only if this user may publish: where one may not, the workers
/// of the same user tell nothing.
fn trust(inner: &Inner, may_tell: bool) {
    match may_tell {
        true if inner.news.since().is_none() => inner.news.whole(),
        true => {}
        false => drop(inner.news.since.send_replace(None)),
    }
    refuse(inner, (!may_tell).then_some(Finding::Mute));
}

/// Where this fleet's channels are not those of database 0, whether those are heard as well, for the sake of workers of
/// earlier releases.
fn mind_earlier(inner: &Inner) {
    if inner.space == inner.prefix {
        return;
    }
    let (name, hears) = (keys::news(&inner.prefix), inner.earlier.known().hears());
    let mut channels = inner.news.channels();
    match (hears, channels.is_wanted(&name)) {
        (true, false) => channels.want(&name, None, false),
        (false, true) => channels.leave(&name, Instant::now()),
        _ => {}
    }
}

/// Unsubscribes from channels without a listener, and subscribes to some of those that have one.
async fn tune(inner: &Inner, client: &Client) -> Result<Option<Step>, Error> {
    let (left, (before, wanted)) = {
        let mut channels = inner.news.channels();
        (channels.give_up(Instant::now()), channels.ask_for(BATCH))
    };
    for batch in left.chunks(BATCH) {
        timeout(SETUP_TIMEOUT, client.unsubscribe(batch.to_vec())).await.map_err(|_| Error::Timeout)??;
    }
    if wanted.is_empty() {
        return Ok(None);
    }
    let client = client.clone();
    let asked =
        async move { subscribe(client, wanted.clone(), before).await.map(|()| Answered::Heard(wanted)) };
    Ok(Some(asked.boxed()))
}

/// Subscribes to these, beside `before` others.
async fn subscribe(client: Client, names: Vec<String>, before: usize) -> Result<(), Error> {
    let expected = before + names.len();
    let how_many = CustomCommand::new_static("CLIENT", ClusterHash::FirstKey, false);
    let subscribed = async {
        client.subscribe(names).await?;
        client.custom::<String, _>(how_many, vec!["INFO"]).await
    };
    match timeout(SETUP_TIMEOUT, subscribed).await.map_err(|_| Error::Timeout)?.map_err(Error::from) {
        Ok(info) if subscriptions(&info).is_some_and(|count| count < expected) => {
            let refusal = Refusal::Permission;
            Err(Error::Refused {
                refusal,
                reason: "NOPERM the server does not subscribe to a channel".to_owned(),
            })
        }
        // A server that does not tell is believed.
        Err(Error::Refused { reason, .. }) if reason.to_ascii_lowercase().contains("client") => Ok(()),
        answer => answer.map(|_| ()),
    }
}

/// To how many channels a connection has subscribed, in the answer to `CLIENT INFO`.
fn subscriptions(info: &str) -> Option<usize> {
    info.split_ascii_whitespace().find_map(|field| field.strip_prefix("sub="))?.parse().ok()
}

fn ping(client: Client) -> Step {
    let asked = async move {
        match timeout(PING_TIMEOUT, client.ping::<()>(None)).await.map_err(|_| Error::Timeout)? {
            Ok(()) => Ok(Answered::Alive),
            Err(error) => match Error::from(error) {
                // An answer is an answer: a server that is only busy must not be stormed with connections.
                Error::Refused { .. } => Ok(Answered::Alive),
                error => Err(error),
            },
        }
    };
    asked.boxed()
}

fn ask_to_tell(client: Client, inner: &Arc<Inner>) -> Step {
    let inner = Arc::clone(inner);
    async move { may_tell(client, &inner).await.map(Answered::MayTell) }.boxed()
}

/// Whether this user may publish where the fleet's news are told. If not, other workers of the same user tell nothing
/// either, and no worker can rely on hearing everything.
async fn may_tell(client: Client, inner: &Inner) -> Result<bool, Error> {
    let told = client.publish::<(), _, _>(keys::worker_news(&inner.space, NO_WORKER), "");
    match timeout(SETUP_TIMEOUT, told).await.map_err(|_| Error::Timeout)?.map_err(Error::from) {
        Err(error) if error.unsupported() => Ok(false),
        Ok(()) | Err(Error::Refused { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn hear(inner: &Inner, message: &Message) {
    inner.news.messages.fetch_add(1, Relaxed);
    let Some(text) = message.value.as_str() else { return };
    let to = inner.news.channels().listener(&message.channel);
    match to {
        Some(To::Common) => inner.news.hear(&untagged(inner, &text), inner.earlier.known().hears()),
        Some(To::One(listener)) => listener(&text),
        None => {}
    }
}

/// A message as its listeners know it: in a cluster the keys it names have hash tags.
fn untagged<'a>(inner: &Inner, message: &'a str) -> Cow<'a, str> {
    let named = inner.endpoint.cluster().and_then(|_| message.split_once(' '));
    let plain = named.and_then(|(kind, key)| Some((kind, keys::out_of_cluster(&inner.prefix, key)?)));
    plain.map_or(Cow::Borrowed(message), |(kind, key)| Cow::Owned(format!("{kind} {key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_s_subscriptions_are_read_and_not_guessed() {
        let info = "id=3 addr=/tmp/s:0 name= db=0 sub=12 psub=0 ssub=0 multi=-1 cmd=client|info resp=3";
        assert_eq!(subscriptions(info), Some(12));
        assert_eq!((subscriptions(""), subscriptions("psub=1 sub=x")), (None, None));
    }
}
