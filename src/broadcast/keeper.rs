//! What keeps a worker's topics whole: it asks the stream wherever something may be missing.
//!
//! One question at a time, for as many topics as one answer has room for. It asks when news did not follow on what was passed on, after the
//! connection on which news come was away, every few seconds (news may be lost between the nodes of a cluster), and four
//! times a second while nothing can be heard, be there no connection or no right to listen or to tell.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::sleep;

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
use crate::sys::time;

/// How often is asked while no news are heard.
const BLIND: Duration = Duration::from_millis(250);
/// Topics that are asked about that often; the more there are, the less often, and each once a second at least.
const BLIND_TOPICS: usize = 64;
const BLIND_MOST: usize = 4;
/// How often while they are.
const SEEING: Duration = Duration::from_secs(5);
/// A question for many topics asks for few messages of each: most have none.
const FEW: usize = 4;
/// One message proves that nothing was taken away, and only another one leads on.
const LEAST: usize = 2;

/// Keeps topics whole for as long as the runtime lives.
pub(super) async fn keep(inner: Arc<Inner>) {
    let mut news = inner.redis.news_changes();
    let mut heard = news.borrow_and_update().is_some();
    let mut ever = heard;
    let mut checked = time::monotonic();
    loop {
        let topics = inner.lines().len();
        let every = match heard {
            true => SEEING,
            false => BLIND * u32::try_from(topics.div_ceil(BLIND_TOPICS).clamp(1, BLIND_MOST)).unwrap_or(1),
        };
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
            () = sleep(time::until(checked + every)), if topics > 0 => {
                check(&inner).await;
                checked = time::monotonic();
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
            sleep(pause()).await;
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
