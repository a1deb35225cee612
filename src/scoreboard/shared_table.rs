//! The table in memory that the processes of a fleet share, and that a new program takes over.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use crate::scoreboard::layout::{LAYOUT_VERSION, TableLayout};
use crate::scoreboard::table::Scoreboard;
use crate::sys::shared_memory::SharedMapping;

impl Scoreboard {
    /// Makes the table of a new fleet with room for `capacity` slots.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn create(capacity: NonZeroUsize, pid: u32, started_ms: u64) -> io::Result<Self> {
        let layout = TableLayout { capacity: capacity.get() };
        let bytes = NonZeroUsize::new(layout.bytes()).unwrap_or(NonZeroUsize::MIN);
        let SharedMapping { memory, file } = SharedMapping::create(c"regatta-scoreboard", bytes)?;
        let table = Self { memory, file: Some(file), layout };
        table.write_head(pid, started_ms)?;
        Ok(table)
    }

    /// Maps the table that another program made.
    ///
    /// # Errors
    /// When it has another layout, or the kernel refuses to map it.
    pub fn adopt(table: OwnedFd) -> io::Result<Self> {
        let SharedMapping { memory, file } = SharedMapping::adopt(table)?;
        TableLayout::from_bytes(memory.len().get())
            .map(|layout| Self { memory, file: Some(file), layout })
            .filter(|table| table.head().version.load(Relaxed) == LAYOUT_VERSION)
            .ok_or_else(|| io::Error::other("the scoreboard has another layout"))
    }

    /// The memory it lives in, for a program that goes on with it.
    ///
    /// # Errors
    /// When it is this process's own.
    pub fn file(&self) -> io::Result<&OwnedFd> {
        self.file
            .as_ref()
            .ok_or_else(|| io::Error::other("the scoreboard is not shared with other processes"))
    }
}
