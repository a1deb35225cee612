//! What keeps a worker's topics whole: it asks the stream wherever something may be missing.
//!
//! One question at a time, for as many topics as one answer has room for. It asks when news did not follow on what was passed on, after the
//! connection on which news come was away, every few seconds (news may be lost between the nodes of a cluster), and every
//! second while there is no such connection.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::broadcast::Inner;
use crate::broadcast::chain::Page;
use crate::broadcast::id::Id;
use crate::broadcast::line::Body;
use crate::broadcast::line::Line;
use crate::broadcast::line::Question;
use crate::broadcast::message::Message;
use crate::broadcast::pause;
use crate::redis::Error;
use crate::redis::Refusal;
use crate::redis::live::Stored;

/// How often is asked while no news are heard.
const BLIND: Duration = Duration::from_secs(1);
/// Every how many of these while they are.
const CHECK: u64 = 5;
/// A question for many topics asks for few messages of each: most have none.
const FEW: usize = 4;
/// One message proves that nothing was taken away, and only another one leads on.
const LEAST: usize = 2;

/// Keeps topics whole for as long as the runtime lives.
pub(super) async fn keep(inner: Arc<Inner>) {
    let mut news = inner.redis.news_changes();
    let mut heard = news.borrow_and_update().is_some();
    let mut ever = heard;
    let mut ticks = tokio::time::interval(BLIND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tick = 0_u64;
    loop {
        let idle = inner.lines().is_empty();
        tokio::select! {
            () = inner.doubt.notified() => {}
            changed = news.changed() => {
                heard = changed.is_ok() && news.borrow_and_update().is_some();
                // Whatever came before this moment may have been missed.
                match heard && ever {
                    true => inner.lines().iter().for_each(|line| line.doubt_all()),
                    false => inner.lines().iter().for_each(|line| line.doubt(true)),
                }
                ever |= heard;
            }
            _ = ticks.tick(), if !idle => {
                tick += 1;
                if !heard || tick.is_multiple_of(CHECK) {
                    check(&inner).await;
                }
            }
        }
        catch_up(&inner).await;
    }
}

/// Finds out where a stream is not where news led. Most are, so this sends no messages but the first of what was missed.
async fn check(inner: &Inner) {
    let lines = inner.lines();
    for lines in lines.chunks(inner.page) {
        let begun = lines.iter().filter_map(|line| Some((line, line.last()?)));
        let begun: Vec<_> = begun.collect();
        let topics = begun.iter().map(|(line, last)| (line.topic.as_str(), last.stamp()));
        let topics: Vec<_> = topics.collect();
        if topics.is_empty() {
            continue;
        }
        // Where there was no answer everything is in doubt.
        let differs = inner.redis.live_differs(&topics).await.unwrap_or_else(|_| vec![true; topics.len()]);
        let doubtful = begun.iter().zip(differs).filter(|(_, differs)| *differs);
        doubtful.for_each(|((line, _), _)| line.doubt(false));
    }
}

/// Asks until nothing is in doubt.
async fn catch_up(inner: &Inner) {
    let most = (inner.page / FEW).max(1);
    for turn in 0_usize.. {
        let mut lines = inner.lines();
        if lines.is_empty() {
            return;
        }
        // Each has its turn, however many are in doubt again and again.
        let first = turn.wrapping_mul(most) % lines.len();
        lines.rotate_left(first);
        let questions = lines.iter().filter_map(|line| line.ask().map(|question| (line, question)));
        let questions: Vec<_> = questions.take(most).collect();
        if questions.is_empty() {
            return;
        }
        if let Err(error) = ask(inner, &questions).await {
            tracing::debug!(%error, "topics cannot be read: {error}");
            tokio::time::sleep(pause()).await;
        }
    }
}

/// Asks once for these topics.
async fn ask(inner: &Inner, questions: &[(&Arc<Line>, Question)]) -> Result<(), Error> {
    let topics = questions.iter().map(|(line, question)| (line.topic.as_str(), question.from().stamp()));
    let topics: Vec<_> = topics.collect();
    let count = (inner.page / topics.len().max(1)).max(LEAST);
    let answers = match inner.redis.live_from(&topics, count).await {
        Ok(answers) => answers,
        Err(error) => {
            questions.iter().for_each(|(line, question)| line.fail(*question));
            return Err(error);
        }
    };
    let mut failed = Ok(());
    for ((line, question), answer) in questions.iter().zip(answers) {
        let page = match answer {
            Ok(entries) => page(inner, line, *question, &entries, count).await,
            Err(error) => Err(error),
        };
        match page {
            Ok(page) => line.answer(*question, page),
            // Something else lies there, which asking again at once does not change.
            Err(Error::Protocol { .. } | Error::Refused { refusal: Refusal::WrongType, .. }) => {
                tracing::debug!(topic = %line.topic, "a topic's key holds something else");
            }
            Err(error) => {
                line.fail(*question);
                failed = Err(error);
            }
        }
    }
    failed
}

async fn page(
    inner: &Inner,
    line: &Line,
    question: Question,
    entries: &[Stored],
    count: usize,
) -> Result<Page<Body>, Error> {
    let from = question.from();
    let Some(last) = entries.last() else {
        let newest = match from {
            // There never was anything.
            Id::ZERO => Id::ZERO,
            _ => inner.redis.live_newest(line.topic.as_str()).await?.into(),
        };
        return Ok(Page::Gone { newest });
    };
    if Id::from(last.id) > from {
        inner.figures.gaps_read.fetch_add(1, Relaxed);
    }
    inner.note_strange(&line.topic, entries);
    let link = |stored: &Stored| Message::link(&line.topic, stored);
    Ok(Page::Entries { entries: entries.iter().map(link).collect(), complete: entries.len() < count })
}
