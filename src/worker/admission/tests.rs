//! The queue and its keeper, without connections: turns are polls.

use std::num::NonZeroUsize;
use std::thread::sleep;

use super::*;

fn gate() -> Arc<AdmissionGate> {
    let scoreboard = Arc::new(Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap());
    scoreboard.cell(0, 0).reset(1, 0);
    Arc::new(AdmissionGate::new(scoreboard, 0, 0))
}

fn run_turn(gate: &AdmissionGate) {
    assert!(gate.poll_turns(&Context::from_waker(Waker::noop())).is_pending());
}

fn enqueue(gate: &Arc<AdmissionGate>) -> Arc<AdmissionWaiter> {
    match gate.enqueue() {
        ArrivalOutcome::Queued(ticket) => ticket,
        ArrivalOutcome::Refused => panic!("refused while all is calm"),
    }
}

fn outcome(waiter: &AdmissionWaiter) -> Option<AdmissionOutcome> {
    match waiter.poll(&Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

fn drain(gate: &AdmissionGate) {
    while gate.is_open() {
        gate.start_request();
    }
}

#[test]
fn a_turn_begins_as_many_as_it_may_and_the_next_one_takes_those_that_waited() {
    let gate = gate();
    run_turn(&gate);
    drain(&gate);
    let waiters: Vec<_> = (0..10).map(|_| enqueue(&gate)).collect();
    assert!(waiters.iter().all(|waiter| outcome(waiter).is_none()));
    run_turn(&gate);
    assert!(waiters.iter().all(|waiter| outcome(waiter) == Some(AdmissionOutcome::Admitted)));
    assert!(gate.is_open(), "there is allowance left for others");
    let snapshot = gate.cell().snapshot().unwrap();
    assert_eq!((snapshot.turns, snapshot.waiting), (2, 0));
}

#[test]
fn no_request_is_overtaken() {
    let gate = gate();
    run_turn(&gate);
    // Long turns leave the fewest.
    for _ in 0..8 {
        gate.start_request();
        sleep(Duration::from_millis(9));
        run_turn(&gate);
    }
    drain(&gate);
    let waiters: Vec<_> = (0..6).map(|_| enqueue(&gate)).collect();
    run_turn(&gate);
    assert!(!gate.is_open(), "the queue comes first");
    let admitted = waiters.iter().filter(|waiter| outcome(waiter).is_some()).count();
    assert!((4..6).contains(&admitted), "{admitted}");
    assert!(waiters[..admitted].iter().all(|waiter| outcome(waiter).is_some()), "in their order");
    run_turn(&gate);
    assert!(waiters.iter().all(|waiter| outcome(waiter).is_some()));
}

#[test]
fn a_cancelled_request_uses_no_turn() {
    let gate = gate();
    run_turn(&gate);
    drain(&gate);
    let waiters: Vec<_> = (0..4).map(|_| enqueue(&gate)).collect();
    waiters[0].cancel();
    waiters[0].cancel();
    assert_eq!(gate.waiting.load(Relaxed), 3);
    run_turn(&gate);
    assert_eq!(gate.waiting.load(Relaxed), 0);
    assert_eq!(outcome(&waiters[0]), None);
    assert_eq!(outcome(&waiters[3]), Some(AdmissionOutcome::Admitted));
}

#[test]
fn a_request_that_comes_before_the_first_poll_is_not_lost() {
    let gate = gate();
    drain(&gate);
    let waiter = enqueue(&gate);
    run_turn(&gate);
    assert_eq!(outcome(&waiter), Some(AdmissionOutcome::Admitted));
}

#[test]
fn an_idle_loop_is_not_kept_turning() {
    let gate = gate();
    run_turn(&gate);
    gate.start_request();
    run_turn(&gate);
    let turns = gate.cell().snapshot().unwrap().turns;
    run_turn(&gate);
    assert_eq!(gate.cell().snapshot().unwrap().turns, turns);
    assert!(!gate.turn_active.load(Relaxed));
}

#[test]
fn refusing_takes_its_share_of_the_time_and_no_more() {
    let gate = gate();
    run_turn(&gate);
    gate.max_waiting.store(1, Relaxed);
    drain(&gate);
    let _first = enqueue(&gate);
    let mut refused = 0;
    while let ArrivalOutcome::Refused = gate.enqueue() {
        gate.record_refusal(Duration::from_micros(100));
        refused += 1;
    }
    assert_eq!(refused, 67, "20 ms were saved up, and each costs three times what was measured");
    assert!(gate.is_saturated());
    assert!(gate.refusal_budget_ns.load(Relaxed) <= 0);
}
