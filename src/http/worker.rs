//! Which worker answers.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::http::services::cell_handle::CellHandle;

/// Which worker answers; also an extractor.
///
/// ```
/// use regatta::Worker;
///
/// async fn home(worker: Worker) -> String {
///     let build = format!("generation {}, {} bytes", worker.generation(), worker.memory_bytes());
///     format!("PID {} on {}, up for {:?}, {build}\n", worker.pid(), worker.host(), worker.uptime())
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(home));
/// ```
#[derive(Clone)]
pub struct Worker {
    pid: u32,
    slot: usize,
    generation: u64,
    host: Arc<str>,
    /// Since when it serves, and where it writes what it counts; `None` before it does.
    serving: Option<(Instant, CellHandle)>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("pid", &self.pid)
            .field("slot", &self.slot)
            .field("generation", &self.generation)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// Names a worker.
    pub(crate) fn new(pid: u32, slot: usize, generation: u64, host: impl Into<Arc<str>>) -> Self {
        Self { pid, slot, generation, host: host.into(), serving: None }
    }

    /// The same worker, which serves since `started` and counts in `cell`.
    pub(super) fn serving(self, started: Instant, cell: CellHandle) -> Self {
        Self { serving: Some((started, cell)), ..self }
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

    /// How long it has been serving.
    pub fn uptime(&self) -> Duration {
        self.serving.as_ref().map_or(Duration::ZERO, |(started, _)| started.elapsed())
    }

    /// Memory of it that no file backs, bytes, as of its last heartbeat; 0 before the first.
    pub fn memory_bytes(&self) -> u64 {
        self.serving.as_ref().map_or(0, |(_, cell)| cell.cell().memory_bytes())
    }
}
