//! What keeps a worker's topics whole: it asks the stream wherever something may be missing.
//!
//! One question at a time, for as many topics as one answer has room for. It asks when news did not follow on what was passed on, after the
//! connection on which news come was away, every few seconds (news may be lost between the nodes of a cluster), and four
//! times a second while nothing can be heard, be there no connection or no right to listen or to tell.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::sleep;

use crate::broadcast::id::MessageId;
use crate::broadcast::message::BroadcastMessage;
use crate::broadcast::sequencer::StreamPage;
use crate::broadcast::topic_feed::{MessageBody, PendingQuery, TopicFeed};
use crate::broadcast::{HubState, retry_delay};
use crate::redis::broadcast_commands::StreamEntry;
use crate::redis::{RedisError, ServerRejection};
use crate::sys::clock;

/// How often is asked while no news are heard.
const POLL_WHEN_DISCONNECTED: Duration = Duration::from_millis(250);
/// Topics that are asked about that often; the more there are, the less often, and each once a second at least.
const DISCONNECTED_TOPICS: usize = 64;
const POLL_SLOWDOWN_MAX: usize = 4;
/// How often while they are.
const CHECK_WHEN_CONNECTED: Duration = Duration::from_secs(5);
/// A question for many topics asks for few messages of each: most have none.
const PAGE_PER_TOPIC: usize = 4;
/// One message proves that nothing was taken away, and only another one leads on.
const PAGE_MIN: usize = 2;

/// Keeps topics whole for as long as the runtime lives.
pub(super) async fn run(inner: Arc<HubState>) {
    let mut connection = inner.redis.notification_completeness_changes();
    let mut connected = connection.borrow_and_update().is_some();
    let mut ever = connected;
    let mut checked = clock::monotonic();
    loop {
        let topics = inner.feeds().len();
        let every = match connected {
            true => CHECK_WHEN_CONNECTED,
            false => {
                POLL_WHEN_DISCONNECTED
                    * u32::try_from(topics.div_ceil(DISCONNECTED_TOPICS).clamp(1, POLL_SLOWDOWN_MAX))
                        .unwrap_or(1)
            }
        };
        tokio::select! {
            () = inner.reconcile.notified() => {}
            changed = connection.changed() => {
                connected = changed.is_ok() && connection.borrow_and_update().is_some();
                // Whatever came before this moment may have been missed.
                match connected && ever {
                    true => inner.feeds().iter().for_each(|line| line.mark_disconnected()),
                    false => inner.feeds().iter().for_each(|line| line.mark_incomplete(true)),
                }
                ever |= connected;
            }
            () = sleep(clock::until(checked + every)), if topics > 0 => {
                check_streams(&inner).await;
                checked = clock::monotonic();
            }
        }
        catch_up(&inner).await;
    }
}

/// Finds out where a stream is not where news led. Most are, so this sends no messages but the first of what was missed.
async fn check_streams(inner: &HubState) {
    let lines = inner.feeds();
    for lines in lines.chunks(inner.page_size) {
        let started = lines.iter().filter_map(|line| Some((line, line.last()?)));
        let started: Vec<_> = started.collect();
        let topics = started.iter().map(|(line, last)| (line.topic.as_str(), last.stream_id()));
        let topics: Vec<_> = topics.collect();
        if topics.is_empty() {
            continue;
        }
        // Where there was no answer everything is in doubt.
        let differs = inner.redis.streams_changed(&topics).await.unwrap_or_else(|_| vec![true; topics.len()]);
        let doubtful = started.iter().zip(differs).filter(|(_, differs)| *differs);
        doubtful.for_each(|((line, _), _)| line.mark_incomplete(false));
    }
}

/// Asks until nothing is in doubt.
async fn catch_up(inner: &HubState) {
    let most = (inner.page_size / PAGE_PER_TOPIC).max(1);
    for turn in 0_usize.. {
        let mut lines = inner.feeds();
        if lines.is_empty() {
            return;
        }
        // Each has its turn, however many are in doubt again and again.
        let first = turn.wrapping_mul(most) % lines.len();
        lines.rotate_left(first);
        let questions = lines.iter().filter_map(|line| line.next_query().map(|question| (line, question)));
        let questions: Vec<_> = questions.take(most).collect();
        if questions.is_empty() {
            return;
        }
        if let Err(error) = query_streams(inner, &questions).await {
            tracing::debug!(%error, "topics cannot be read: {error}");
            sleep(retry_delay()).await;
        }
    }
}

/// Asks once for these topics.
async fn query_streams(
    inner: &HubState,
    questions: &[(&Arc<TopicFeed>, PendingQuery)],
) -> Result<(), RedisError> {
    let topics = questions.iter().map(|(line, question)| (line.topic.as_str(), question.from().stream_id()));
    let topics: Vec<_> = topics.collect();
    let count = (inner.page_size / topics.len().max(1)).max(PAGE_MIN);
    let answers = match inner.redis.read_stream_from(&topics, count).await {
        Ok(answers) => answers,
        Err(error) => {
            questions.iter().for_each(|(line, question)| line.query_failed(*question));
            return Err(error);
        }
    };
    let mut failed = Ok(());
    for ((line, question), answer) in questions.iter().zip(answers) {
        let page = match answer {
            Ok(entries) => read_page(inner, line, *question, &entries, count).await,
            Err(error) => Err(error),
        };
        match page {
            Ok(page) => line.apply_page(*question, page),
            // Something else lies there, which asking again at once does not change.
            Err(
                RedisError::Protocol { .. }
                | RedisError::Rejected { rejection: ServerRejection::WrongType, .. },
            ) => {
                tracing::debug!(topic = %line.topic, "a topic's key holds something else");
            }
            Err(error) => {
                line.query_failed(*question);
                failed = Err(error);
            }
        }
    }
    failed
}

async fn read_page(
    inner: &HubState,
    line: &TopicFeed,
    question: PendingQuery,
    entries: &[StreamEntry],
    count: usize,
) -> Result<StreamPage<MessageBody>, RedisError> {
    let from = question.from();
    let Some(last) = entries.last() else {
        let newest = match from {
            // There never was anything.
            MessageId::ZERO => MessageId::ZERO,
            _ => inner.redis.latest_stream_id(line.topic.as_str()).await?.into(),
        };
        return Ok(StreamPage::Gone { newest });
    };
    if MessageId::from(last.id) > from {
        inner.counters.catch_up_reads.fetch_add(1, Relaxed);
    }
    inner.warn_foreign_entry(&line.topic, entries);
    let link = |stored: &StreamEntry| BroadcastMessage::sequenced(&line.topic, stored);
    Ok(StreamPage::Entries { entries: entries.iter().map(link).collect(), complete: entries.len() < count })
}
