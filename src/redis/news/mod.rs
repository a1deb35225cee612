//! What workers must know at once: one connection that only listens, to the channels that have listeners here.
//!
//! Guarantees that a worker hears what was asked for on it and no more, that a channel is heard when [`Redis::confirmed`]
//! says so, and that a listener can tell whether it may have missed something: [`Redis::news_since`] says from when on
//! everything was heard, and says so only while the connection answers. The connection is made for the first
//! listener, and made anew for ever, with the pauses of the other one. News that came faster than it was heard is
//! missed like any other. Whatever is published there is hearsay: each listener checks what it acts on.

mod channels;
mod link;

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::redis::Findings;
use crate::redis::Inner;
use crate::redis::Redis;
use crate::redis::inspect::Finding;
use crate::redis::keys;
use channels::Channels;

/// Kinds of news that only workers of earlier releases tell on the fleet's one channel: broadcasts, tasks to take, tasks
/// that changed. Later ones have channels of their own for each, and believe none of these while no earlier one lives.
const EARLIER: [char; 3] = ['b', 't', 'p'];

/// No worker has this name: what is told to it only shows whether this user may tell anything.
pub(super) const NO_WORKER: &str = "-";

/// Hears the text of one kind of news.
pub type Listener = Arc<dyn Fn(&str) + Send + Sync>;

/// A channel beside the fleet's common one.
#[derive(Debug, Clone, Copy)]
pub enum Channel<'a> {
    /// A topic's messages.
    Topic(&'a str),
    /// A task's changes.
    Task(&'a str),
    /// What is told to one worker.
    Worker(&'a str),
}

/// A worker's listeners, and how far they can rely on hearing everything.
#[derive(Default)]
pub(super) struct Listeners {
    all: RwLock<Vec<(char, Listener)>>,
    channels: Mutex<Channels>,
    since: watch::Sender<Option<Instant>>,
    /// Changes whenever a channel is heard that was not, and when none is any more.
    heard: watch::Sender<u64>,
    /// What of the user's rights is missing, as a finding.
    refused: watch::Sender<Option<Finding>>,
    /// Told when a channel is wanted, or no longer.
    work: Notify,
    started: AtomicBool,
    /// Whether there is a connection, or one is being made.
    connected: AtomicBool,
    messages: AtomicU64,
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

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is wanted is heard from now on.
    fn whole(&self) {
        self.since.send_replace(Some(Instant::now()));
    }

    /// These channels are heard.
    fn hears(&self, names: &[String]) {
        self.channels().heard(names);
        self.heard.send_modify(|times| *times += 1);
    }

    /// The connection is gone.
    fn lost(&self) {
        self.connected.store(false, Relaxed);
        self.channels().lost();
        self.since.send_replace(None);
        self.heard.send_modify(|times| *times += 1);
    }

    /// A message on the fleet's common channel is a letter for its kind, a space, and a text.
    fn hear(&self, message: &str, earlier: bool) {
        let mut letters = message.chars();
        let (Some(kind), Some(' ')) = (letters.next(), letters.next()) else { return };
        if EARLIER.contains(&kind) && !earlier {
            return;
        }
        for (_, listener) in self.all().iter().filter(|(wanted, _)| *wanted == kind) {
            listener(letters.as_str());
        }
    }

    fn all(&self) -> Vec<(char, Listener)> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A channel is heard as long as this value lives, and a little longer.
pub struct Heard {
    inner: Arc<Inner>,
    name: String,
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Heard").field(&self.name).finish()
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.inner.news.channels().leave(&self.name, Instant::now());
        self.inner.news.work.notify_one();
    }
}

impl Redis {
    /// Calls the listener for each message of one kind of common news, for as long as this worker lives; the first
    /// listener starts the connection.
    ///
    /// The listener is called on the worker's event loop and must not take long.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen(&self, kind: char, listener: Listener) {
        let news = &self.inner.news;
        news.all.write().unwrap_or_else(PoisonError::into_inner).push((kind, listener));
        self.start_listening();
    }

    /// Calls the listener for each message of a channel. A later listener to the same channel takes its place.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn hear(&self, channel: Channel<'_>, listener: Listener) -> Heard {
        let (news, name) = (&self.inner.news, self.name_of(channel));
        // A page that is loaded anew subscribes to its topic again in a moment; a task that ended is not followed again.
        let lingers = matches!(channel, Channel::Topic(_));
        news.channels().want(&name, Some(listener), lingers);
        self.start_listening();
        news.work.notify_one();
        Heard { inner: Arc::clone(&self.inner), name }
    }

    fn start_listening(&self) {
        let news = &self.inner.news;
        if !news.started.swap(true, Relaxed) {
            news.connected.store(true, Relaxed);
            news.channels().want(&keys::news(&self.inner.space), None, false);
            tokio::spawn(link::keep(Arc::clone(&self.inner)));
        }
    }

    /// Waits until a channel is heard. False: it has no listener, or there is no connection; all that have listeners are
    /// heard when there is one, and [`Redis::news_since`] changes then.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn confirmed(&self, channel: Channel<'_>) -> bool {
        let (news, name) = (&self.inner.news, self.name_of(channel));
        let mut heard = news.heard.subscribe();
        loop {
            if news.channels().is_heard(&name) {
                return true;
            }
            let may_come = news.connected.load(Relaxed) && news.channels().is_wanted(&name);
            if !may_come || heard.changed().await.is_err() {
                return false;
            }
        }
    }

    fn name_of(&self, channel: Channel<'_>) -> String {
        let space = &self.inner.space;
        match channel {
            Channel::Topic(topic) => keys::topic_news(space, topic),
            Channel::Task(id) => keys::task_news(space, id),
            Channel::Worker(worker) => keys::worker_news(space, worker),
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

    /// Messages that came so far, on all channels.
    pub fn news_heard(&self) -> u64 {
        self.inner.news.messages.load(Relaxed)
    }

    /// What of the user's rights is missing for news, as this worker found out by itself.
    pub fn news_findings(&self) -> Findings {
        self.inner.news.refused.borrow().iter().copied().collect()
    }

    /// Changes whenever [`Redis::news_findings`] does.
    pub fn news_rights(&self) -> watch::Receiver<Option<Finding>> {
        self.inner.news.refused.subscribe()
    }

    /// The fleet's common channel, for what is told now.
    ///
    /// Workers of earlier releases listen to that of database 0, whatever their own. As long as one lives, later ones
    /// listen to both and tell there.
    pub(super) async fn channel(&self) -> String {
        let inner = &self.inner;
        if inner.space != inner.prefix && self.earlier().await.tells() {
            return keys::news(&inner.prefix);
        }
        keys::news(&inner.space)
    }

    /// Where workers of earlier releases hear of broadcasts and tasks; empty while there is none.
    pub(super) async fn earlier_channel(&self) -> String {
        match self.earlier().await.tells() {
            true => keys::news(&self.inner.prefix),
            false => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn everybody_hears_his_kind_of_news_only() {
        let listeners = Listeners::default();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        for kind in ['l', 'b'] {
            let listener = Arc::clone(&heard);
            let listen: Listener = Arc::new(move |text: &str| listener.lock().unwrap().push(text.to_owned()));
            listeners.all.write().unwrap().push((kind, listen));
        }
        for message in ["l p:l:a", "x p:l:b", "l", "", "l ", "lp", "b chat 0-0 1-0 forged"] {
            listeners.hear(message, false);
        }
        assert_eq!(*heard.lock().unwrap(), ["p:l:a", ""]);
        listeners.hear("b chat 0-0 1-0 x", true);
        assert_eq!(heard.lock().unwrap()[2..], ["chat 0-0 1-0 x"], "an earlier release tells it there");
    }
}
