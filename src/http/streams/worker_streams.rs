//! What all event streams and WebSockets of a worker share: how many there may be, how they show that they live, and when
//! they end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::drain_state::DrainState;
use crate::http::services::app_services::AppServices;
use crate::http::services::cell_handle::CellHandle;

/// The streams of one worker, or of a program without a fleet.
pub(crate) struct WorkerStreams {
    permits: Arc<Semaphore>,
    /// Where open streams are counted; none outside a fleet.
    cell: Option<CellHandle>,
    pub(crate) drain: DrainState,
    /// How often a stream with nothing to say gives a sign of life.
    pub(crate) keep_alive_interval: Duration,
}

impl WorkerStreams {
    pub(crate) fn new(
        places: usize,
        keep_alive_interval: Duration,
        drain: &DrainState,
        cell: Option<CellHandle>,
    ) -> Self {
        Self { permits: Arc::new(Semaphore::new(places)), cell, drain: drain.clone(), keep_alive_interval }
    }

    /// Those of a worker, which has `broadcast.max_subscribers` places.
    pub(crate) fn of_worker(parts: &AppServices, cell: CellHandle) -> Self {
        let config = &parts.config.broadcast;
        Self::new(config.max_subscribers, config.keep_alive_interval, &parts.drain, Some(cell))
    }

    /// A place for one stream; none while all `broadcast.max_subscribers` are taken.
    pub(crate) fn take_place(&self) -> Option<StreamPlace> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(self.open(Some(permit)))
    }

    /// Places that are left.
    pub(crate) fn free_places(&self) -> usize {
        self.permits.available_permits()
    }

    /// A stream that is bounded elsewhere and counted here, as a topic's subscribers are.
    pub(crate) fn count(&self) -> StreamPlace {
        self.open(None)
    }

    fn open(&self, permit: Option<OwnedSemaphorePermit>) -> StreamPlace {
        if let Some(cell) = &self.cell {
            cell.cell().count_stream_opened();
        }
        StreamPlace { _permit: permit, cell: self.cell.clone() }
    }
}

impl fmt::Debug for WorkerStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerStreams")
            .field("free_places", &self.free_places())
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}

/// One open stream's place, which its drop gives back.
#[derive(Debug)]
pub(crate) struct StreamPlace {
    _permit: Option<OwnedSemaphorePermit>,
    cell: Option<CellHandle>,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        if let Some(cell) = &self.cell {
            cell.cell().count_stream_closed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::scoreboard::Scoreboard;

    #[test]
    fn places_are_bounded_counted_and_given_back() {
        let table = Arc::new(Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap());
        table.set_slots(1);
        table.cell(0, 0).reset(1, 0);
        let open = || table.cell(0, 0).snapshot().unwrap().open_streams;
        let cell = Some(CellHandle::new(&table, 0, 0));
        let streams = WorkerStreams::new(2, Duration::from_secs(15), &DrainState::default(), cell);
        let (first, second) = (streams.take_place(), streams.take_place());
        assert!(first.is_some() && second.is_some() && streams.take_place().is_none());
        let beside = streams.count();
        assert_eq!(open(), 3);
        drop((first, beside));
        assert!(streams.take_place().is_some());
        drop(second);
        assert_eq!(open(), 0);
    }
}
