//! How many subscribe to a topic on all workers of the fleet.
//!
//! Every worker reports its own number for a few seconds at a time; what is shown is the sum of a second ago.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::{Notify, watch};

use crate::broadcasts::topic::TopicName;

/// Rounds after which an unchanged number is reported again, well before its report expires.
const RENEW_ROUNDS: u32 = 3;

/// What this worker reported, and which topics are watched here.
#[derive(Debug)]
pub(super) struct PresenceTracker {
    rows: Mutex<HashMap<TopicName, TopicPresence>>,
    /// Notified when there is something to report or to query after a time without.
    wake: Notify,
    /// This worker's random name.
    worker_id: String,
}

#[derive(Debug, Default)]
struct TopicPresence {
    /// The last number that Redis acknowledged.
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

/// How many subscribe to a topic on all workers; queried once a second while this value lives.
pub struct Presence {
    tracker: Arc<PresenceTracker>,
    topic: TopicName,
    sum: watch::Receiver<Option<u64>>,
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence")
            .field("topic", &self.topic)
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

impl Presence {
    pub(super) fn new(tracker: &Arc<PresenceTracker>, topic: &TopicName) -> Self {
        let mut rows = tracker.rows();
        let row = rows.entry(topic.clone()).or_default();
        row.watchers += 1;
        // For the first watcher the last sum may be old.
        if row.watchers == 1 {
            row.sum.send_replace(None);
        }
        let mut sum = row.sum.subscribe();
        sum.mark_changed();
        drop(rows);
        tracker.wake();
        Self { tracker: Arc::clone(tracker), topic: topic.clone(), sum }
    }

    /// The number of about a second ago; `None` until the first query is answered.
    pub fn count(&self) -> Option<u64> {
        *self.sum.borrow()
    }

    /// Waits until the number differs from the last returned one; the first time until it is known.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn next(&mut self) -> u64 {
        loop {
            // The sender lives as long as there is a watcher.
            let _ = self.sum.changed().await.is_ok();
            if let Some(count) = *self.sum.borrow_and_update() {
                return count;
            }
        }
    }
}

impl Clone for Presence {
    fn clone(&self) -> Self {
        Self::new(&self.tracker, &self.topic)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if let Some(row) = self.tracker.rows().get_mut(&self.topic) {
            row.watchers -= 1;
        }
    }
}

impl PresenceTracker {
    pub(super) fn new() -> Self {
        // From the operating system: workers forked from one supervisor share the state of any other generator.
        let number = OsRng.try_next_u64().unwrap_or_else(|_| u64::from(std::process::id()));
        Self { rows: Mutex::default(), wake: Notify::new(), worker_id: format!("{number:016x}") }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<TopicName, TopicPresence>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn worker_id(&self) -> &str {
        &self.worker_id
    }

    /// Whether there is nothing to report or to query.
    pub(super) fn is_empty(&self) -> bool {
        self.rows().is_empty()
    }

    /// A topic has a first subscriber or watcher.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits for [`Self::wake`].
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The topics to report or to query, with the number to report if there is one. A call is one round.
    pub(super) fn due_reports(&self, counts: &[(TopicName, u64)]) -> Vec<(TopicName, Option<u64>)> {
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
            let report = row.is_due(count).then_some(count);
            (report.is_some() || row.watchers > 0).then(|| (topic.clone(), report))
        });
        due.collect()
    }

    /// Records the sums that Redis returned for these reports; `None`: it is unknown whether it stored them.
    pub(super) fn record_reports(&self, reports: &[(TopicName, Option<u64>)], sums: Option<&[u64]>) {
        let mut rows = self.rows();
        for (index, (topic, report)) in reports.iter().enumerate() {
            let Some(row) = rows.get_mut(topic) else { continue };
            match (report, sums) {
                // Redis may have stored it: the row stays until a later report replaces it.
                (Some(_), None) => row.age = RENEW_ROUNDS,
                (Some(count), Some(_)) => (row.reported, row.age) = (Some(*count), 0),
                (None, _) => {}
            }
            if let Some(sum) = sums.and_then(|sums| sums.get(index)) {
                row.sum.send_if_modified(|known| known.replace(*sum) != Some(*sum));
            }
        }
    }
}
