//! Broadcasts in Redis: a stream for each topic, the notification that wakes workers, and the number of subscribers.
//!
//! The wire form is described at the head of `migrations/0018_regatta_live_v3.lua` (subscribers:
//! `0013_regatta_live_v2.lua`). Reads use plain commands, so that they work while the server takes no writes.

use std::time::Duration;

use crate::broadcasts::keys;
use crate::redis::functions::ServerFunction;
use crate::redis::wire::{Value, list, number, signed, with_keys};
use crate::redis::{ActiveConnection, CallKind, InvocationMode, RedisClient, RedisError};

/// The letter of a broadcast's notification on the common channel, which workers of earlier releases use.
pub const MESSAGE_PUBLISHED: char = 'b';

/// A message's id: milliseconds and a number, increasing within a topic. Not a time of day: a new topic starts a second
/// ahead.
pub type StreamId = (u64, u64);

/// A message in its topic's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEntry {
    /// Id of the message before it; (0, 0) if it was the first.
    pub previous: StreamId,
    /// Its id.
    pub id: StreamId,
    /// Its text; `None` if another program wrote the entry, and it is no message.
    pub text: Option<String>,
}

/// A message to be published.
#[derive(Debug, Clone, Copy)]
pub struct PublishMessage<'a> {
    /// Its topic's name.
    pub topic: &'a str,
    /// Its text.
    pub text: &'a str,
    /// About how many messages the topic keeps.
    pub history: u64,
    /// The topic expires this long after its last message.
    pub retention: Duration,
}

impl RedisClient {
    /// Adds a message to its topic and notifies the workers that have subscribers; returns its id.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::Timeout`] and [`RedisError::ConnectionLost`] it may have been published.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was published.
    pub async fn publish_message(&self, message: &PublishMessage<'_>) -> Result<StreamId, RedisError> {
        let (key, channel) = (
            keys::topic(self.prefix(), message.topic),
            keys::channel(message.topic).name(self.channel_prefix()),
        );
        let (mark, earlier) = (self.notification_mark(), self.earlier_release_channel().await);
        let reply = self
            .call(ServerFunction::BroadcastPublish, |entry| {
                let mut args = with_keys(entry, [key.as_str()]);
                args.extend([channel.as_str(), mark.as_str(), message.text].map(Value::from));
                args.extend([number(message.history), number(millis(message.retention))]);
                args.extend([earlier.as_str(), message.topic].map(Value::from));
                args
            })
            .await?;
        stream_id(&reply)
    }

    /// The messages of each topic from this id on, inclusive, at most `count` of each.
    ///
    /// # Errors
    /// See [`RedisError`]; errors of single topics are in the list.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn read_stream_from(
        &self,
        topics: &[(&str, StreamId)],
        count: usize,
    ) -> Result<Vec<Result<Vec<StreamEntry>, RedisError>>, RedisError> {
        let commands = topics
            .iter()
            .map(|(topic, from)| self.range("XRANGE", topic, &format_stream_id(*from), "+", count));
        let commands: Vec<_> = commands.collect();
        let answers = self
            .send(CallKind::LargeRead, |active| {
                let commands = commands.clone();
                async move { require_functions(&active)?.transport.pipeline(commands).await }
            })
            .await?;
        Ok(answers.into_iter().map(|answer| decode_entries(answer?, ScanDirection::Ascending)).collect())
    }

    /// Whether each topic may have messages after this one, or is gone; where there are none, next to nothing is
    /// transferred.
    ///
    /// # Errors
    /// See [`RedisError`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn streams_changed(&self, topics: &[(&str, StreamId)]) -> Result<Vec<bool>, RedisError> {
        let commands = topics.iter().flat_map(|(topic, last)| {
            let length = ("XLEN", vec![Value::from(keys::topic(self.prefix(), topic))]);
            [length, self.range("XRANGE", topic, &format_stream_id(stream_id_after(*last)), "+", 1)]
        });
        let commands: Vec<_> = commands.collect();
        let answers = self
            .send(CallKind::LargeRead, |active| {
                let commands = commands.clone();
                async move { require_functions(&active)?.transport.pipeline(commands).await }
            })
            .await?;
        if answers.len() != 2 * topics.len() {
            return Err(RedisError::protocol("answers are missing"));
        }
        let differs = |((_, last), pair): (&(&str, StreamId), &[Result<Value, RedisError>])| match pair {
            [Ok(length), Ok(Value::Array(newer))] => {
                !newer.is_empty() || (*last != StreamId::default() && length.as_i64() == Some(0))
            }
            // An error counts as a change: reading the topic then reports it.
            _ => true,
        };
        Ok(topics.iter().zip(answers.chunks_exact(2)).map(differs).collect())
    }

    /// The messages of a topic up to this id, inclusive, the newest first; at most `count`.
    ///
    /// # Errors
    /// See [`RedisError`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn read_stream_backwards(
        &self,
        topic: &str,
        until: StreamId,
        count: usize,
    ) -> Result<Vec<StreamEntry>, RedisError> {
        self.read_backwards(topic, &format_stream_id(until), count).await
    }

    /// Id of a topic's newest message; (0, 0) if there is none.
    ///
    /// # Errors
    /// See [`RedisError`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn latest_stream_id(&self, topic: &str) -> Result<StreamId, RedisError> {
        Ok(self.read_backwards(topic, "+", 1).await?.first().map_or((0, 0), |newest| newest.id))
    }

    async fn read_backwards(
        &self,
        topic: &str,
        from: &str,
        count: usize,
    ) -> Result<Vec<StreamEntry>, RedisError> {
        let (command, args) = self.range("XREVRANGE", topic, from, "-", count);
        let answer = self
            .send(CallKind::LargeRead, |active| {
                let args = args.clone();
                async move { require_functions(&active)?.transport.send(command, args).await }
            })
            .await?;
        decode_entries(answer, ScanDirection::Descending)
    }

    /// Reports the number of subscribers of each topic on a worker, valid for `life` (`None`: reports nothing), and
    /// returns the number on all workers.
    ///
    /// # Errors
    /// See [`RedisError`]; repeating it does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was reported.
    pub async fn report_presence(
        &self,
        worker: &str,
        life: Duration,
        topics: &[(&str, Option<u64>)],
    ) -> Result<Vec<u64>, RedisError> {
        let keys: Vec<String> =
            topics.iter().map(|(topic, _)| keys::presence(self.prefix(), topic)).collect();
        let word = |count: Option<u64>| count.map_or_else(|| Value::from("-"), number);
        let reply = self
            .call(ServerFunction::BroadcastPresence, |entry| {
                let mut args = with_keys(entry, keys.iter().map(String::as_str));
                args.extend([Value::from(worker), number(millis(life))]);
                args.extend(topics.iter().map(|(_, count)| word(*count)));
                args
            })
            .await?;
        let sums = list(reply, topics.len())?;
        sums.map(|sum| Ok(u64::try_from(signed(Some(sum))?).unwrap_or(0))).collect()
    }

    /// Decodes a notification of a topic's channel: id of the message before, id, and the message; `None` if it does
    /// not have the fleet's mark, because anyone may publish on the channel.
    pub fn decode_notification<'a>(&self, text: &'a str) -> Option<(StreamId, StreamId, &'a str)> {
        let (mark, payload) = text.split_once(' ')?;
        if mark.is_empty() || !self.is_own_mark(mark) {
            return None;
        }
        decode_message(payload)
    }

    fn range(
        &self,
        command: &'static str,
        topic: &str,
        from: &str,
        to: &str,
        count: usize,
    ) -> (&'static str, Vec<Value>) {
        let key = keys::topic(self.prefix(), topic);
        let count = number(u64::try_from(count).unwrap_or(u64::MAX));
        (command, vec![key.into(), from.into(), to.into(), Value::from_static_str("COUNT"), count])
    }
}

/// Messages are never published without server-side code, so they are not read without it either.
fn require_functions(active: &ActiveConnection) -> Result<&ActiveConnection, RedisError> {
    match active.mode {
        InvocationMode::Plain => Err(RedisError::Unsupported { what: "a broadcast" }),
        InvocationMode::Function | InvocationMode::Script => Ok(active),
    }
}

/// Decodes a notification of earlier releases: topic, id of the message before, id, and the message.
pub fn decode_legacy_notification(text: &str) -> Option<(&str, StreamId, StreamId, &str)> {
    let (topic, payload) = text.split_once(' ')?;
    let (before, id, message) = decode_message(payload)?;
    Some((topic, before, id, message))
}

fn decode_message(payload: &str) -> Option<(StreamId, StreamId, &str)> {
    let mut parts = payload.splitn(3, ' ');
    Some((parse_stream_id(parts.next()?)?, parse_stream_id(parts.next()?)?, parts.next()?))
}

/// Reads `ms-seq`.
pub fn parse_stream_id(text: &str) -> Option<StreamId> {
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?;
    let (ms, seq) = text.split_once('-')?;
    Some((digits(ms)?, digits(seq)?))
}

fn format_stream_id((ms, seq): StreamId) -> String {
    format!("{ms}-{seq}")
}

fn stream_id(value: &Value) -> Result<StreamId, RedisError> {
    let id = value.as_str().and_then(|text| parse_stream_id(&text));
    id.ok_or_else(|| RedisError::protocol("a message's id is none"))
}

/// The greatest id below this one.
pub fn stream_id_before((ms, seq): StreamId) -> StreamId {
    match (ms, seq) {
        (ms, seq) if seq > 0 => (ms, seq - 1),
        (0, _) => (0, 0),
        (ms, _) => (ms - 1, u64::MAX),
    }
}

/// The least id above this one.
fn stream_id_after((ms, seq): StreamId) -> StreamId {
    seq.checked_add(1).map_or((ms.saturating_add(1), 0), |seq| (ms, seq))
}

/// In which order a stream was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScanDirection {
    Ascending,
    Descending,
}

/// Reads entries of a stream: `[id, [p, …, m, …]]` each. For an entry that is no message the previous entry's id is
/// used; where that was not read, it is unknown.
fn decode_entries(answer: Value, direction: ScanDirection) -> Result<Vec<StreamEntry>, RedisError> {
    let Value::Array(rows) = answer else { return Err(RedisError::protocol("a topic is no stream")) };
    let mut entries = rows.into_iter().map(decode_entry).collect::<Result<Vec<_>, _>>()?;
    for at in 0..entries.len() {
        if entries[at].text.is_none() {
            let beside = if direction == ScanDirection::Ascending { at.checked_sub(1) } else { Some(at + 1) };
            let before = beside.and_then(|beside| entries.get(beside)).map(|entry| entry.id);
            entries[at].previous = before.unwrap_or_else(|| stream_id_before(entries[at].id));
        }
    }
    Ok(entries)
}

fn decode_entry(row: Value) -> Result<StreamEntry, RedisError> {
    let strange = || RedisError::protocol("a topic holds something that is no message");
    let Value::Array(row) = row else { return Err(strange()) };
    let mut row = row.into_iter();
    let id = stream_id(&row.next().ok_or_else(strange)?)?;
    let Some(Value::Array(fields)) = row.next() else { return Err(strange()) };
    let (before, text) = decode_fields(fields).unzip();
    Ok(StreamEntry { previous: before.unwrap_or_default(), id, text })
}

fn decode_fields(fields: Vec<Value>) -> Option<(StreamId, String)> {
    let [_, before, _, text] = <[Value; 4]>::try_from(fields).ok()?;
    Some((stream_id(&before).ok()?, text.into_string()?))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_keep_every_letter_of_a_message() {
        assert_eq!(
            decode_legacy_notification("a:b 0-0 1-2  x\ny  z"),
            Some(("a:b", (0, 0), (1, 2), " x\ny  z"))
        );
        assert_eq!(decode_legacy_notification("a 0-0 1-2 "), Some(("a", (0, 0), (1, 2), "")));
        for strange in ["", "a", "a 0-0 1-2", "a 0 1-2 x", "a 0-0 +1-2 x", "a 0-0 1-2-3 x", "a 0-0 -1 x"] {
            assert_eq!(decode_legacy_notification(strange), None, "{strange}");
        }
    }

    #[test]
    fn entries_are_messages_or_skipped() {
        let list = |texts: &[&str]| Value::Array(texts.iter().map(|text| Value::from(*text)).collect());
        let row = |id: &str, fields: &[&str]| Value::Array(vec![Value::from(id), list(fields)]);
        let good = row("5-1", &["p", "4-0", "m", "é\r\n"]);
        let stored = StreamEntry { previous: (4, 0), id: (5, 1), text: Some("é\r\n".into()) };
        let both = |rows: Vec<Value>| {
            [ScanDirection::Ascending, ScanDirection::Descending]
                .map(|order| decode_entries(Value::Array(rows.clone()), order).unwrap())
        };
        assert_eq!(both(vec![good.clone()]), [vec![stored.clone()], vec![stored]]);
        assert_eq!(both(vec![]), [vec![], vec![]]);
        for strange in [&["m", "x"][..], &[], &["a", "b", "c", "d"]] {
            let [rising, falling] = both(vec![good.clone(), row("6-0", strange), good.clone()]);
            assert_eq!((rising[1].previous, falling[1].previous), ((5, 1), (5, 1)));
            assert_eq!((&rising[1].text, rising[2].text.is_some()), (&None, true));
            let [alone, _] = both(vec![row("6-0", strange)]);
            assert_eq!(alone[0].previous, (5, u64::MAX), "nobody knows what lay before it");
        }
        for strange in [Value::Null, Value::Array(vec![Value::Null])] {
            assert!(decode_entries(strange, ScanDirection::Ascending).is_err());
        }
    }

    #[test]
    fn ids_have_neighbours() {
        for (id, next) in [((0, 0), (0, 1)), ((7, 3), (7, 4)), ((6, u64::MAX), (7, 0))] {
            assert_eq!((stream_id_after(id), stream_id_before(next)), (next, id));
        }
        assert_eq!(stream_id_before((0, 0)), (0, 0));
    }
}
