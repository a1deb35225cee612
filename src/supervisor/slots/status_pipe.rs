//! The pipe on which a worker reports to the supervisor, a line a message.

use std::fs::File;
use std::io;
use std::io::Read;

use crate::supervisor::slots::checks::CheckReport;

/// Longest line of a worker.
const LINE_MAX: usize = 8 * 1024;

/// Longest backtrace that is kept.
const BACKTRACE_MAX: usize = 64 * 1024;

/// A worker's status pipe.
#[derive(Debug)]
pub(in crate::supervisor) struct StatusPipe {
    /// Read end; none when the worker has closed its own.
    pub(in crate::supervisor) pipe: Option<File>,
    /// What came and was not yet taken, bounded.
    pub(in crate::supervisor) text: String,
    /// Its backtrace, as far as it has come.
    pub(in crate::supervisor) frames: String,
    /// What it says of the application's checks.
    pub(in crate::supervisor) checks: CheckReport,
}

impl StatusPipe {
    pub(in crate::supervisor) fn new(pipe: File) -> Self {
        Self { pipe: Some(pipe), ..Self::restore(None, String::new()) }
    }

    /// As another program left it.
    pub(in crate::supervisor) fn restore(pipe: Option<File>, text: String) -> Self {
        Self { pipe, text, frames: String::new(), checks: CheckReport::default() }
    }

    /// Reads what there is and takes the next whole line.
    pub(super) fn next_line(&mut self) -> Option<String> {
        if !self.text.contains('\n') {
            self.fill();
        }
        let Some(end) = self.text.find('\n') else {
            if self.text.len() > LINE_MAX {
                // A line without an end would only wake the loop for ever.
                self.pipe = None;
            }
            return None;
        };
        let rest = self.text.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.text, rest);
        line.truncate(end);
        Some(line)
    }

    pub(super) fn add_frame(&mut self, line: &str) {
        if self.frames.len() + line.len() < BACKTRACE_MAX {
            self.frames.push('\n');
            self.frames.push_str(line);
        }
    }

    fn fill(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut chunk = [0; 1024];
        let open = loop {
            match pipe.read(&mut chunk) {
                Ok(0) => break false,
                Ok(len) => self.text.push_str(&String::from_utf8_lossy(&chunk[..len])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error.kind() == io::ErrorKind::WouldBlock,
            }
            // The rest is read when this is taken.
            if self.text.len() > LINE_MAX {
                break true;
            }
        };
        if !open {
            // Its pipe would only wake the loop for ever.
            self.pipe = None;
        }
    }
}
