//! What workers must know at once: one connection that only listens, and those who want to hear.
//!
//! Guarantees that a listener can tell whether it may have missed something: [`Redis::news_since`] says from when on
//! everything was heard, and says so only while the connection answers. The connection is made when somebody first
//! wants to listen, and made anew for ever, with the pauses of the other one. News that came faster than it was heard is
//! missed like any other.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::interfaces::EventInterface;
use fred::interfaces::PubsubInterface;
use fred::types::RespVersion;
use fred::types::config::Config;
use fred::types::config::PerformanceConfig;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval_at;
use tokio::time::timeout;

use crate::redis::Inner;
use crate::redis::Redis;
use crate::redis::endpoint;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::pauses::Pauses;
use crate::redis::pauses::random;
use crate::sys::time;

/// How often the connection is asked whether it lives, and how long it may think; what is heard is trusted for no
/// longer than both.
const PING_EVERY: Duration = time::TICK.saturating_mul(20);
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// Longest wait for one step of a connection's making.
const SETUP_TIMEOUT: Duration = Duration::from_millis(700);

/// A connection that lived this long begins counting pauses anew.
const SETTLED: Duration = Duration::from_secs(2);

/// Messages that may have come and not been heard yet: what one read from the socket brings, and more. The client makes
/// room for them beforehand, so it is not many.
const BACKLOG: usize = 256;

/// Hears the text of one kind of news.
pub type Listener = Arc<dyn Fn(&str) + Send + Sync>;

/// Those who listen, and how far they can rely on it.
#[derive(Default)]
pub(super) struct Listeners {
    all: RwLock<Vec<(char, Listener)>>,
    since: watch::Sender<Option<Instant>>,
    started: AtomicBool,
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").field("since", &self.since()).finish_non_exhaustive()
    }
}

impl Listeners {
    fn since(&self) -> Option<Instant> {
        *self.since.borrow()
    }

    fn set_since(&self, since: Option<Instant>) {
        self.since.send_replace(since);
    }

    /// A message is a letter for its kind, a space, and a text.
    fn hear(&self, message: &str) {
        let mut letters = message.chars();
        let (Some(kind), Some(' ')) = (letters.next(), letters.next()) else { return };
        for (_, listener) in self.all().iter().filter(|(wanted, _)| *wanted == kind) {
            listener(letters.as_str());
        }
    }

    fn all(&self) -> Vec<(char, Listener)> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Redis {
    /// Has somebody listen to one kind of news, for as long as this worker lives; the first one starts the connection.
    ///
    /// The listener is called on the worker's event loop and must not take long.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen(&self, kind: char, listener: Listener) {
        let news = &self.inner.news;
        news.all.write().unwrap_or_else(PoisonError::into_inner).push((kind, listener));
        if !news.started.swap(true, Relaxed) {
            tokio::spawn(keep(Arc::clone(&self.inner)));
        }
    }

    /// From when on all news was heard; `None`: some may be missed at this moment.
    pub fn news_since(&self) -> Option<std::time::Instant> {
        self.inner.news.since().map(Instant::into_std)
    }

    /// Changes whenever [`Redis::news_since`] does.
    pub fn news_changes(&self) -> watch::Receiver<Option<Instant>> {
        self.inner.news.since.subscribe()
    }

    /// The channel of this fleet's news.
    pub(super) fn channel(&self) -> String {
        keys::news(&self.inner.prefix)
    }
}

async fn keep(inner: Arc<Inner>) {
    // No request waits for it, so it is never in a hurry.
    let mut pauses = Pauses::new(Duration::ZERO, Instant::now());
    loop {
        let begun = Instant::now();
        let error = follow(&inner).await;
        inner.news.set_since(None);
        tracing::debug!(%error, "news is not heard: {error}");
        if begun.elapsed() >= SETTLED {
            pauses.lost(Instant::now(), true);
        }
        tokio::time::sleep(pauses.next(Instant::now(), random())).await;
    }
}

/// Listens until the connection ends or can no longer be trusted.
async fn follow(inner: &Inner) -> Error {
    // RESP3, because a connection that listens under RESP2 cannot be asked anything else in the common form.
    let config = match inner.endpoint.any() {
        Ok(config) => Config { version: RespVersion::RESP3, ..config },
        Err(error) => return error,
    };
    let performance = PerformanceConfig { broadcast_channel_capacity: BACKLOG, ..endpoint::performance() };
    let client = Client::new(config, Some(performance), Some(endpoint::connection()), None);
    let mut task = client.connect();
    let error = tokio::select! {
        error = listen(inner, &client) => error,
        ended = &mut task => match ended {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => Error::unavailable("the connection was closed"),
        },
    };
    task.abort();
    error
}

async fn listen(inner: &Inner, client: &Client) -> Error {
    match timeout(2 * SETUP_TIMEOUT, client.wait_for_connect()).await {
        Err(_) => return Error::Timeout,
        Ok(Err(error)) => return error.into(),
        Ok(Ok(())) => {}
    }
    let mut messages = client.message_rx();
    match timeout(SETUP_TIMEOUT, client.subscribe(keys::news(&inner.prefix))).await {
        Err(_) => return Error::Timeout,
        Ok(Err(error)) => return error.into(),
        Ok(Ok(())) => inner.news.set_since(Some(Instant::now())),
    }
    let mut ticks = interval_at(Instant::now() + time::until_tick(PING_EVERY), PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Ok(message) => {
                    if let Some(text) = message.value.as_str() {
                        inner.news.hear(&untagged(inner, &text));
                    }
                }
                // Too many at once: from here on everything is heard again.
                Err(RecvError::Lagged(count)) => {
                    tracing::debug!(count, "news came faster than it was heard");
                    inner.news.set_since(Some(Instant::now()));
                }
                Err(error @ RecvError::Closed) => return Error::unavailable(error.to_string()),
            },
            _ = ticks.tick() => match timeout(PING_TIMEOUT, client.ping::<()>(None)).await {
                Err(_) => return Error::Timeout,
                Ok(Err(error)) => match Error::from(error) {
                    // An answer is an answer: a server that is only busy must not be stormed with connections.
                    Error::Refused { .. } => {}
                    error => return error,
                },
                Ok(Ok(())) => {}
            },
        }
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
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn everybody_hears_his_kind_of_news_only() {
        let listeners = Listeners::default();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let listener = Arc::clone(&heard);
        let listen: Listener = Arc::new(move |text: &str| listener.lock().unwrap().push(text.to_owned()));
        listeners.all.write().unwrap().push(('l', listen));
        for message in ["l p:l:a", "x p:l:b", "l", "", "l ", "lp"] {
            listeners.hear(message);
        }
        assert_eq!(*heard.lock().unwrap(), ["p:l:a", ""]);
    }
}
