//! Which message of a topic comes next, and whether one is missing before it. No I/O.
//!
//! Every message names the one before it. News, which may be lost, late or twice, and what is read from the stream, which
//! is the truth, go in here in whatever order they come; out come messages, each once and in the order of their ids, and a
//! gap where one is missing for good.

use std::collections::VecDeque;
use std::mem;

use crate::broadcast::id::MessageId;

/// News that wait for what is missing before them; more are read with it.
pub(super) const PENDING_MAX: usize = 256;

/// What takes memory.
pub(super) trait MemorySize {
    /// Bytes, about.
    fn memory_size(&self) -> usize;
}

/// A message, and the id of the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SequencedMessage<T> {
    /// Id of the message before it; zero if it is the stream's first.
    pub(super) before: MessageId,
    /// Its own.
    pub(super) id: MessageId,
    /// What it says.
    pub(super) body: T,
}

/// What is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SequencerOutput<T> {
    /// The next message.
    Message(SequencedMessage<T>),
    /// Some may be missing here. From `after` on all are passed on again.
    Gap { after: MessageId },
}

/// Whether all was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Completeness {
    /// As far as anyone can tell.
    Complete,
    /// The stream may hold more.
    Incomplete,
    /// News were missed, so that even a stream that begins anew may have held more.
    Lossy,
    /// They were missed since some moment in which they were heard, so that even what is empty, as it was, may have held some.
    Disconnected,
}

/// A question to the stream: what there is from `from` on.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamQuery {
    /// The last message that was passed on; asked for too, because finding it proves that nothing was taken away.
    pub(super) from: MessageId,
    completeness: Completeness,
    received: u64,
}

/// The stream's answer.
#[derive(Debug, Clone)]
pub(super) enum StreamPage<T> {
    /// Messages from `from` on, itself included if it is still there.
    Entries {
        /// In the order of their ids.
        entries: Vec<SequencedMessage<T>>,
        /// Whether these are all.
        complete: bool,
    },
    /// There is none from `from` on: the stream is gone, or lost its end. Its youngest message, zero if there is none.
    Gone { newest: MessageId },
}

/// How far a topic was passed on in this worker.
#[derive(Debug)]
pub(super) struct MessageSequencer<T> {
    /// The last message passed on; none until it was read where the stream stands.
    last: Option<MessageId>,
    /// News before which something is missing, each with its number.
    pending: VecDeque<(u64, SequencedMessage<T>)>,
    /// Bytes of these, and how many there may be.
    pending_bytes: usize,
    pending_bytes_max: usize,
    /// News that came so far.
    received: u64,
    completeness: Completeness,
    /// What made it ask the question that is under way.
    query_reason: Completeness,
    /// Whether a loss was told while news were still away, and nothing was passed on since.
    loss_reported: bool,
}

impl<T: MemorySize> MessageSequencer<T> {
    pub(super) fn new() -> Self {
        Self {
            last: None,
            pending: VecDeque::new(),
            pending_bytes: 0,
            pending_bytes_max: usize::MAX,
            received: 0,
            completeness: Completeness::Complete,
            query_reason: Completeness::Complete,
            loss_reported: false,
        }
    }

    /// News that wait may take so many bytes from now on; more are read with what is missing.
    pub(super) fn set_pending_bytes_max(&mut self, room: usize) {
        self.pending_bytes_max = room;
        while self.pending_bytes > room {
            // The youngest, because the oldest are the next to be passed on.
            let Some((_, link)) = self.pending.pop_back() else { break };
            self.pending_bytes -= link.body.memory_size();
            self.mark_incomplete(false);
        }
    }

    /// The last message that was passed on, or after which passing on began.
    pub(super) fn last(&self) -> Option<MessageId> {
        self.last
    }

    /// Begins after `newest`, where the stream stood at some moment since news are taken in.
    pub(super) fn start_after(&mut self, newest: MessageId, emit: &mut impl FnMut(SequencerOutput<T>)) {
        if self.last.is_none() {
            self.last = Some(newest);
            self.emit_pending(0, emit);
        }
    }

    /// A message was heard.
    pub(super) fn on_notification(
        &mut self,
        link: SequencedMessage<T>,
        emit: &mut impl FnMut(SequencerOutput<T>),
    ) {
        self.received += 1;
        match self.last {
            Some(last) if link.id <= last => {}
            Some(last) if link.before <= last => {
                self.emit(link, last, self.completeness.max(self.query_reason), emit);
                self.emit_pending(0, emit);
            }
            known => {
                let weight = self.pending_bytes + link.body.memory_size();
                if self.pending.len() < PENDING_MAX && weight <= self.pending_bytes_max {
                    self.pending_bytes = weight;
                    self.pending.push_back((self.received, link));
                    // Where nothing is known yet, beginning looks at what was heard.
                    self.mark_incomplete_if(known.is_some());
                } else {
                    self.mark_incomplete_if(true);
                }
            }
        }
    }

    /// The stream may hold more than was heard; `lossy` if news were missed.
    pub(super) fn mark_incomplete(&mut self, lossy: bool) {
        self.completeness =
            self.completeness.max(if lossy { Completeness::Lossy } else { Completeness::Incomplete });
    }

    /// News were missed since some moment in which they were heard, and are heard again.
    pub(super) fn mark_disconnected(&mut self) {
        self.completeness = Completeness::Disconnected;
    }

    /// Whether the stream is to be asked, now or when its answer has come.
    pub(super) fn is_incomplete(&self) -> bool {
        self.last.is_some() && self.completeness != Completeness::Complete
    }

    /// What is to be asked of the stream now, if anything. The answer goes to [`Chain::answer`] or [`Chain::fail`].
    pub(super) fn next_query(&mut self) -> Option<StreamQuery> {
        let from = self.last.filter(|_| self.completeness != Completeness::Complete)?;
        let trust = mem::replace(&mut self.completeness, Completeness::Complete);
        self.query_reason = trust;
        Some(StreamQuery { from, completeness: trust, received: self.received })
    }

    /// There was no answer.
    pub(super) fn query_failed(&mut self, query: StreamQuery) {
        self.completeness = self.completeness.max(query.completeness);
        self.query_reason = Completeness::Complete;
    }

    /// The stream's answer.
    pub(super) fn apply_page(
        &mut self,
        query: StreamQuery,
        page: StreamPage<T>,
        emit: &mut impl FnMut(SequencerOutput<T>),
    ) {
        self.query_reason = Completeness::Complete;
        let complete = match page {
            StreamPage::Gone { newest } => {
                if newest > query.from {
                    // It was written to between two looks.
                    return self.query_failed(query);
                }
                // Otherwise news have led on since, and the next question will tell.
                if self.last == Some(query.from) {
                    self.restart_at(newest, query.completeness, emit);
                }
                true
            }
            StreamPage::Entries { entries, complete } => {
                for link in entries {
                    match self.last {
                        Some(last) if link.id > last => self.emit(link, last, query.completeness, emit),
                        _ => {}
                    }
                }
                self.mark_incomplete_if(!complete);
                complete
            }
        };
        self.emit_pending(if complete { query.received } else { 0 }, emit);
    }

    fn mark_incomplete_if(&mut self, doubtful: bool) {
        if doubtful {
            self.mark_incomplete(false);
        }
    }

    /// The stream ends before what was passed on. That a quiet topic is forgotten, or emptied by hand, is no gap as long
    /// as all of it was heard.
    fn restart_at(
        &mut self,
        newest: MessageId,
        trust: Completeness,
        emit: &mut impl FnMut(SequencerOutput<T>),
    ) {
        let last = self.last.unwrap_or(MessageId::ZERO);
        if newest == last {
            if newest == MessageId::ZERO && self.may_have_been_lost(last, trust) {
                emit(SequencerOutput::Gap { after: newest });
            }
            return;
        }
        if newest != MessageId::ZERO || trust >= Completeness::Lossy || !self.pending.is_empty() {
            self.loss_reported = newest == MessageId::ZERO && trust != Completeness::Disconnected;
            emit(SequencerOutput::Gap { after: newest });
        }
        self.last = Some(newest);
    }

    /// Whether a stream that is empty, or begins anew, may have held something else since `last` was passed on. An absence
    /// is told once, although the stream may be asked more than once in it.
    fn may_have_been_lost(&mut self, last: MessageId, trust: Completeness) -> bool {
        match trust {
            Completeness::Disconnected => !mem::take(&mut self.loss_reported),
            Completeness::Lossy => last != MessageId::ZERO,
            Completeness::Incomplete | Completeness::Complete => false,
        }
    }

    fn emit(
        &mut self,
        link: SequencedMessage<T>,
        last: MessageId,
        trust: Completeness,
        emit: &mut impl FnMut(SequencerOutput<T>),
    ) {
        if link.before == MessageId::ZERO {
            if self.may_have_been_lost(last, trust) {
                emit(SequencerOutput::Gap { after: link.id.before() });
            }
        } else if link.before != last {
            // After a younger one something is missing; after an older one `last` was lost, and others with it perhaps.
            emit(SequencerOutput::Gap { after: link.before });
        }
        self.loss_reported = false;
        self.last = Some(link.id);
        emit(SequencerOutput::Message(link));
    }

    /// Passes on what waited, as far as nothing is missing; what is not in the stream although it was heard by `read`, is
    /// missing for good.
    fn emit_pending(&mut self, read: u64, emit: &mut impl FnMut(SequencerOutput<T>)) {
        while let Some((number, link)) = self.pending.pop_front() {
            let weight = link.body.memory_size();
            self.pending_bytes -= weight;
            let last = self.last.unwrap_or(MessageId::ZERO);
            if link.id <= last {
                continue;
            }
            if link.before > last && number > read {
                self.pending_bytes += weight;
                self.pending.push_front((number, link));
                return self.mark_incomplete(false);
            }
            self.emit(link, last, Completeness::Complete, emit);
        }
    }
}

#[cfg(test)]
mod tests;
