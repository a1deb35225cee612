//! What a log keeps while nothing takes its lines, and what it says of those it lost; pure.
//!
//! Lines wait in order in a bounded queue. Where it has no room a line is lost, and so are those after it until half of
//! the queue is free again: the lost ones are one gap, and a line in their place says how many they were.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use crate::sys::sink::SinkError;

/// Bytes of lines that one process keeps.
pub(super) const MAX_QUEUED_BYTES: usize = 256 << 10;

/// What a waiting line costs beside its bytes.
const ENTRY_OVERHEAD: usize = 32;

/// Time between two attempts of a sink that took nothing, however many lines come meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The same where no lines come and nothing reports when there is room again.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Lines that are written at once: a fleet's requests wait meanwhile.
const LINES_PER_FLUSH: usize = 128;

/// Why lines are lost while a sink is merely full.
const UNREAD_CAUSE: &str = "whatever reads the log took none";

/// Takes bytes, as `crate::sys::sink::NonblockingSink::write` does.
pub(super) trait ByteSink {
    /// Takes some of them at once.
    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, SinkError>;

    /// Whether the last line there was cut short, where that is known.
    fn is_torn(&self) -> Option<bool>;

    /// The line that says how many lines are missing, and why.
    fn dropped_lines_notice(&self, missing: u64, cause: &str) -> Vec<u8>;
}

/// What a caller waits for, until the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BacklogWait {
    /// Room in the sink.
    Writable,
    /// This moment.
    At(Duration),
}

#[derive(Debug)]
struct Entry {
    text: Box<[u8]>,
    /// Lines that it stands for: they are missing.
    missing: u64,
    /// It begins by ending a line that was cut short.
    after_torn: bool,
}

/// How the sink was when it was tried last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SinkState {
    Open,
    /// There was no room, although poll(2) may have reported that there was.
    Full {
        poll_reported_room: bool,
    },
    /// A FIFO without a reader: what waits is kept for the next one.
    NoReader,
    /// It fails: lines are lost at once.
    Failing,
    /// It fails for good.
    Closed,
}

/// The lines that wait.
#[derive(Debug)]
pub(super) struct LineBacklog {
    entries: VecDeque<Entry>,
    /// What they take.
    queued_bytes: usize,
    /// How much of the first has been written.
    written: usize,
    /// Lines lost after the last entry, which no line has reported yet, and why.
    missing: u64,
    cause: String,
    /// A line was cut short: the next one must not go on in it.
    torn: bool,
    sink_state: SinkState,
    /// When it was tried last.
    last_attempt: Duration,
}

impl Default for LineBacklog {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            queued_bytes: 0,
            written: 0,
            missing: 0,
            cause: String::new(),
            torn: false,
            sink_state: SinkState::Open,
            last_attempt: Duration::ZERO,
        }
    }
}

impl LineBacklog {
    /// Writes a line or keeps it; how many lines were lost.
    pub(super) fn log(&mut self, line: &[u8], now: Duration, sink: &mut impl ByteSink) -> u64 {
        let due = self.sink_state == SinkState::Open || now >= self.last_attempt + RETRY_INTERVAL;
        let lost = if due { self.drain(now, sink) } else { 0 };
        if !self.is_empty() || self.sink_state != SinkState::Open {
            return lost + self.enqueue(line, 0, sink);
        }
        // Nothing waits: the line takes no detour through memory.
        match sink.write_some(line) {
            Ok(written) if written >= line.len() => lost,
            Ok(written) => lost + self.enqueue(line, written, sink) + self.drain(now, sink),
            Err(refused) => lost + self.on_write_error(refused, now) + self.enqueue(line, 0, sink),
        }
    }

    /// Writes what waits, because there is room or it is time; how many lines were lost.
    pub(super) fn flush(&mut self, now: Duration, sink: &mut impl ByteSink) -> u64 {
        let before = (self.entries.len(), self.written);
        let was_full = matches!(self.sink_state, SinkState::Full { .. });
        let lost = self.drain(now, sink);
        if let SinkState::Full { poll_reported_room } = &mut self.sink_state {
            *poll_reported_room = was_full && before == (self.entries.len(), self.written);
        }
        lost
    }

    /// What to wait for before `LineBacklog::flush`; none when nothing waits, or nothing can be done.
    pub(super) fn pending_wait(&self) -> Option<BacklogWait> {
        if self.is_empty() && self.missing == 0 {
            return None;
        }
        match self.sink_state {
            SinkState::Open | SinkState::Full { poll_reported_room: false } => Some(BacklogWait::Writable),
            // It had room, they say, and took nothing: asking poll(2) again at once would be a busy loop.
            SinkState::Full { poll_reported_room: true } | SinkState::NoReader | SinkState::Failing => {
                Some(BacklogWait::At(self.last_attempt + POLL_INTERVAL))
            }
            SinkState::Closed => None,
        }
    }

    /// Lines whose loss no line has reported; another process does.
    pub(super) fn take_unreported(&mut self) -> u64 {
        std::mem::take(&mut self.missing)
    }

    /// Takes over lines that are missing from before.
    pub(super) fn add_missing(&mut self, missing: u64) {
        self.missing += missing;
        if missing > 0 {
            UNREAD_CAUSE.clone_into(&mut self.cause);
        }
    }

    /// What waits is written to another file from now on, and begins with a whole line.
    pub(super) fn reset_for_new_file(&mut self) {
        (self.written, self.torn, self.sink_state) = (0, false, SinkState::Open);
    }

    /// Gives up all that waits; how many lines that were.
    pub(super) fn abandon(&mut self) -> u64 {
        if self.cause.is_empty() {
            UNREAD_CAUSE.clone_into(&mut self.cause);
        }
        self.drop_all()
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn drain(&mut self, now: Duration, sink: &mut impl ByteSink) -> u64 {
        for _ in 0..LINES_PER_FLUSH {
            if self.is_empty() {
                if self.missing == 0 {
                    self.sink_state = SinkState::Open;
                    return 0;
                }
                self.push_notice(sink);
            }
            let Some(first) = self.entries.front() else { return 0 };
            match sink.write_some(first.text.get(self.written..).unwrap_or_default()) {
                Ok(written) => self.advance(written),
                Err(refused) => return self.on_write_error(refused, now),
            }
        }
        0
    }

    fn advance(&mut self, written: usize) {
        self.sink_state = SinkState::Open;
        self.written += written;
        if self.entries.front().is_some_and(|first| first.text.len() <= self.written) {
            self.pop();
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        let first = self.entries.pop_front()?;
        self.queued_bytes -= first.text.len() + ENTRY_OVERHEAD;
        self.written = 0;
        Some(first)
    }

    /// Keeps a line of which so much has been written; 1 if it is lost instead.
    fn enqueue(&mut self, line: &[u8], written: usize, sink: &impl ByteSink) -> u64 {
        let fits = |this: &Self, most: usize| this.queued_bytes + line.len() + ENTRY_OVERHEAD <= most;
        let takes = match self.sink_state {
            _ if written > 0 => true,
            SinkState::Failing | SinkState::Closed => false,
            // Half of it is free before lines are kept again behind a gap.
            _ if self.missing > 0 => fits(self, MAX_QUEUED_BYTES / 2),
            _ => fits(self, MAX_QUEUED_BYTES),
        };
        if !takes {
            if !matches!(self.sink_state, SinkState::Failing | SinkState::Closed | SinkState::NoReader) {
                UNREAD_CAUSE.clone_into(&mut self.cause);
            }
            self.missing += 1;
            return 1;
        }
        if self.missing > 0 {
            self.push_notice(sink);
        }
        self.push(Entry { text: line.into(), missing: 0, after_torn: false });
        // Something is written of a line only where nothing waits before it.
        self.written += written;
        0
    }

    fn push(&mut self, entry: Entry) {
        self.queued_bytes += entry.text.len() + ENTRY_OVERHEAD;
        self.entries.push_back(entry);
    }

    fn push_notice(&mut self, sink: &impl ByteSink) {
        let missing = std::mem::take(&mut self.missing);
        // A line of another process may have been cut short, or this one's ended by it.
        let after_torn = sink.is_torn().unwrap_or(self.torn);
        self.torn = false;
        let mut text = if after_torn { vec![b'\n'] } else { Vec::new() };
        text.extend(sink.dropped_lines_notice(missing, &self.cause));
        self.push(Entry { text: text.into(), missing, after_torn });
    }

    /// The sink took nothing; how many lines are lost by that.
    fn on_write_error(&mut self, refused: SinkError, now: Duration) -> u64 {
        self.last_attempt = now;
        match refused {
            SinkError::Full => {
                self.sink_state = SinkState::Full { poll_reported_room: false };
                0
            }
            SinkError::NoReader => {
                // Its next reader is to get the whole line.
                (self.sink_state, self.written) = (SinkState::NoReader, 0);
                "the FIFO had no reader".clone_into(&mut self.cause);
                0
            }
            SinkError::TooLong => {
                "it was too long for one message".clone_into(&mut self.cause);
                self.pop().map_or(0, |entry| self.drop_entry(&entry))
            }
            SinkError::Closed(error) => {
                self.sink_state = SinkState::Closed;
                self.cause = error.to_string();
                self.drop_all()
            }
            SinkError::Failed(error) => {
                self.sink_state = SinkState::Failing;
                self.cause = error.to_string();
                self.drop_all()
            }
        }
    }

    fn drop_all(&mut self) -> u64 {
        self.torn |= self.written > 0;
        let mut lost = 0;
        while let Some(entry) = self.pop() {
            lost += self.drop_entry(&entry);
        }
        lost
    }

    /// What a lost entry stood for is missing; a line that said so was none of the application's.
    fn drop_entry(&mut self, entry: &Entry) -> u64 {
        let lost = u64::from(entry.missing == 0);
        self.missing += entry.missing + lost;
        self.torn |= entry.after_torn;
        lost
    }
}
