//! A client's place in a topic.
//!
//! Guarantees every message after the one it begins with, once and in order; where that cannot be, it says so
//! ([`Event::Gap`]). A client that comes back goes on in what the worker remembers if that reaches back far enough; if it
//! does not, one of all who wait reads older messages from the stream for all of them, as long as there is room; if there is
//! none, each reads for itself, a few at a time, until it has caught up.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::watch;

use crate::broadcast::Seat;
use crate::broadcast::id::Id;
use crate::broadcast::line::Older;
use crate::broadcast::message::Message;
use crate::broadcast::pause;
use crate::broadcast::ring::Found;
use crate::broadcast::ring::Seek;
use crate::broadcast::topic::Topic;
use crate::redis;

/// Messages that a client reads for itself at a time, at most.
const OWN_PAGE: usize = 16;

/// As many may come before anyone had a turn on the event loop: the one who is that far behind is not slow.
const BURST: usize = 128;

/// What comes to a client.
#[derive(Debug, Clone)]
pub enum Event {
    /// The next message.
    Message(Arc<Message>),
    /// Some messages may be missing here: Redis keeps them no longer, or lost them. What follows is whole again, after
    /// [`Subscription::last`].
    Gap,
    /// The client fell too far behind: this is the last event. It may come again and resume after [`Subscription::last`].
    Slow,
}

/// A client's subscription to a topic, which ends with this value.
pub struct Subscription {
    seat: Seat,
    tip: watch::Receiver<u64>,
    place: Place,
    last: Option<Id>,
}

enum Place {
    /// In what the worker remembers; `current` once it has been at the end, from when on it has to keep up.
    Ring { at: u64, current: bool },
    /// It has everything up to here and does not know yet where to go on.
    After(Id),
    /// In what it read for itself.
    Page(VecDeque<Arc<Message>>),
    /// Nowhere any more.
    Dropped,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("topic", self.topic())
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    /// From `after` on, or from now on.
    pub(super) fn new(seat: Seat, after: Option<Id>) -> Self {
        let tip = seat.line.tip();
        let (place, last) = match after {
            Some(after) => (Place::After(after), Some(after)),
            None => {
                let (at, newest) = seat.line.now();
                (Place::Ring { at, current: true }, Some(newest))
            }
        };
        Self { seat, tip, place, last }
    }

    /// What it subscribes to.
    pub fn topic(&self) -> &Topic {
        &self.seat.line.topic
    }

    /// After which message this client goes on when it comes again: the one it resumed after, else the newest when it came
    /// (0-0 if there was none); then the last that came, and after a gap the one from which on it is whole again.
    pub fn last(&self) -> Option<Id> {
        self.last
    }

    /// Waits for what comes next. While Redis is away nothing comes; afterwards everything does.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn next(&mut self) -> Event {
        loop {
            let come = match &mut self.place {
                Place::Dropped => return Event::Slow,
                Place::After(after) => {
                    let after = *after;
                    // Boxed: the calls it may make take eight kilobytes, which every client would keep as long as it waits.
                    Box::pin(self.find(after)).await
                }
                Place::Page(page) => match page.pop_front() {
                    Some(message) => Some(Event::Message(message)),
                    None => {
                        self.place = self.last.map_or(Place::Dropped, Place::After);
                        None
                    }
                },
                Place::Ring { .. } => self.look(),
            };
            match come {
                Some(event) => {
                    self.note(&event);
                    return event;
                }
                None if matches!(self.place, Place::Ring { current: true, .. }) => {
                    // The sender lives as long as the seat.
                    let _ = self.tip.changed().await.is_ok();
                }
                None => {}
            }
        }
    }

    /// What is at hand; it asks Redis for nothing. Where nothing is, [`Subscription::next`] finds out what comes.
    pub fn try_next(&mut self) -> Option<Event> {
        let event = match &mut self.place {
            Place::Dropped => return Some(Event::Slow),
            Place::After(_) => None,
            Place::Page(page) => page.pop_front().map(Event::Message),
            Place::Ring { .. } => self.look(),
        }?;
        self.note(&event);
        Some(event)
    }

    fn note(&mut self, event: &Event) {
        let figures = &self.seat.inner.figures;
        match event {
            Event::Message(message) => {
                self.last = Some(message.id());
                figures.delivered.fetch_add(1, Relaxed);
            }
            Event::Gap => {
                figures.gaps.fetch_add(1, Relaxed);
            }
            Event::Slow => {
                figures.slow.fetch_add(1, Relaxed);
            }
        }
    }

    /// What is at this client's place in what the worker remembers.
    fn look(&mut self) -> Option<Event> {
        let Place::Ring { at, current } = &mut self.place else { return None };
        self.tip.borrow_and_update();
        let (found, behind) = self.seat.line.get(*at);
        let late = *current && behind > self.seat.inner.settings.buffer.max(BURST) as u64;
        match found {
            Found::Message(message) if !late => {
                *at += 1;
                Some(Event::Message(message))
            }
            Found::Gap(after) if !late => {
                *at += 1;
                self.last = Some(after);
                Some(Event::Gap)
            }
            Found::End => {
                *current = true;
                None
            }
            // It is not behind by much, or still catching up, and what it was about to get was pushed out, because there
            // was no more room: the stream may have it.
            Found::Past if !late && self.last.is_some() => {
                self.place = self.last.map_or(Place::Dropped, Place::After);
                None
            }
            Found::Past | Found::Message(_) | Found::Gap(_) => {
                self.place = Place::Dropped;
                Some(Event::Slow)
            }
        }
    }

    /// Finds the place after this message.
    async fn find(&mut self, after: Id) -> Option<Event> {
        match self.seat.line.seek(after) {
            Seek::At(at) => self.place = Place::Ring { at, current: false },
            Seek::Ahead => return self.find_ahead(after).await,
            Seek::Older => match self.seat.line.older() {
                Older::Nothing => {
                    (self.place, self.last) = self.whole();
                    return Some(Event::Gap);
                }
                Older::Room => self.fill(after).await,
                Older::NoRoom => return self.read(after).await,
            },
        }
        None
    }

    /// Another worker has told this client what has not come here yet; or the stream it tells of is gone.
    async fn find_ahead(&mut self, after: Id) -> Option<Event> {
        let line = &self.seat.line;
        let mut looked = line.looked();
        let look = line.next_look();
        self.seat.inner.doubt.notify_one();
        loop {
            self.tip.borrow_and_update();
            let has_looked = *looked.borrow_and_update() >= look;
            match line.seek(after) {
                Seek::Ahead if has_looked => {
                    self.place = Place::Ring { at: line.end(), current: true };
                    self.last = Some(line.newest());
                    return Some(Event::Gap);
                }
                Seek::Ahead => {}
                Seek::At(_) | Seek::Older => return None,
            }
            tokio::select! {
                _ = self.tip.changed() => {}
                _ = looked.changed() => {}
            }
        }
    }

    /// Reads older messages for all who need them.
    async fn fill(&self, after: Id) {
        let (line, inner) = (&self.seat.line, &self.seat.inner);
        let turn = line.turn.lock().await;
        if line.seek(after) != Seek::Older || line.older() != Older::Room {
            return;
        }
        let floor = line.floor();
        let read = match inner.reads.acquire().await {
            Ok(_permit) => inner.redis.live_until(line.topic.as_str(), floor.stamp(), inner.page).await,
            Err(_) => Ok(Vec::new()),
        };
        match read {
            Ok(older) => {
                inner.note_strange(&line.topic, &older);
                line.prepend(floor, &older);
            }
            Err(error) => {
                drop(turn);
                self.wait_after(&error).await;
            }
        }
    }

    /// Reads the next messages for this client alone.
    async fn read(&mut self, after: Id) -> Option<Event> {
        let (line, inner) = (&self.seat.line, &self.seat.inner);
        let asked = [(line.topic.as_str(), after.stamp())];
        let read = match inner.reads.acquire().await {
            Ok(_permit) => inner.redis.live_from(&asked, inner.page.min(OWN_PAGE)).await,
            Err(_) => Ok(Vec::new()),
        };
        let read = read.and_then(|topics| topics.into_iter().next().unwrap_or_else(|| Ok(Vec::new())));
        let mut stored = match read {
            Ok(stored) => VecDeque::from(stored),
            Err(error) => {
                self.wait_after(&error).await;
                return None;
            }
        };
        if stored.front().is_some_and(|first| Id::from(first.id) == after) {
            stored.pop_front();
        }
        let Some(first) = stored.front() else {
            // Nothing of what was remembered after it is in the stream any more.
            (self.place, self.last) = self.whole();
            return Some(Event::Gap);
        };
        let before = Id::from(first.before);
        let whole = before <= after && (before != Id::ZERO || after == Id::ZERO);
        inner.note_strange(&line.topic, stored.make_contiguous());
        let messages: VecDeque<_> =
            stored.iter().filter_map(|stored| Message::link(&line.topic, stored).body).collect();
        if messages.is_empty() {
            (self.place, self.last) = self.whole();
            return Some(Event::Gap);
        }
        self.place = Place::Page(messages);
        if whole {
            return None;
        }
        self.last = Some(before);
        Some(Event::Gap)
    }

    /// The first place after which nothing is missing, and the message before it.
    fn whole(&self) -> (Place, Option<Id>) {
        let (at, floor) = self.seat.line.whole_from();
        (Place::Ring { at, current: false }, Some(floor))
    }

    /// Redis cannot be asked: the client stays, and is served when it can.
    async fn wait_after(&self, error: &redis::Error) {
        tracing::debug!(%error, topic = %self.topic(), "a client waits for what it missed: {error}");
        tokio::time::sleep(pause()).await;
    }
}
