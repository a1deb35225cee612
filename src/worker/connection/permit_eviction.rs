//! Which idle connections are closed first when permits run out.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::worker::connection::record::{Connection, ConnectionCommand};
use crate::worker::connection::state::{ConnectionTimeouts, Tick};

/// Ticks after which a connection that has never sent anything counts as idle.
const SILENT_TICKS: Tick = 10;

/// Idle connections as of the last scan, the oldest first.
///
/// A scan of all connections for each permit would make a flood of new ones expensive, so there is at most one a tick.
#[derive(Debug, Default)]
pub(super) struct EvictionCandidates {
    found: VecDeque<(Tick, Arc<Connection>)>,
    /// Tick of the last scan; ticks begin with 1.
    scanned_at: Tick,
}

impl EvictionCandidates {
    /// The idle connection that has been so for longest; it is commanded to close, and counts as idle no more.
    pub(super) fn evict<'a>(
        &mut self,
        tick: Tick,
        timeouts: &ConnectionTimeouts,
        all: impl Iterator<Item = &'a Arc<Connection>>,
    ) -> bool {
        if self.evict_found(tick, timeouts) {
            return true;
        }
        if self.scanned_at == tick {
            return false;
        }
        self.scanned_at = tick;
        let idle = all
            .filter_map(|connection| Some((idle_since(connection, tick, timeouts)?, Arc::clone(connection))));
        let mut found: Vec<_> = idle.collect();
        found.sort_by_key(|(since, connection)| (*since, connection.number));
        self.found = found.into();
        self.evict_found(tick, timeouts)
    }

    fn evict_found(&mut self, tick: Tick, timeouts: &ConnectionTimeouts) -> bool {
        while let Some((since, connection)) = self.found.pop_front() {
            if idle_since(&connection, tick, timeouts) == Some(since) {
                connection.send_command(ConnectionCommand::CloseWhenIdle);
                return true;
            }
        }
        false
    }
}

/// Since which tick a connection has been idle; none: it is not, or it is to end already.
fn idle_since(connection: &Connection, tick: Tick, timeouts: &ConnectionTimeouts) -> Option<Tick> {
    let ends = connection.is_overruled(ConnectionCommand::CloseIfExpired);
    connection.state().idle_since(tick, SILENT_TICKS, timeouts).filter(|_| !ends)
}
