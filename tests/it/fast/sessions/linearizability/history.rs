//! Whether what several clients saw at once could have been seen one after the other (Wing and Gong's search).

use std::collections::HashSet;

use crate::fast::sessions::linearizability::model::{Answer, Step, World};

/// A step that was made: when it was asked and answered, by one clock of all clients.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) asked: u64,
    pub(crate) answered: u64,
    pub(crate) step: Step,
    pub(crate) answer: Answer,
}

/// Whether there is an order that explains every answer, in which a step comes before every other that was asked after
/// it was answered.
pub(crate) fn explain(begin: &World, clients: &[Vec<Event>]) -> bool {
    let mut seen = HashSet::new();
    search(begin, clients, &mut vec![0; clients.len()], &mut seen)
}

fn search(
    world: &World,
    clients: &[Vec<Event>],
    done: &mut Vec<usize>,
    seen: &mut HashSet<(Vec<usize>, World)>,
) -> bool {
    if !seen.insert((done.clone(), world.clone())) {
        return false;
    }
    let next = |client: usize, done: &[usize]| clients[client].get(done[client]);
    // A worker that was asked after another's answer is not next.
    let first_answer = (0..clients.len()).filter_map(|client| Some(next(client, done)?.answered)).min();
    let Some(first_answer) = first_answer else { return true };
    for client in 0..clients.len() {
        let Some(event) = next(client, done).filter(|event| event.asked <= first_answer) else { continue };
        let mut after = world.clone();
        if after.step(&event.step) != event.answer {
            continue;
        }
        done[client] += 1;
        let found = search(&after, clients, done, seen);
        done[client] -= 1;
        if found {
            return true;
        }
    }
    false
}
