//! How many connections each worker should have: whether one has more than its share.

use crate::scoreboard::table::Scoreboard;

/// Slots that are sampled for one connection. All of them where there are no more; else some, other ones each time,
/// so that a connection of a large fleet costs no more than one of a fleet of this size.
const SLOTS_SAMPLED: usize = 64;

/// The worker whose share is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareQuery {
    /// Its slot.
    pub slot: usize,
    /// Its cell in the slot's row.
    pub cell: usize,
    /// Its generation.
    pub generation: u64,
    /// A worker without a heartbeat since then takes no connection, milliseconds of the monotonic clock.
    pub heartbeat_since_ms: u64,
    /// The first slot that is sampled, in a fleet that is too large to sample all of it.
    pub start_slot: usize,
}

/// A worker's share of all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionShare {
    /// How many it should have.
    pub target: u64,
    /// The slot whose worker has fewest of the others; none: they all have their share.
    pub least_loaded_slot: Option<usize>,
}

/// A worker's share of all connections, once `more` have come: what each has if none has two more than another.
///
/// Those that are on their way between workers are counted. None: no connection is to be passed on, because no
/// other worker takes any, or because workers of two generations serve. A new release that has to prove itself has
/// no connections yet, and would be given all new ones.
pub fn connection_share(scoreboard: &Scoreboard, query: &ShareQuery, more: u64) -> Option<ConnectionShare> {
    let slots = scoreboard.slots();
    let sampled = slots.min(SLOTS_SAMPLED);
    let mut fewest = (u64::MAX, None);
    let (mut others, mut connections) = (0, scoreboard.cell(query.slot, query.cell).connections());
    for step in 0..sampled {
        let slot = query.start_slot.wrapping_add(step) % slots;
        let row = scoreboard.row(slot);
        let Some(number) = row.active_cell() else { continue };
        let cell = row.cell(number);
        let Some(generation) = cell.serving_generation() else { continue };
        if generation != query.generation || (slot == query.slot && number != query.cell) {
            return None;
        }
        if slot != query.slot && !row.is_avoided() && cell.can_accept_transfer(query.heartbeat_since_ms) {
            others += 1;
            connections += cell.connections();
            if cell.connections() < fewest.0 {
                fewest = (cell.connections(), Some(slot));
            }
        }
    }
    // Read last: one that arrives meanwhile is missed, where it would otherwise be counted twice.
    let passing = scoreboard.pending_transfers().0 * sampled as u64 / slots.max(1) as u64;
    (others > 0).then(|| {
        let each = (connections + passing + more).div_ceil(others + 1);
        ConnectionShare { target: each, least_loaded_slot: fewest.1.filter(|_| fewest.0 < each) }
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::scoreboard::cell::CellState;
    use crate::scoreboard::row::SlotState;

    const QUERY: ShareQuery =
        ShareQuery { slot: 0, cell: 0, generation: 1, heartbeat_since_ms: 100, start_slot: 0 };

    /// A table of slots with a worker each, which has so many connections.
    fn table(connections: &[u64]) -> Scoreboard {
        let scoreboard = Scoreboard::create(NonZeroUsize::new(connections.len()).unwrap(), 1, 0).unwrap();
        scoreboard.set_slots(connections.len());
        for (slot, connections) in connections.iter().enumerate() {
            let cell = scoreboard.cell(slot, 0);
            cell.reset(1, 0);
            cell.set_state(CellState::Ready);
            cell.set_accepts_transfers(true);
            cell.record_heartbeat(100, 0, 0, 0);
            (0..*connections).for_each(|_| cell.count_connection_opened());
            scoreboard.row(slot).set_state(SlotState::Ready, Some(0));
        }
        scoreboard
    }

    fn share(table: &Scoreboard, more: u64) -> Option<u64> {
        connection_share(table, &QUERY, more).map(|share| share.target)
    }

    #[test]
    fn the_one_with_fewest_is_named_unless_all_have_their_share() {
        let fewest =
            |connections: &[u64]| connection_share(&table(connections), &QUERY, 1).unwrap().least_loaded_slot;
        assert_eq!(fewest(&[9, 3, 2, 3]), Some(2));
        assert_eq!(fewest(&[0, 3, 3, 3]), None, "the one that asks has fewest");
    }

    #[test]
    fn a_share_is_what_each_has_when_all_have_as_many() {
        assert_eq!(share(&table(&[0, 3, 2, 3]), 0), Some(2));
        assert_eq!(share(&table(&[0, 3, 2, 3]), 1), Some(3), "no part of one is possible");
        assert_eq!(share(&table(&[7]), 1), None, "a worker that is alone");
    }

    #[test]
    fn what_is_on_its_way_counts_and_what_a_killed_worker_had_does_not() {
        let table = table(&[0, 4]);
        let share = || share(&table, 0).unwrap();
        table.start_transfer();
        table.start_transfer();
        assert_eq!((share(), table.pending_transfers()), (3, (2, 2)));
        table.finish_transfer();
        table.reset_pending_transfers(1);
        assert_eq!(table.pending_transfers(), (1, 2), "one has left since the queue was seen empty");
        table.reset_pending_transfers(2);
        assert_eq!((share(), table.pending_transfers()), (2, (0, 2)));
        table.finish_transfer();
        assert_eq!(share(), 2, "one that was forgotten arrives");
    }

    #[test]
    fn workers_that_cannot_take_one_have_no_share() {
        let changes: [fn(&Scoreboard); 5] = [
            |table| table.cell(2, 0).set_accepts_transfers(false),
            |table| table.cell(2, 0).set_shedding(true),
            |table| table.cell(2, 0).record_heartbeat(99, 0, 0, 0),
            |table| table.cell(2, 0).set_state(CellState::Draining),
            |table| table.row(2).set_avoided(true),
        ];
        for (case, change) in changes.into_iter().enumerate() {
            let table = table(&[4, 4, 100]);
            change(&table);
            assert_eq!(share(&table, 0), Some(4), "case {case}");
            let fewest = connection_share(&table, &QUERY, 1).and_then(|share| share.least_loaded_slot);
            assert_eq!(fewest, Some(1), "case {case}");
        }
    }

    #[test]
    fn nothing_is_passed_while_two_generations_serve_or_a_successor_does() {
        let scoreboard = table(&[0, 3, 2]);
        assert_eq!(connection_share(&scoreboard, &ShareQuery { generation: 2, ..QUERY }, 1), None);
        scoreboard.cell(0, 1).reset(1, 0);
        scoreboard.cell(0, 1).set_state(CellState::Ready);
        scoreboard.row(0).set_state(SlotState::Ready, Some(1));
        assert_eq!(connection_share(&scoreboard, &QUERY, 1), None);
    }

    #[test]
    fn a_large_fleet_is_sampled_in_parts() {
        let mut connections = vec![10; 200];
        connections[0] = 10;
        connections[150] = 10 + 64;
        let table = table(&connections);
        let share = |turn| {
            connection_share(&table, &ShareQuery { start_slot: turn, ..QUERY }, 0).map(|share| share.target)
        };
        assert_eq!((share(20), share(100)), (Some(10), Some(11)));
    }
}
