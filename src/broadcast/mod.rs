//! Messages to all subscribers of a topic, whichever worker of whichever machine they are connected to.
//!
//! A topic is a capped stream in Redis, which is the truth; news only wake workers up. Guarantees each subscriber every
//! message after the one it begins with, once and in the order of ids, whatever happens to connections, workers and Redis
//! itself, or tells it that there is a gap; and that a slow one neither holds up another nor takes memory without bound.
//! A topic without subscribers here costs a worker nothing: each has a channel of its own, which only workers with
//! subscribers hear. What comes there is believed if it bears the fleet's mark.

mod chain;
mod error;
mod hearing;
mod id;
mod keeper;
mod line;
mod message;
mod presence;
mod ring;
mod subscription;
mod topic;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::Notify;
use tokio::sync::Semaphore;

use crate::config::schema;
use crate::redis;
use crate::redis::Redis;
use crate::redis::live::Publish;
use crate::redis::live::Stored;
use crate::redis::news::Heard;
pub use error::Error;
pub use id::Id;
pub use id::InvalidId;
use line::Line;
pub use message::Message;
pub use presence::Here;
use presence::Presence;
pub use subscription::Event;
pub use subscription::Subscription;
pub use topic::InvalidTopic;
pub use topic::TOPIC_MAX;
pub use topic::Topic;

/// Bytes of messages that a worker remembers, of all topics together. The largest message of every topic must fit, so there
/// are no more topics than that allows: all that are allowed by default.
const MEMORY: usize = 48 << 20;
/// A topic's share grows when it would become this many times as large: topics that come and go change nothing.
const GROWTH: usize = 4;
/// Bytes of one answer of Redis, or two messages if these are more; and messages in it.
const PAGE_BYTES: usize = 1 << 20;
const PAGE_MAX: usize = 128;
/// Reads of older messages at the same time.
const READS: usize = 8;
/// Shortest and longest pause before Redis is asked again after it could not answer.
const PAUSE_MS: [u32; 2] = [100, 1000];

/// A worker's broadcasts; clones are the same one.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    redis: Redis,
    settings: schema::Broadcast,
    topics: Mutex<HashMap<Topic, Table>>,
    subscribers: AtomicUsize,
    /// Bytes that each topic may have remembered.
    room: Arc<AtomicUsize>,
    /// Messages in one answer of Redis.
    page: usize,
    listens: AtomicBool,
    /// Whether it was said that a topic holds something that is no message.
    strange: AtomicBool,
    /// Told when a stream is to be asked, or there is a first topic.
    doubt: Notify,
    reads: Semaphore,
    presence: Presence,
    figures: Counts,
}

/// A topic, and how many subscribe to it here.
struct Table {
    line: Arc<Line>,
    seats: usize,
    _heard: Heard,
}

/// A subscriber's right to his topic.
struct Seat {
    inner: Arc<Inner>,
    line: Arc<Line>,
}

#[derive(Debug, Default)]
struct Counts {
    published: AtomicU64,
    delivered: AtomicU64,
    gaps: AtomicU64,
    gaps_read: AtomicU64,
    slow: AtomicU64,
}

/// What a worker's broadcasts did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Clients that subscribe now.
    pub subscribers: u64,
    /// Topics to which they do.
    pub topics: u64,
    /// Messages published through this worker.
    pub published: u64,
    /// Messages passed on, once for each client.
    pub delivered: u64,
    /// Clients told that messages may be missing.
    pub gaps: u64,
    /// Times that messages were read which had not been heard.
    pub gaps_read: u64,
    /// Clients dropped because they were too slow.
    pub slow: u64,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("figures", &self.figures()).finish_non_exhaustive()
    }
}

impl Hub {
    /// Over this connection; no I/O, no runtime needed.
    pub fn new(redis: Redis, settings: &schema::Broadcast) -> Self {
        let largest = settings.message_limit.max(1);
        let inner = Inner {
            redis,
            page: (PAGE_BYTES / largest).clamp(2, PAGE_MAX),
            settings: settings.clone(),
            topics: Mutex::default(),
            subscribers: AtomicUsize::new(0),
            room: Arc::new(AtomicUsize::new(MEMORY)),
            listens: AtomicBool::new(false),
            strange: AtomicBool::new(false),
            doubt: Notify::new(),
            reads: Semaphore::new(READS),
            presence: Presence::new(),
            figures: Counts::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins to keep topics whole, for as long as the runtime lives; to be called once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) {
        tokio::spawn(keeper::keep(Arc::clone(&self.inner)));
        tokio::spawn(presence::keep(Arc::clone(&self.inner)));
    }

    /// Publishes a message to everybody who subscribes to the topic, in the whole fleet.
    ///
    /// # Errors
    /// [`Error::TooLong`], and [`Error::Redis`]; after its `Timeout` and `Lost` the message may have been published, and
    /// repeating it may publish it twice.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was published.
    pub async fn publish(&self, topic: &Topic, text: &str) -> Result<Id, Error> {
        let schema::Broadcast { message_limit, history, keep, .. } = self.inner.settings;
        if text.len() > message_limit {
            return Err(Error::TooLong { len: text.len(), limit: message_limit });
        }
        let message = Publish { topic: topic.as_str(), text, history, keep };
        let id = self.inner.redis.live_publish(&message).await?;
        self.inner.figures.published.fetch_add(1, Relaxed);
        Ok(id.into())
    }

    /// Subscribes to a topic: to every message after `after`, which the one who comes back has seen, or from now on.
    ///
    /// # Errors
    /// [`Error::Subscribers`] and [`Error::Topics`] when there is no room in this worker; [`Error::Redis`] when no one
    /// subscribes to the topic here yet and Redis cannot say where it stands.
    ///
    /// # Cancel safety
    /// Dropping the future ends the subscription.
    pub async fn subscribe(&self, topic: &Topic, after: Option<Id>) -> Result<Subscription, Error> {
        if self.inner.redis.is_plain() {
            return Err(Error::Redis(redis::Error::Unsupported { what: "a broadcast" }));
        }
        let seat = self.inner.sit(topic)?;
        if !seat.line.has_begun() {
            self.begin(&seat.line).await?;
        }
        Ok(Subscription::new(seat, after))
    }

    /// How many subscribe to a topic in the whole fleet.
    pub fn here(&self, topic: &Topic) -> Here {
        Here::new(&self.inner, topic)
    }

    /// Clients that subscribe to anything in this worker.
    pub fn subscribers(&self) -> usize {
        self.inner.subscribers.load(Relaxed)
    }

    /// What this worker's broadcasts did so far.
    pub fn figures(&self) -> Figures {
        let Counts { published, delivered, gaps, gaps_read, slow } = &self.inner.figures;
        Figures {
            subscribers: self.subscribers() as u64,
            topics: self.inner.topics().len() as u64,
            published: published.load(Relaxed),
            delivered: delivered.load(Relaxed),
            gaps: gaps.load(Relaxed),
            gaps_read: gaps_read.load(Relaxed),
            slow: slow.load(Relaxed),
        }
    }

    /// Takes back what this worker said of who is here, because it ends; waits for 200 ms at most.
    ///
    /// # Cancel safety
    /// The one who does not hear of it forgets this worker ten seconds later.
    pub async fn leave(&self) {
        presence::leave(&self.inner).await;
    }
}

impl Inner {
    fn topics(&self) -> MutexGuard<'_, HashMap<Topic, Table>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> Vec<Arc<Line>> {
        self.topics().values().map(|table| Arc::clone(&table.line)).collect()
    }

    fn counts(&self) -> Vec<(Topic, u64)> {
        self.topics().iter().map(|(topic, table)| (topic.clone(), table.seats as u64)).collect()
    }

    /// Takes a seat at a topic's table, which is set up for the first one.
    fn sit(self: &Arc<Self>, topic: &Topic) -> Result<Seat, Error> {
        let schema::Broadcast { subscribers, topics: topics_max, buffer, history, .. } = self.settings;
        let topics_max = topics_max.min((MEMORY / self.largest()).max(1));
        if self.subscribers() >= subscribers {
            return Err(Error::Subscribers { limit: subscribers });
        }
        let mut topics = self.topics();
        if !topics.contains_key(topic) {
            if topics.len() >= topics_max {
                return Err(Error::Topics { limit: topics_max });
            }
            // All that Redis keeps fits, so that a client that comes back reads nothing itself; and all that may come at once.
            let history = usize::try_from(history).unwrap_or(usize::MAX);
            let count = history.max(buffer).saturating_add(chain::PENDING_MAX + 2 * PAGE_MAX);
            let line = Arc::new(Line::new(topic, count, &self.room));
            let heard = self.listen_to(&line);
            topics.insert(topic.clone(), Table { line, seats: 0, _heard: heard });
            self.share(&topics);
            self.presence.wake();
        }
        let Some(table) = topics.get_mut(topic) else { return Err(Error::Topics { limit: topics_max }) };
        table.seats += 1;
        self.subscribers.fetch_add(1, Relaxed);
        Ok(Seat { inner: Arc::clone(self), line: Arc::clone(&table.line) })
    }

    fn subscribers(&self) -> usize {
        self.subscribers.load(Relaxed)
    }

    /// Divides the memory among the topics. Shares change at powers of two only, so that it costs a topic next to nothing
    /// that all others have to give something up.
    fn share(&self, topics: &HashMap<Topic, Table>) {
        let present = self.room.load(Relaxed);
        let room = (MEMORY / topics.len().next_power_of_two()).max(self.largest());
        if room < present {
            self.room.store(room, Relaxed);
            topics.values().for_each(|table| table.line.trim());
        } else if room / GROWTH >= present || topics.is_empty() {
            self.room.store(room, Relaxed);
        }
    }

    /// Bytes that the largest message takes in memory.
    fn largest(&self) -> usize {
        message::weight(self.settings.message_limit)
    }

    /// Says once that a topic holds something that is no message.
    fn note_strange(&self, topic: &Topic, read: &[Stored]) {
        if read.iter().any(|stored| stored.text.is_none()) && !self.strange.swap(true, Relaxed) {
            tracing::warn!(%topic, "a topic's stream holds something that is no message; it is passed over");
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut topics = self.inner.topics();
        if let Some(table) = topics.get_mut(&self.line.topic) {
            table.seats -= 1;
            if table.seats == 0 {
                topics.remove(&self.line.topic);
                self.inner.share(&topics);
            }
        }
        self.inner.subscribers.fetch_sub(1, Relaxed);
    }
}

/// How long to wait before Redis is asked again: random, so that not all who wait ask at once.
fn pause() -> Duration {
    let [shortest, longest] = PAUSE_MS;
    let random = OsRng.try_next_u32().unwrap_or(0);
    Duration::from_millis(u64::from(shortest + random % (longest - shortest)))
}
