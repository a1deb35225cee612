//! One topic in one worker: what came of it, and what is remembered of it, for all who subscribe here.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::watch;

use crate::broadcast::chain::Asked;
use crate::broadcast::chain::Chain;
use crate::broadcast::chain::Link;
use crate::broadcast::chain::Page;
use crate::broadcast::chain::Step;
use crate::broadcast::id::Id;
use crate::broadcast::message::Message;
use crate::broadcast::ring::Found;
use crate::broadcast::ring::Ring;
use crate::broadcast::ring::Seek;
use crate::broadcast::topic::Topic;
use crate::redis::live::Stored;

/// News that wait for what is missing before them take at most this part of a topic's room, on top of it.
const WAITING: usize = 4;

/// Shortest time between two looks at a stream for the sake of news that are not this fleet's.
const SUSPECT: Duration = Duration::from_secs(1);

/// What comes of a stream: a message, unless someone else wrote it.
pub(super) type Body = Option<Arc<Message>>;

/// A topic that someone subscribes to.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) topic: Topic,
    core: Mutex<Core>,
    /// Bytes that may be remembered.
    room: Arc<AtomicUsize>,
    /// Changes with everything that is passed on.
    tip: watch::Sender<u64>,
    /// Number of the question to the stream that was answered last. Apart, because next to no one waits for that.
    looked: watch::Sender<u64>,
    /// Held by the caller that reads what is older than what is remembered, or where the stream stands: one for all.
    pub(super) turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Core {
    chain: Chain<Option<Arc<Message>>>,
    ring: Ring,
    /// The ring's end before what came last, in one piece: no one can have seen that yet.
    settled: u64,
    /// Questions to the stream so far.
    asked: u64,
    /// When news came last that were not this fleet's, and the stream was asked for it.
    suspected: Option<Duration>,
}

/// A question to the stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    asked: Asked,
    number: u64,
}

impl Question {
    /// What there is from this message on, itself included.
    pub(super) fn from(&self) -> Id {
        self.asked.from
    }
}

impl Line {
    pub(super) fn new(topic: &Topic, count_max: usize, room: &Arc<AtomicUsize>) -> Self {
        let ring = Ring::new(count_max);
        let core = Core { chain: Chain::new(), settled: ring.end(), ring, asked: 0, suspected: None };
        Self {
            topic: topic.clone(),
            core: Mutex::new(core),
            room: Arc::clone(room),
            tip: watch::Sender::new(0),
            looked: watch::Sender::new(0),
            turn: tokio::sync::Mutex::default(),
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the chain, and what it passes on into the ring; returns whether the stream is to be asked.
    fn pass(&self, act: impl FnOnce(&mut Chain<Body>, &mut dyn FnMut(Step<Body>))) -> bool {
        let room = self.room.load(Relaxed);
        let mut core = self.core();
        let Core { chain, ring, settled, .. } = &mut *core;
        let before = ring.end();
        chain.set_room(room / WAITING);
        act(chain, &mut |step| match step {
            Step::Message(link) => link.body.into_iter().for_each(|message| ring.push(message, room)),
            Step::Gap { after } => ring.push_gap(after, before),
        });
        let (end, doubtful) = (ring.end(), chain.is_doubtful());
        if end != before {
            *settled = before;
        }
        drop(core);
        self.tip.send_if_modified(|tip| std::mem::replace(tip, end) != end);
        doubtful
    }

    /// A message was heard; returns whether the stream is to be asked.
    pub(super) fn hear(&self, before: Id, id: Id, text: &str) -> bool {
        let body = Some(Arc::new(Message::new(&self.topic, id, text)));
        self.pass(|chain, mut emit| chain.hear(Link { before, id, body }, &mut emit))
    }

    /// Something came that is not this fleet's news; returns whether the stream is to be asked, which it is once a second
    /// at most, however much of it comes.
    pub(super) fn suspect(&self, now: Duration) -> bool {
        let mut core = self.core();
        if core.suspected.is_some_and(|last| now.saturating_sub(last) < SUSPECT) {
            return false;
        }
        core.suspected = Some(now);
        core.chain.doubt(false);
        core.chain.is_doubtful()
    }

    /// Whether it is known where the stream stands.
    pub(super) fn has_begun(&self) -> bool {
        self.core().chain.last().is_some()
    }

    /// The stream stands at `newest`; returns whether it is to be asked.
    pub(super) fn begin(&self, newest: Id) -> bool {
        if !self.has_begun() {
            self.core().ring.begin(newest);
        }
        self.pass(|chain, mut emit| chain.begin(newest, &mut emit))
    }

    /// The stream may hold more than was heard.
    pub(super) fn doubt(&self, lossy: bool) {
        self.core().chain.doubt(lossy);
    }

    /// News are heard again after they were not for a time.
    pub(super) fn doubt_all(&self) {
        self.core().chain.doubt_all();
    }

    /// What was taken from the stream last; none until it is known where it stands.
    pub(super) fn last(&self) -> Option<Id> {
        self.core().chain.last()
    }

    /// Keeps no more than there is room for now.
    pub(super) fn trim(&self) {
        let room = self.room.load(Relaxed);
        let mut core = self.core();
        core.ring.trim(room);
        core.chain.set_room(room / WAITING);
    }

    /// What is to be asked of the stream, if anything.
    pub(super) fn ask(&self) -> Option<Question> {
        let mut core = self.core();
        let asked = core.chain.ask()?;
        core.asked += 1;
        Some(Question { asked, number: core.asked })
    }

    /// There was no answer.
    pub(super) fn fail(&self, question: Question) {
        self.core().chain.fail(question.asked);
    }

    /// The stream's answer.
    pub(super) fn answer(&self, question: Question, page: Page<Body>) {
        self.pass(|chain, mut emit| chain.answer(question.asked, page, &mut emit));
        self.looked.send_replace(question.number);
    }

    /// Number of the next question to the stream, which is asked for by this.
    pub(super) fn next_look(&self) -> u64 {
        let mut core = self.core();
        core.chain.doubt(false);
        core.asked + 1
    }

    /// Number of the question that was answered last.
    pub(super) fn looked(&self) -> watch::Receiver<u64> {
        self.looked.subscribe()
    }

    pub(super) fn tip(&self) -> watch::Receiver<u64> {
        self.tip.subscribe()
    }

    /// What is at a place, and how many messages there were from there on before the last ones came.
    pub(super) fn get(&self, place: u64) -> (Found, u64) {
        let core = self.core();
        (core.ring.get(place), core.settled.saturating_sub(place))
    }

    /// The place after the youngest message.
    pub(super) fn end(&self) -> u64 {
        self.core().ring.end()
    }

    /// The same, and that message: also where the stream was forgotten since, because it is remembered here.
    pub(super) fn now(&self) -> (u64, Id) {
        let core = self.core();
        (core.ring.end(), core.ring.newest())
    }

    /// The first place after which nothing is missing, and the message before it.
    pub(super) fn whole_from(&self) -> (u64, Id) {
        let core = self.core();
        (core.ring.whole_from(), core.ring.floor())
    }

    /// Where a client goes on that has everything up to `after`.
    pub(super) fn seek(&self, after: Id) -> Seek {
        self.core().ring.seek(after)
    }

    /// The youngest message that was passed on.
    pub(super) fn newest(&self) -> Id {
        self.core().ring.newest()
    }

    /// All messages after this one are remembered.
    pub(super) fn floor(&self) -> Id {
        self.core().ring.floor()
    }

    /// What is older than all that is remembered.
    pub(super) fn older(&self) -> Older {
        let core = self.core();
        match (core.ring.at_bottom(), core.ring.has_room(self.room.load(Relaxed))) {
            (true, _) => Older::Nothing,
            (false, true) => Older::Room,
            (false, false) => Older::NoRoom,
        }
    }

    /// What the stream holds up to `floor`, the youngest first.
    pub(super) fn prepend(&self, floor: Id, older: &[Stored]) {
        let room = self.room.load(Relaxed);
        let mut core = self.core();
        // Others may have been forgotten meanwhile: then it does not fit any more.
        if core.ring.floor() != floor {
            return;
        }
        for stored in older {
            let (id, before) = (Id::from(stored.id), Id::from(stored.before));
            if id != core.ring.floor() || core.ring.at_bottom() {
                break;
            }
            let Some(message) = Message::link(&self.topic, stored).body else {
                core.ring.pass_over(before);
                continue;
            };
            if !core.ring.prepend(message, before, room) {
                return core.ring.set_full();
            }
        }
        if core.ring.floor() == floor {
            core.ring.set_bottom();
        }
    }
}

/// What there is of a topic that is older than what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Older {
    /// It may be read, and there is room for it.
    Room,
    /// It may be read, and there is none.
    NoRoom,
    /// Nothing any more.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> Id {
        Id::from((ms, 0))
    }

    fn line(room: usize) -> Line {
        let line = Line::new(&Topic::parse("t").unwrap(), 99, &Arc::new(AtomicUsize::new(room)));
        line.begin(id(1));
        line
    }

    #[test]
    fn an_answer_without_news_wakes_nobody_but_who_waits_for_it() {
        let line = line(1 << 20);
        let (tip, looked) = (line.tip(), line.looked());
        line.doubt(false);
        let question = line.ask().unwrap();
        line.answer(question, Page::Entries { entries: Vec::new(), complete: true });
        assert_eq!((tip.has_changed().unwrap(), looked.has_changed().unwrap()), (false, true));
        line.hear(id(1), id(2), "x");
        assert!(tip.has_changed().unwrap());
    }

    #[test]
    fn what_strangers_tell_is_a_reason_to_look_once_a_second() {
        let (line, now) = (line(1 << 20), Duration::from_secs(9));
        let looks = (0..30).filter(|tenth| line.suspect(now + Duration::from_millis(100 * tenth)));
        assert_eq!(looks.collect::<Vec<_>>(), [0, 10, 20]);
        assert_eq!(line.newest(), id(1), "nothing of it is passed on");
    }

    #[test]
    fn who_begins_after_a_quiet_topic_was_forgotten_begins_after_what_is_remembered() {
        let line = line(1 << 20);
        line.hear(id(1), id(2), "x");
        line.doubt(false);
        let question = line.ask().unwrap();
        line.answer(question, Page::Gone { newest: Id::ZERO });
        let (place, last) = line.now();
        assert_eq!((last, line.seek(last)), (id(2), Seek::At(place)));
    }

    #[test]
    fn what_is_no_message_is_passed_over() {
        let line = line(1 << 20);
        let stored = |before: u64, at: u64, text: Option<&str>| Stored {
            before: (before, 0),
            id: (at, 0),
            text: text.map(Into::into),
        };
        line.doubt(false);
        let question = line.ask().unwrap();
        let rows = [stored(1, 2, Some("x")), stored(2, 3, None), stored(3, 4, Some("y"))];
        let entries = rows.iter().map(|stored| Message::link(&line.topic, stored)).collect();
        let (place, _) = line.now();
        line.answer(question, Page::Entries { entries, complete: true });
        assert!(matches!(line.get(place + 1), (Found::Message(message), _) if message.text() == "y"));
        let behind = Line::new(&line.topic, 99, &line.room);
        behind.begin(id(3));
        behind.prepend(id(3), &[stored(2, 3, None), stored(1, 2, Some("x"))]);
        assert_eq!((behind.floor(), behind.seek(id(1))), (id(1), Seek::At(behind.end() - 1)));
    }
}
