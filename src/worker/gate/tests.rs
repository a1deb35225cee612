//! The queue and its keeper, without connections: turns are polls.

use std::num::NonZeroUsize;
use std::thread::sleep;

use super::*;

fn gate() -> Arc<Gate> {
    let scoreboard = Arc::new(Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap());
    scoreboard.cell(0, 0).prepare(1, 0);
    Arc::new(Gate::new(scoreboard, 0, 0))
}

fn turn(gate: &Gate) {
    assert!(gate.poll_keep(&Context::from_waker(Waker::noop())).is_pending());
}

fn wait(gate: &Arc<Gate>) -> Arc<Ticket> {
    match gate.arrive() {
        Arrival::Waits(ticket) => ticket,
        Arrival::Refused => panic!("refused while all is calm"),
    }
}

fn verdict(ticket: &Ticket) -> Option<Verdict> {
    match ticket.poll(&Context::from_waker(Waker::noop())) {
        Poll::Ready(verdict) => Some(verdict),
        Poll::Pending => None,
    }
}

fn drain(gate: &Gate) {
    while gate.is_open() {
        gate.enter();
    }
}

#[test]
fn a_turn_begins_as_many_as_it_may_and_the_next_one_takes_those_that_waited() {
    let gate = gate();
    turn(&gate);
    drain(&gate);
    let tickets: Vec<_> = (0..10).map(|_| wait(&gate)).collect();
    assert!(tickets.iter().all(|ticket| verdict(ticket).is_none()));
    turn(&gate);
    assert!(tickets.iter().all(|ticket| verdict(ticket) == Some(Verdict::Admitted)));
    assert!(gate.is_open(), "there is allowance left for others");
    let snapshot = gate.cell().snapshot().unwrap();
    assert_eq!((snapshot.turns, snapshot.waiting), (2, 0));
}

#[test]
fn nobody_is_overtaken() {
    let gate = gate();
    turn(&gate);
    // Long turns leave the fewest.
    for _ in 0..8 {
        gate.enter();
        sleep(Duration::from_millis(9));
        turn(&gate);
    }
    drain(&gate);
    let tickets: Vec<_> = (0..6).map(|_| wait(&gate)).collect();
    turn(&gate);
    assert!(!gate.is_open(), "the queue comes first");
    let admitted = tickets.iter().filter(|ticket| verdict(ticket).is_some()).count();
    assert!((4..6).contains(&admitted), "{admitted}");
    assert!(tickets[..admitted].iter().all(|ticket| verdict(ticket).is_some()), "in their order");
    turn(&gate);
    assert!(tickets.iter().all(|ticket| verdict(ticket).is_some()));
}

#[test]
fn who_gives_up_takes_nobodys_turn() {
    let gate = gate();
    turn(&gate);
    drain(&gate);
    let tickets: Vec<_> = (0..4).map(|_| wait(&gate)).collect();
    tickets[0].give_up();
    tickets[0].give_up();
    assert_eq!(gate.waiting.load(Relaxed), 3);
    turn(&gate);
    assert_eq!(gate.waiting.load(Relaxed), 0);
    assert_eq!(verdict(&tickets[0]), None);
    assert_eq!(verdict(&tickets[3]), Some(Verdict::Admitted));
}

#[test]
fn who_comes_before_the_keeper_is_not_forgotten() {
    let gate = gate();
    drain(&gate);
    let ticket = wait(&gate);
    turn(&gate);
    assert_eq!(verdict(&ticket), Some(Verdict::Admitted));
}

#[test]
fn an_idle_loop_is_not_kept_turning() {
    let gate = gate();
    turn(&gate);
    gate.enter();
    turn(&gate);
    let turns = gate.cell().snapshot().unwrap().turns;
    turn(&gate);
    assert_eq!(gate.cell().snapshot().unwrap().turns, turns);
    assert!(!gate.turning.load(Relaxed));
}

#[test]
fn refusing_takes_its_share_of_the_time_and_no_more() {
    let gate = gate();
    turn(&gate);
    gate.most_waiting.store(1, Relaxed);
    drain(&gate);
    let _first = wait(&gate);
    let mut refused = 0;
    while let Arrival::Refused = gate.arrive() {
        gate.refused(Duration::from_micros(100));
        refused += 1;
    }
    assert_eq!(refused, 67, "20 ms were saved up, and each costs three times what was measured");
    assert!(gate.is_swamped());
    assert!(gate.budget_ns.load(Relaxed) <= 0);
}
