//! Who has how many connections: whether a worker has more than its share.

use crate::scoreboard::Scoreboard;

/// Slots that are looked at for one connection. All of them where there are no more; else some, other ones each time,
/// so that a connection of a large fleet costs no more than one of a fleet of this size.
const LOOKED_AT: usize = 64;

/// A worker that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking {
    /// Its slot.
    pub slot: usize,
    /// Its cell in the slot's row.
    pub cell: usize,
    /// Its generation.
    pub generation: u64,
    /// Who has not moved since then takes no connection, milliseconds of the monotonic clock.
    pub moved_since_ms: u64,
    /// Where the look begins in a fleet that is too large to look at all of it.
    pub turn: usize,
}

impl Scoreboard {
    /// The fewest connections that another worker has which can take one more; none: no connection is to be passed.
    ///
    /// While workers of two generations serve, none is: a new release that has to prove itself would have no
    /// connections yet, and so be given all new ones.
    pub fn fewest_connections(&self, asking: &Asking) -> Option<u64> {
        let slots = self.slots();
        let looked_at = (0..slots.min(LOOKED_AT)).map(|step| (asking.turn.wrapping_add(step)) % slots);
        let mut fewest: Option<u64> = None;
        for slot in looked_at {
            let row = self.row(slot);
            let Some(number) = row.incumbent() else { continue };
            let cell = row.cell(number);
            let Some(generation) = cell.serves() else { continue };
            if generation != asking.generation || (slot == asking.slot && number != asking.cell) {
                return None;
            }
            if slot != asking.slot && !row.is_avoided() && cell.can_take(asking.moved_since_ms) {
                let connections = cell.connections();
                fewest = Some(fewest.map_or(connections, |fewest| fewest.min(connections)));
            }
        }
        fewest
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::scoreboard::cell::WorkerState;
    use crate::scoreboard::row::SlotState;

    const ASKING: Asking = Asking { slot: 0, cell: 0, generation: 1, moved_since_ms: 100, turn: 0 };

    /// A table of slots with a worker each, which has so many connections.
    fn table(connections: &[u64]) -> Scoreboard {
        let scoreboard = Scoreboard::create(NonZeroUsize::new(connections.len()).unwrap(), 1, 0).unwrap();
        scoreboard.set_slots(connections.len());
        for (slot, connections) in connections.iter().enumerate() {
            let cell = scoreboard.cell(slot, 0);
            cell.prepare(1, 0);
            cell.set_state(WorkerState::Ready);
            cell.set_takes(true);
            cell.beat(100, 0, 0, 0);
            (0..*connections).for_each(|_| cell.connection_opened());
            scoreboard.row(slot).set_state(SlotState::Ready, Some(0));
        }
        scoreboard
    }

    #[test]
    fn the_fewest_are_those_of_another_worker() {
        assert_eq!(table(&[0, 3, 2, 5]).fewest_connections(&ASKING), Some(2));
        assert_eq!(table(&[7]).fewest_connections(&ASKING), None, "a worker that is alone");
    }

    #[test]
    fn workers_that_cannot_take_one_are_passed_by() {
        let told: [fn(&Scoreboard); 5] = [
            |table| table.cell(2, 0).set_takes(false),
            |table| table.cell(2, 0).set_shedding(true),
            |table| table.cell(2, 0).beat(99, 0, 0, 0),
            |table| table.cell(2, 0).set_state(WorkerState::Draining),
            |table| table.row(2).set_avoided(true),
        ];
        for (case, tell) in told.into_iter().enumerate() {
            let table = table(&[0, 3, 2, 5]);
            tell(&table);
            assert_eq!(table.fewest_connections(&ASKING), Some(3), "case {case}");
        }
    }

    #[test]
    fn nothing_is_passed_while_two_generations_serve_or_a_successor_does() {
        let scoreboard = table(&[0, 3, 2]);
        assert_eq!(scoreboard.fewest_connections(&Asking { generation: 2, ..ASKING }), None);
        scoreboard.cell(0, 1).prepare(1, 0);
        scoreboard.cell(0, 1).set_state(WorkerState::Ready);
        scoreboard.row(0).set_state(SlotState::Ready, Some(1));
        assert_eq!(scoreboard.fewest_connections(&ASKING), None);
    }

    #[test]
    fn a_large_fleet_is_looked_at_in_parts() {
        let mut connections = vec![9; 200];
        connections[150] = 1;
        let table = table(&connections);
        let fewest = |turn| table.fewest_connections(&Asking { turn, ..ASKING });
        assert_eq!((fewest(0), fewest(100), fewest(190)), (Some(9), Some(1), Some(9)));
    }
}
