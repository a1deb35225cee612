//! Reconciles a worker's topics with their streams in Redis wherever a message may be missing.
//!
//! One query at a time, for as many topics as one reply has room for: when a notification did not follow the last
//! message, after notifications were interrupted, every few seconds (they may be lost between the nodes of a
//! cluster), and four times a second while none arrive, be it for lack of a connection or of rights.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::sleep;

use crate::broadcasts::commands::StreamEntry;
use crate::broadcasts::hub_state::{HubState, retry_delay};
use crate::broadcasts::message::MessageId;
use crate::broadcasts::sequencer::StreamPage;
use crate::broadcasts::topic_feed::{MessageBody, PendingQuery, TopicFeed, sequenced};
use crate::redis::{RedisError, ServerRejection};
use crate::sys::clock;

/// Time between two checks of all topics while no notifications arrive.
const POLL_WHEN_DISCONNECTED: Duration = Duration::from_millis(250);
/// Topics that are checked that often; more are checked less often, each once a second at least.
const DISCONNECTED_TOPICS: usize = 64;
const POLL_SLOWDOWN_MAX: usize = 4;
/// Time between two checks of all topics while notifications arrive.
const CHECK_WHEN_CONNECTED: Duration = Duration::from_secs(5);
/// Entries of each topic in a query of many topics, most of which have none.
const PAGE_PER_TOPIC: usize = 4;
/// The first entry proves that nothing was removed, and only a second one is new.
const PAGE_MIN: usize = 2;

/// Reconciles for as long as the runtime lives.
pub(super) async fn run(state: Arc<HubState>) {
    let mut connection = state.redis.notification_completeness_changes();
    let mut connected = connection.borrow_and_update().is_some();
    let mut was_connected = connected;
    let mut checked = clock::monotonic();
    loop {
        let topics = state.topic_count();
        let interval = match connected {
            true => CHECK_WHEN_CONNECTED,
            false => {
                POLL_WHEN_DISCONNECTED
                    * u32::try_from(topics.div_ceil(DISCONNECTED_TOPICS).clamp(1, POLL_SLOWDOWN_MAX))
                        .unwrap_or(1)
            }
        };
        tokio::select! {
            () = state.reconcile.notified() => {}
            changed = connection.changed() => {
                connected = changed.is_ok() && connection.borrow_and_update().is_some();
                // Notifications before this moment may have been missed.
                match connected && was_connected {
                    true => state.feeds().iter().for_each(|feed| feed.mark_disconnected()),
                    false => state.feeds().iter().for_each(|feed| feed.mark_incomplete(true)),
                }
                was_connected |= connected;
            }
            () = sleep(clock::until(checked + interval)), if topics > 0 => {
                check_streams(&state).await;
                checked = clock::monotonic();
            }
        }
        catch_up(&state).await;
    }
}

/// Marks the topics whose streams are not where the notifications led. Most are, so the reply carries only
/// differences.
async fn check_streams(state: &HubState) {
    let feeds = state.feeds();
    for feeds in feeds.chunks(state.page_size) {
        let started = feeds.iter().filter_map(|feed| Some((feed, feed.last()?)));
        let started: Vec<_> = started.collect();
        let topics = started.iter().map(|(feed, last)| (feed.topic.as_str(), last.stream_id()));
        let topics: Vec<_> = topics.collect();
        if topics.is_empty() {
            continue;
        }
        // Without a reply every topic may be incomplete.
        let changed = state.redis.streams_changed(&topics).await.unwrap_or_else(|_| vec![true; topics.len()]);
        let incomplete = started.iter().zip(changed).filter(|(_, changed)| *changed);
        incomplete.for_each(|((feed, _), _)| feed.mark_incomplete(false));
    }
}

/// Queries until no topic is incomplete.
async fn catch_up(state: &HubState) {
    let most = (state.page_size / PAGE_PER_TOPIC).max(1);
    for turn in 0_usize.. {
        let mut feeds = state.feeds();
        if feeds.is_empty() {
            return;
        }
        // Starts at another topic each time, so that topics which are incomplete again and again do not keep out
        // others.
        let first = turn.wrapping_mul(most) % feeds.len();
        feeds.rotate_left(first);
        let queries = feeds.iter().filter_map(|feed| feed.next_query().map(|query| (feed, query)));
        let queries: Vec<_> = queries.take(most).collect();
        if queries.is_empty() {
            return;
        }
        if let Err(error) = query_streams(state, &queries).await {
            tracing::debug!(%error, "streams not read: {error}");
            sleep(retry_delay()).await;
        }
    }
}

/// Queries these topics once.
async fn query_streams(
    state: &HubState,
    queries: &[(&Arc<TopicFeed>, PendingQuery)],
) -> Result<(), RedisError> {
    let topics = queries.iter().map(|(feed, query)| (feed.topic.as_str(), query.from().stream_id()));
    let topics: Vec<_> = topics.collect();
    let count = (state.page_size / topics.len().max(1)).max(PAGE_MIN);
    let answers = match state.redis.read_stream_from(&topics, count).await {
        Ok(answers) => answers,
        Err(error) => {
            queries.iter().for_each(|(feed, query)| feed.query_failed(*query));
            return Err(error);
        }
    };
    let mut failed = Ok(());
    for ((feed, query), answer) in queries.iter().zip(answers) {
        let page = match answer {
            Ok(entries) => read_page(state, feed, *query, &entries, count).await,
            Err(error) => Err(error),
        };
        match page {
            Ok(page) => feed.apply_page(*query, page),
            // The key holds another type, which a repetition does not change.
            Err(
                RedisError::Protocol { .. }
                | RedisError::Rejected { rejection: ServerRejection::WrongType, .. },
            ) => {
                tracing::debug!(topic = %feed.topic, "topic key holds another type");
            }
            Err(error) => {
                feed.query_failed(*query);
                failed = Err(error);
            }
        }
    }
    failed
}

async fn read_page(
    state: &HubState,
    feed: &TopicFeed,
    query: PendingQuery,
    entries: &[StreamEntry],
    count: usize,
) -> Result<StreamPage<MessageBody>, RedisError> {
    let from = query.from();
    let Some(last) = entries.last() else {
        let newest = match from {
            // The stream has never held a message.
            MessageId::ZERO => MessageId::ZERO,
            _ => state.redis.latest_stream_id(feed.topic.as_str()).await?.into(),
        };
        return Ok(StreamPage::Gone { newest });
    };
    if MessageId::from(last.id) > from {
        state.counters.catch_up_reads.fetch_add(1, Relaxed);
    }
    state.warn_foreign_entry(&feed.topic, entries);
    let message = |stored: &StreamEntry| sequenced(&feed.topic, stored);
    Ok(StreamPage::Entries {
        entries: entries.iter().map(message).collect(),
        complete: entries.len() < count,
    })
}
