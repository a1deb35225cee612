//! What a log keeps while nothing takes its lines, and what it says of those it lost; pure.
//!
//! Lines wait in order in a bounded queue. Where it has no room a line is lost, and so are those after it until half of
//! the queue is free again: the lost ones are one gap, and a line in their place says how many they were.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use crate::sys::sink::Refused;

/// Bytes of lines that one process keeps.
pub(super) const KEPT_MAX: usize = 256 << 10;

/// What a waiting line costs beside its bytes.
const OVERHEAD: usize = 32;

/// Time between two attempts of a sink that took nothing, however many lines come meanwhile.
const RETRY: Duration = Duration::from_millis(20);

/// The same where no lines come and nothing tells when it takes some again.
const LOOK: Duration = Duration::from_secs(1);

/// Lines that are written at once: a fleet's requests wait meanwhile.
const BATCH: usize = 128;

/// Why lines are lost while a sink is merely full.
const UNREAD: &str = "whatever reads the log took none";

/// Takes bytes, as [`crate::sys::sink::Sink::write`] does.
pub(super) trait Takes {
    /// Takes some of them at once.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Refused>;

    /// Whether the last line there was cut short, where that is known.
    fn is_torn(&self) -> Option<bool>;

    /// The line that says how many lines are missing, and why.
    fn notice(&self, missing: u64, cause: &str) -> Vec<u8>;
}

/// What a caller waits for, until the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Room in the sink.
    Room,
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
enum Standing {
    Open,
    /// There was no room; `told` if poll(2) had said that there was.
    Full {
        told: bool,
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
pub(super) struct Backlog {
    entries: VecDeque<Entry>,
    /// What they take.
    kept: usize,
    /// How much of the first has been written.
    written: usize,
    /// Lines lost after the last entry, which nothing has said yet, and why.
    missing: u64,
    cause: String,
    /// A line was cut short: the next one must not go on in it.
    torn: bool,
    standing: Standing,
    /// When it was tried last.
    tried: Duration,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            kept: 0,
            written: 0,
            missing: 0,
            cause: String::new(),
            torn: false,
            standing: Standing::Open,
            tried: Duration::ZERO,
        }
    }
}

impl Backlog {
    /// Writes a line or keeps it; how many lines were lost.
    pub(super) fn log(&mut self, line: &[u8], now: Duration, sink: &mut impl Takes) -> u64 {
        let due = self.standing == Standing::Open || now >= self.tried + RETRY;
        let lost = if due { self.drain(now, sink) } else { 0 };
        if !self.is_empty() || self.standing != Standing::Open {
            return lost + self.keep(line, 0, sink);
        }
        // Nothing waits: the line takes no detour through memory.
        match sink.take(line) {
            Ok(written) if written >= line.len() => lost,
            Ok(written) => lost + self.keep(line, written, sink) + self.drain(now, sink),
            Err(refused) => lost + self.refused(refused, now) + self.keep(line, 0, sink),
        }
    }

    /// Writes what waits, because there is room or it is time; how many lines were lost.
    pub(super) fn flush(&mut self, now: Duration, sink: &mut impl Takes) -> u64 {
        let before = (self.entries.len(), self.written);
        let was_told = matches!(self.standing, Standing::Full { .. });
        let lost = self.drain(now, sink);
        if let Standing::Full { told } = &mut self.standing {
            *told = was_told && before == (self.entries.len(), self.written);
        }
        lost
    }

    /// What to wait for before [`Backlog::flush`]; none when nothing waits, or nothing can be done.
    pub(super) fn next(&self) -> Option<Next> {
        if self.is_empty() && self.missing == 0 {
            return None;
        }
        match self.standing {
            Standing::Open | Standing::Full { told: false } => Some(Next::Room),
            // It had room, they say, and took nothing: asking poll(2) again at once would be a busy loop.
            Standing::Full { told: true } | Standing::NoReader | Standing::Failing => {
                Some(Next::At(self.tried + LOOK))
            }
            Standing::Closed => None,
        }
    }

    /// Lines that nothing has said to be missing; another process says it.
    pub(super) fn take_unsaid(&mut self) -> u64 {
        std::mem::take(&mut self.missing)
    }

    /// Takes over lines that are missing from before.
    pub(super) fn add_missing(&mut self, missing: u64) {
        self.missing += missing;
        if missing > 0 {
            UNREAD.clone_into(&mut self.cause);
        }
    }

    /// What waits is written to another file from now on, and begins with a whole line.
    pub(super) fn begin_anew(&mut self) {
        (self.written, self.torn, self.standing) = (0, false, Standing::Open);
    }

    /// Gives up all that waits; how many lines that were.
    pub(super) fn give_up(&mut self) -> u64 {
        if self.cause.is_empty() {
            UNREAD.clone_into(&mut self.cause);
        }
        self.lose_all()
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn drain(&mut self, now: Duration, sink: &mut impl Takes) -> u64 {
        for _ in 0..BATCH {
            if self.is_empty() {
                if self.missing == 0 {
                    self.standing = Standing::Open;
                    return 0;
                }
                self.push_notice(sink);
            }
            let Some(first) = self.entries.front() else { return 0 };
            match sink.take(first.text.get(self.written..).unwrap_or_default()) {
                Ok(written) => self.advance(written),
                Err(refused) => return self.refused(refused, now),
            }
        }
        0
    }

    fn advance(&mut self, written: usize) {
        self.standing = Standing::Open;
        self.written += written;
        if self.entries.front().is_some_and(|first| first.text.len() <= self.written) {
            self.pop();
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        let first = self.entries.pop_front()?;
        self.kept -= first.text.len() + OVERHEAD;
        self.written = 0;
        Some(first)
    }

    /// Keeps a line of which so much has been written; 1 if it is lost instead.
    fn keep(&mut self, line: &[u8], written: usize, sink: &impl Takes) -> u64 {
        let fits = |this: &Self, most: usize| this.kept + line.len() + OVERHEAD <= most;
        let takes = match self.standing {
            _ if written > 0 => true,
            Standing::Failing | Standing::Closed => false,
            // Half of it is free before lines are kept again behind a gap.
            _ if self.missing > 0 => fits(self, KEPT_MAX / 2),
            _ => fits(self, KEPT_MAX),
        };
        if !takes {
            if !matches!(self.standing, Standing::Failing | Standing::Closed | Standing::NoReader) {
                UNREAD.clone_into(&mut self.cause);
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
        self.kept += entry.text.len() + OVERHEAD;
        self.entries.push_back(entry);
    }

    fn push_notice(&mut self, sink: &impl Takes) {
        let missing = std::mem::take(&mut self.missing);
        // A line of another process may have been cut short, or this one's ended by it.
        let after_torn = sink.is_torn().unwrap_or(self.torn);
        self.torn = false;
        let mut text = if after_torn { vec![b'\n'] } else { Vec::new() };
        text.extend(sink.notice(missing, &self.cause));
        self.push(Entry { text: text.into(), missing, after_torn });
    }

    /// The sink took nothing; how many lines are lost by that.
    fn refused(&mut self, refused: Refused, now: Duration) -> u64 {
        self.tried = now;
        match refused {
            Refused::Full => {
                self.standing = Standing::Full { told: false };
                0
            }
            Refused::NoReader => {
                // Its next reader is to get the whole line.
                (self.standing, self.written) = (Standing::NoReader, 0);
                "the FIFO had no reader".clone_into(&mut self.cause);
                0
            }
            Refused::TooLong => {
                "it was too long for one message".clone_into(&mut self.cause);
                self.pop().map_or(0, |entry| self.lose(&entry))
            }
            Refused::Closed(error) => {
                self.standing = Standing::Closed;
                self.cause = error.to_string();
                self.lose_all()
            }
            Refused::Failed(error) => {
                self.standing = Standing::Failing;
                self.cause = error.to_string();
                self.lose_all()
            }
        }
    }

    fn lose_all(&mut self) -> u64 {
        self.torn |= self.written > 0;
        let mut lost = 0;
        while let Some(entry) = self.pop() {
            lost += self.lose(&entry);
        }
        lost
    }

    /// What a lost entry stood for is missing; a line that said so was none of the application's.
    fn lose(&mut self, entry: &Entry) -> u64 {
        let lost = u64::from(entry.missing == 0);
        self.missing += entry.missing + lost;
        self.torn |= entry.after_torn;
        lost
    }
}
