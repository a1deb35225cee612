//! The books: what was published against what every client got.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::SubscriberRecord;
use super::parse::Id;
use super::publisher::PublishedMessage;

/// Of a text, the same for all clients in this process.
pub(crate) fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// A text that is published once: the time, who, the how-manieth, and padding.
pub(crate) fn text(micros: u64, press: usize, nth: usize, size: usize) -> String {
    let text = format!("t={micros} {press}/{nth}");
    format!("{text:.<size$}")
}

/// When a text was published, if it says so.
pub(crate) fn printed_at(text: &str) -> Option<u64> {
    text.strip_prefix("t=")?.split(' ').next()?.parse().ok()
}

/// Books that are in order, in figures.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeliveryReport {
    pub(crate) clients: usize,
    /// Published and answered, all topics.
    pub(crate) answered: usize,
    /// Published with an unknown outcome, and received by all clients.
    pub(crate) adopted: usize,
    /// Publishing calls that failed.
    pub(crate) failed: usize,
    /// Of these, calls that got no answer at all. The others were refused: a busy machine may make Redis seem away.
    pub(crate) unanswered: usize,
    /// Why the first of them did.
    pub(crate) failure: String,
    /// Got, all clients.
    pub(crate) delivered: usize,
    /// Streams that began again.
    pub(crate) resumed: u64,
    /// Streams that broke off.
    pub(crate) cut: u64,
    /// Streams that were ended by the server.
    pub(crate) finished: u64,
    /// Times a client was told that it was too slow.
    pub(crate) slow: usize,
    /// From call to arrival, microseconds, sorted.
    pub(crate) late_us: Vec<u32>,
}

impl DeliveryReport {
    /// The time within which this share arrived, milliseconds.
    pub(crate) fn late_ms(&self, share: f64) -> f64 {
        let at = ((self.late_us.len() as f64 * share) as usize).min(self.late_us.len().saturating_sub(1));
        self.late_us.get(at).map_or(0.0, |late| f64::from(*late) / 1000.0)
    }
}

impl fmt::Display for DeliveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} clients, {} published (+{} unknown, {} calls failed {}), {} delivered, {} streams resumed ({} cut, {} ended, {} slow), \
             p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
            self.clients,
            self.answered,
            self.adopted,
            self.failed,
            self.failure,
            self.delivered,
            self.resumed,
            self.cut,
            self.finished,
            self.slow,
            self.late_ms(0.5),
            self.late_ms(0.99),
            self.late_ms(1.0),
        )
    }
}

/// Every message of one topic in order.
type Topic = BTreeMap<Id, u64>;

/// Compares the books: every client of a topic has every message that was answered, once and in order, and no message
/// that was never published; what no one knows the outcome of, all have or none. The first discrepancy otherwise.
///
/// All clients must have listened before the first message was published.
pub(crate) fn audit(
    records: &[SubscriberRecord],
    printed: &[PublishedMessage],
) -> Result<DeliveryReport, String> {
    let topics = truth(records, printed)?;
    let mut balance = DeliveryReport { clients: records.len(), ..DeliveryReport::default() };
    balance.answered = printed.iter().filter(|printed| printed.answer.is_ok()).count();
    balance.failed = printed.len() - balance.answered;
    let lost = |printed: &&PublishedMessage| {
        printed.answer.as_ref().is_err_and(|reason| !reason.starts_with(|c: char| c.is_ascii_digit()))
    };
    balance.unanswered = printed.iter().filter(lost).count();
    let failure = printed.iter().find_map(|printed| printed.answer.as_ref().err());
    balance.failure = failure.cloned().unwrap_or_default();
    balance.adopted = topics.values().map(BTreeMap::len).sum::<usize>() - balance.answered;
    for (number, record) in records.iter().enumerate() {
        let topic = topics.get(&record.topic).ok_or("a topic without a message")?;
        complete(record, topic).map_err(|fault| {
            let (cut, finished, refused) = (record.cut, record.finished, &record.refused);
            format!(
                "client {number} of {}: {fault} (cut {cut}, ended {finished}, refused {refused:?})",
                record.topic
            )
        })?;
        balance.delivered += record.seen.len();
        balance.resumed += record.opened.saturating_sub(1);
        balance.cut += record.cut;
        balance.finished += record.finished;
        balance.slow += record.times("lagged");
        balance.late_us.extend(record.seen.iter().filter_map(|seen| seen.late_us));
    }
    balance.late_us.sort_unstable();
    Ok(balance)
}

/// What there was: all that was answered, and what any client got that was not.
fn truth(
    records: &[SubscriberRecord],
    printed: &[PublishedMessage],
) -> Result<HashMap<String, Topic>, String> {
    let mut topics: HashMap<String, Topic> = HashMap::new();
    let mut unknown: HashMap<(&str, u64), Option<Id>> = HashMap::new();
    for printed in printed {
        match &printed.answer {
            Ok(id) => {
                let twice = topics.entry(printed.topic.clone()).or_default().insert(*id, printed.hash);
                if twice.is_some() {
                    return Err(format!("{id} was given to two messages of {}", printed.topic));
                }
            }
            Err(_) => _ = unknown.insert((&printed.topic, printed.hash), None),
        }
    }
    for record in records {
        let topic = topics.entry(record.topic.clone()).or_default();
        for seen in record.seen.iter() {
            if topic.contains_key(&seen.id) {
                continue;
            }
            let place = unknown.get_mut(&(record.topic.as_str(), seen.hash));
            let place =
                place.ok_or_else(|| format!("{} of {} was never published", seen.id, record.topic))?;
            if let Some(id) = place.replace(seen.id) {
                return Err(format!("one call published {id} and {} in {}", seen.id, record.topic));
            }
            topic.insert(seen.id, seen.hash);
        }
    }
    Ok(topics)
}

fn complete(record: &SubscriberRecord, topic: &Topic) -> Result<(), String> {
    if let Some(fault) = record.faults.first() {
        return Err(fault.clone());
    }
    if record.times("gap") > 0 {
        return Err("it was told of a gap".to_owned());
    }
    let mut seen = record.seen.iter();
    for (id, hash) in topic {
        match seen.next() {
            Some(seen) if seen.id == *id && seen.hash == *hash => {}
            Some(seen) if seen.id == *id => return Err(format!("{id} has another text")),
            Some(seen) => return Err(format!("{id} is missing; {} came in its place", seen.id)),
            None => {
                return Err(format!(
                    "{id} and what follows is missing, {} of {}",
                    record.seen.len(),
                    topic.len()
                ));
            }
        }
    }
    seen.next().map_or(Ok(()), |more| Err(format!("{} came at the end", more.id)))
}
