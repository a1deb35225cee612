//! Which idle connections go first when places run out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::worker::connection::{ConnectionCommand, ConnectionPhase, ConnectionState};

/// Ticks after which a connection that has never sent anything counts as idle.
const SILENT_TICKS: u64 = 10;

/// Idle connections as they were when they were last looked for, the oldest first.
///
/// Looking at every connection for each place would make a flood of new ones dear, so it is done once a tick at most.
#[derive(Debug, Default)]
pub(super) struct EvictionCandidates {
    found: VecDeque<(u64, Arc<ConnectionState>)>,
    /// Tick of the last look; ticks begin with 1.
    scanned_at: u64,
}

impl EvictionCandidates {
    /// The idle connection that has been so for longest; it is told to finish, and counts as idle no more.
    pub(super) fn evict<'a>(
        &mut self,
        tick: u64,
        all: impl Iterator<Item = &'a Arc<ConnectionState>>,
    ) -> bool {
        if self.evict_found(tick) {
            return true;
        }
        if self.scanned_at == tick {
            return false;
        }
        self.scanned_at = tick;
        let idle = all.filter_map(|connection| Some((connection.idle_since(tick)?, Arc::clone(connection))));
        let mut found: Vec<_> = idle.collect();
        found.sort_by_key(|(since, connection)| (*since, connection.number));
        self.found = found.into();
        self.evict_found(tick)
    }

    fn evict_found(&mut self, tick: u64) -> bool {
        while let Some((since, connection)) = self.found.pop_front() {
            if connection.idle_since(tick) == Some(since) {
                connection.send_command(ConnectionCommand::CloseWhenIdle);
                return true;
            }
        }
        false
    }
}

impl ConnectionState {
    /// Since which tick it has been idle; none: it is not.
    fn idle_since(&self, tick: u64) -> Option<u64> {
        let since = self.phase_since.load(Relaxed);
        let silent =
            self.is_in_phase(ConnectionPhase::AwaitingHeader) && tick.saturating_sub(since) >= SILENT_TICKS;
        let idle = (self.is_in_phase(ConnectionPhase::Idle) || silent)
            && !self.is_busy()
            && !self.stalled.load(Relaxed)
            && self.command.load(Relaxed) <= ConnectionCommand::CloseIfExpired as u8;
        idle.then_some(since)
    }
}
