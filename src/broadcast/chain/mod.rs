//! Which message of a topic comes next, and whether one is missing before it. No I/O.
//!
//! Every message names the one before it. News, which may be lost, late or twice, and what is read from the stream, which
//! is the truth, go in here in whatever order they come; out come messages, each once and in the order of their ids, and a
//! gap where one is missing for good.

use std::collections::VecDeque;
use std::mem;

use crate::broadcast::id::Id;

/// News that wait for what is missing before them; more are read with it.
pub(super) const PENDING_MAX: usize = 256;

/// What takes memory.
pub(super) trait Weigh {
    /// Bytes, about.
    fn weight(&self) -> usize;
}

/// A message, and the id of the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link<T> {
    /// Id of the message before it; zero if it is the stream's first.
    pub(super) before: Id,
    /// Its own.
    pub(super) id: Id,
    /// What it says.
    pub(super) body: T,
}

/// What is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// The next message.
    Message(Link<T>),
    /// Some may be missing here. From `after` on all are passed on again.
    Gap { after: Id },
}

/// Whether all was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    /// As far as anyone can tell.
    Whole,
    /// The stream may hold more.
    Doubtful,
    /// News were missed, so that even a stream that begins anew may have held more.
    Lossy,
    /// They were missed since some moment in which they were heard, so that even what is empty, as it was, may have held some.
    Away,
}

/// A question to the stream: what there is from `from` on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// The last message that was passed on; asked for too, because finding it proves that nothing was taken away.
    pub(super) from: Id,
    trust: Trust,
    heard: u64,
}

/// The stream's answer.
#[derive(Debug, Clone)]
pub(super) enum Page<T> {
    /// Messages from `from` on, itself included if it is still there.
    Entries {
        /// In the order of their ids.
        entries: Vec<Link<T>>,
        /// Whether these are all.
        complete: bool,
    },
    /// There is none from `from` on: the stream is gone, or lost its end. Its youngest message, zero if there is none.
    Gone { newest: Id },
}

/// How far a topic was passed on in this worker.
#[derive(Debug)]
pub(super) struct Chain<T> {
    /// The last message passed on; none until it was read where the stream stands.
    last: Option<Id>,
    /// News before which something is missing, each with its number.
    pending: VecDeque<(u64, Link<T>)>,
    /// Bytes of these, and how many there may be.
    weight: usize,
    room: usize,
    /// News that came so far.
    heard: u64,
    trust: Trust,
    /// What made it ask the question that is under way.
    asking: Trust,
    /// Whether a loss was told while news were still away, and nothing was passed on since.
    told: bool,
}

impl<T: Weigh> Chain<T> {
    pub(super) fn new() -> Self {
        Self {
            last: None,
            pending: VecDeque::new(),
            weight: 0,
            room: usize::MAX,
            heard: 0,
            trust: Trust::Whole,
            asking: Trust::Whole,
            told: false,
        }
    }

    /// News that wait may take so many bytes from now on; more are read with what is missing.
    pub(super) fn set_room(&mut self, room: usize) {
        self.room = room;
        while self.weight > room {
            // The youngest, because the oldest are the next to be passed on.
            let Some((_, link)) = self.pending.pop_back() else { break };
            self.weight -= link.body.weight();
            self.doubt(false);
        }
    }

    /// The last message that was passed on, or after which passing on began.
    pub(super) fn last(&self) -> Option<Id> {
        self.last
    }

    /// Begins after `newest`, where the stream stood at some moment since news are taken in.
    pub(super) fn begin(&mut self, newest: Id, emit: &mut impl FnMut(Step<T>)) {
        if self.last.is_none() {
            self.last = Some(newest);
            self.go_on(0, emit);
        }
    }

    /// A message was heard.
    pub(super) fn hear(&mut self, link: Link<T>, emit: &mut impl FnMut(Step<T>)) {
        self.heard += 1;
        match self.last {
            Some(last) if link.id <= last => {}
            Some(last) if link.before <= last => {
                self.pass_on(link, last, self.trust.max(self.asking), emit);
                self.go_on(0, emit);
            }
            known => {
                let weight = self.weight + link.body.weight();
                if self.pending.len() < PENDING_MAX && weight <= self.room {
                    self.weight = weight;
                    self.pending.push_back((self.heard, link));
                    // Where nothing is known yet, beginning looks at what was heard.
                    self.doubt_if(known.is_some());
                } else {
                    self.doubt_if(true);
                }
            }
        }
    }

    /// The stream may hold more than was heard; `lossy` if news were missed.
    pub(super) fn doubt(&mut self, lossy: bool) {
        self.trust = self.trust.max(if lossy { Trust::Lossy } else { Trust::Doubtful });
    }

    /// News were missed since some moment in which they were heard, and are heard again.
    pub(super) fn doubt_all(&mut self) {
        self.trust = Trust::Away;
    }

    /// Whether the stream is to be asked, now or when its answer has come.
    pub(super) fn is_doubtful(&self) -> bool {
        self.last.is_some() && self.trust != Trust::Whole
    }

    /// What is to be asked of the stream now, if anything. The answer goes to [`Chain::answer`] or [`Chain::fail`].
    pub(super) fn ask(&mut self) -> Option<Asked> {
        let from = self.last.filter(|_| self.trust != Trust::Whole)?;
        let trust = mem::replace(&mut self.trust, Trust::Whole);
        self.asking = trust;
        Some(Asked { from, trust, heard: self.heard })
    }

    /// There was no answer.
    pub(super) fn fail(&mut self, asked: Asked) {
        self.trust = self.trust.max(asked.trust);
        self.asking = Trust::Whole;
    }

    /// The stream's answer.
    pub(super) fn answer(&mut self, asked: Asked, page: Page<T>, emit: &mut impl FnMut(Step<T>)) {
        self.asking = Trust::Whole;
        let complete = match page {
            Page::Gone { newest } => {
                if newest > asked.from {
                    // It was written to between two looks.
                    return self.fail(asked);
                }
                // Otherwise news have led on since, and the next question will tell.
                if self.last == Some(asked.from) {
                    self.rewind(newest, asked.trust, emit);
                }
                true
            }
            Page::Entries { entries, complete } => {
                for link in entries {
                    match self.last {
                        Some(last) if link.id > last => self.pass_on(link, last, asked.trust, emit),
                        _ => {}
                    }
                }
                self.doubt_if(!complete);
                complete
            }
        };
        self.go_on(if complete { asked.heard } else { 0 }, emit);
    }

    fn doubt_if(&mut self, doubtful: bool) {
        if doubtful {
            self.doubt(false);
        }
    }

    /// The stream ends before what was passed on. That a quiet topic is forgotten, or emptied by hand, is no gap as long
    /// as all of it was heard.
    fn rewind(&mut self, newest: Id, trust: Trust, emit: &mut impl FnMut(Step<T>)) {
        let last = self.last.unwrap_or(Id::ZERO);
        if newest == last {
            if newest == Id::ZERO && self.may_have_been_lost(last, trust) {
                emit(Step::Gap { after: newest });
            }
            return;
        }
        if newest != Id::ZERO || trust >= Trust::Lossy || !self.pending.is_empty() {
            self.told = newest == Id::ZERO && trust != Trust::Away;
            emit(Step::Gap { after: newest });
        }
        self.last = Some(newest);
    }

    /// Whether a stream that is empty, or begins anew, may have held something else since `last` was passed on. An absence
    /// is told once, although the stream may be asked more than once in it.
    fn may_have_been_lost(&mut self, last: Id, trust: Trust) -> bool {
        match trust {
            Trust::Away => !mem::take(&mut self.told),
            Trust::Lossy => last != Id::ZERO,
            Trust::Doubtful | Trust::Whole => false,
        }
    }

    fn pass_on(&mut self, link: Link<T>, last: Id, trust: Trust, emit: &mut impl FnMut(Step<T>)) {
        if link.before == Id::ZERO {
            if self.may_have_been_lost(last, trust) {
                emit(Step::Gap { after: link.id.before() });
            }
        } else if link.before != last {
            // After a younger one something is missing; after an older one `last` was lost, and others with it perhaps.
            emit(Step::Gap { after: link.before });
        }
        self.told = false;
        self.last = Some(link.id);
        emit(Step::Message(link));
    }

    /// Passes on what waited, as far as nothing is missing; what is not in the stream although it was heard by `read`, is
    /// missing for good.
    fn go_on(&mut self, read: u64, emit: &mut impl FnMut(Step<T>)) {
        while let Some((number, link)) = self.pending.pop_front() {
            let weight = link.body.weight();
            self.weight -= weight;
            let last = self.last.unwrap_or(Id::ZERO);
            if link.id <= last {
                continue;
            }
            if link.before > last && number > read {
                self.weight += weight;
                self.pending.push_front((number, link));
                return self.doubt(false);
            }
            self.pass_on(link, last, Trust::Whole, emit);
        }
    }
}

#[cfg(test)]
mod tests;
