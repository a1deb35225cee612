//! How many subscribe to a topic on all workers of the fleet.
//!
//! Every worker says how many it has, for a few seconds at a time, so that one that was killed is soon forgotten. Said and
//! asked is in one call a second at most for all topics, and in none while nothing changes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::{Notify, watch};

use crate::broadcast::HubState;
use crate::broadcast::topic::TopicName;

/// How often a worker speaks, at most.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long its word holds.
const PRESENCE_TTL: Duration = Duration::from_secs(10);
/// After how many of [`EVERY`] it says the same once more.
const RENEW_ROUNDS: u32 = 3;
/// Topics in one call.
const TOPICS_PER_CALL: usize = 128;
/// Longest time a worker that ends takes to say so.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(200);

/// What this worker said, and who asks here.
#[derive(Debug)]
pub(super) struct PresenceTracker {
    rows: Mutex<HashMap<TopicName, TopicPresence>>,
    /// Told when there is something to say or to ask after a time in which there was nothing.
    wake: Notify,
    /// This worker's name, unlike every other one.
    worker_id: String,
}

#[derive(Debug, Default)]
struct TopicPresence {
    /// What was said last; none: nothing, or it is unknown whether it was heard.
    reported: Option<u64>,
    /// Rounds since then.
    age: u32,
    watchers: usize,
    sum: watch::Sender<Option<u64>>,
}

impl TopicPresence {
    fn is_due(&self, count: u64) -> bool {
        self.reported != Some(count) && (count > 0 || self.reported.is_some())
            || count > 0 && self.age >= RENEW_ROUNDS
    }
}

/// How many subscribe to a topic, on all workers; asked for once a second while this value lives.
pub struct Presence {
    inner: Arc<HubState>,
    topic: TopicName,
    sum: watch::Receiver<Option<u64>>,
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Here")
            .field("topic", &self.topic)
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

impl Presence {
    pub(super) fn new(inner: &Arc<HubState>, topic: &TopicName) -> Self {
        let mut rows = inner.presence.rows();
        let row = rows.entry(topic.clone()).or_default();
        row.watchers += 1;
        // The one who asks first since a while would be told what was true then.
        if row.watchers == 1 {
            row.sum.send_replace(None);
        }
        let mut sum = row.sum.subscribe();
        sum.mark_changed();
        drop(rows);
        inner.presence.wake.notify_one();
        Self { inner: Arc::clone(inner), topic: topic.clone(), sum }
    }

    /// How many, about a second ago; none until that was asked for the first time.
    pub fn count(&self) -> Option<u64> {
        *self.sum.borrow()
    }

    /// Waits until it is another number than the last time; the first time until it is known.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn next(&mut self) -> u64 {
        loop {
            // The sender lives as long as someone asks.
            let _ = self.sum.changed().await.is_ok();
            if let Some(count) = *self.sum.borrow_and_update() {
                return count;
            }
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if let Some(row) = self.inner.presence.rows().get_mut(&self.topic) {
            row.watchers -= 1;
        }
    }
}

impl PresenceTracker {
    pub(super) fn new() -> Self {
        // By the operating system: workers forked from one supervisor share the state of any other generator.
        let number = OsRng.try_next_u64().unwrap_or_else(|_| u64::from(std::process::id()));
        Self { rows: Mutex::default(), wake: Notify::new(), worker_id: format!("{number:016x}") }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<TopicName, TopicPresence>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Someone subscribes to a topic to which no one did.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// What is to be said, if anything, of each topic of which something is to be said or asked.
    fn due_reports(&self, counts: &[(TopicName, u64)]) -> Vec<(TopicName, Option<u64>)> {
        let mut rows = self.rows();
        for (topic, _) in counts {
            if !rows.contains_key(topic.as_str()) {
                rows.insert(topic.clone(), TopicPresence::default());
            }
        }
        let counts: HashMap<&str, u64> =
            counts.iter().map(|(topic, count)| (topic.as_str(), *count)).collect();
        let count_of = |topic: &TopicName| counts.get(topic.as_str()).copied().unwrap_or(0);
        rows.retain(|topic, row| {
            row.age += 1;
            row.watchers > 0 || count_of(topic) > 0 || row.reported.is_some_and(|reported| reported > 0)
        });
        let due = rows.iter().filter_map(|(topic, row)| {
            let count = count_of(topic);
            let word = row.is_due(count).then_some(count);
            (word.is_some() || row.watchers > 0).then(|| (topic.clone(), word))
        });
        due.collect()
    }

    /// What was said was heard, and this is the answer; `None` if no one knows whether it was.
    fn record_reports(&self, reports: &[(TopicName, Option<u64>)], sums: Option<&[u64]>) {
        let mut rows = self.rows();
        for (index, (topic, word)) in reports.iter().enumerate() {
            let Some(row) = rows.get_mut(topic) else { continue };
            match (word, sums) {
                // What may have been heard has to be taken back, too.
                (Some(_), None) => row.age = RENEW_ROUNDS,
                (Some(word), Some(_)) => (row.reported, row.age) = (Some(*word), 0),
                (None, _) => {}
            }
            if let Some(sum) = sums.and_then(|sums| sums.get(index)) {
                row.sum.send_if_modified(|known| known.replace(*sum) != Some(*sum));
            }
        }
    }
}

/// Says and asks for as long as the runtime lives.
pub(super) async fn run(inner: Arc<HubState>) {
    loop {
        let counts = inner.subscriber_counts();
        report(&inner, &counts).await;
        tokio::time::sleep(REPORT_INTERVAL).await;
        if inner.presence.rows().is_empty() && inner.subscriber_counts().is_empty() {
            inner.presence.wake.notified().await;
        }
    }
}

/// Takes back what this worker said; it ends.
pub(super) async fn withdraw(inner: &HubState) {
    // Those who do not hear of it forget this worker some seconds later.
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, report(inner, &[])).await.is_ok();
}

async fn report(inner: &HubState, counts: &[(TopicName, u64)]) {
    for words in inner.presence.due_reports(counts).chunks(TOPICS_PER_CALL) {
        let reports: Vec<_> = words.iter().map(|(topic, word)| (topic.as_str(), *word)).collect();
        match inner.redis.report_presence(&inner.presence.worker_id, PRESENCE_TTL, &reports).await {
            Ok(sums) => inner.presence.record_reports(words, Some(&sums)),
            Err(error) => {
                tracing::debug!(%error, "who is here is not known: {error}");
                inner.presence.record_reports(words, None);
            }
        }
    }
}
