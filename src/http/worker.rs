//! Which worker answers.

use std::sync::Arc;

/// Which worker answers; also an extractor.
#[derive(Debug, Clone)]
pub struct Worker {
    pid: u32,
    slot: usize,
    generation: u64,
    host: Arc<str>,
}

impl Worker {
    /// Names a worker.
    pub fn new(pid: u32, slot: usize, generation: u64, host: impl Into<Arc<str>>) -> Self {
        Self { pid, slot, generation, host: host.into() }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Index of its slot, from 0.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Number of the configuration and binary it runs, from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Name of its host or container.
    pub fn host(&self) -> &str {
        &self.host
    }
}
