//! Scenes of the planner: what it sees and what it wants.

use super::*;
use crate::supervisor::backoff::Backoff;
use crate::supervisor::backoff::Death;

const NOW: Duration = Duration::from_secs(100);
const LATER: Duration = Duration::from_secs(101);
const KILL_AT: Duration = Duration::from_secs(132);

fn pid(number: i32) -> Pid {
    Pid::from_raw(number)
}

fn worker(number: i32, generation: u64, stage: Stage) -> Occupant {
    Occupant {
        pid: pid(number),
        generation,
        cell: usize::try_from(number).unwrap() % 8,
        stage,
        started: NOW,
        retire: None,
    }
}

const READY: Stage = Stage::Ready { since: Duration::from_secs(50) };
const BOOTING: Stage = Stage::Booting { deadline: LATER };

fn slot(generation: u64, workers: &[Occupant]) -> Slot {
    Slot { workers: workers.to_vec(), proven: true, ..Slot::new(generation) }
}

fn ready(number: i32) -> Slot {
    slot(1, &[worker(number, 1, READY)])
}

fn failed(deaths: u32) -> Slot {
    let mut backoff = Backoff::default();
    for _ in 0..deaths {
        backoff.after(Death::BeforeReady, 0.0);
    }
    Slot { backoff, rest_until: Some(LATER), ..slot(1, &[]) }
}

fn view(slots: &[Slot]) -> View<'_> {
    View {
        target: Target::Serve,
        slots,
        generation: 1,
        oldest: 1,
        rollout: Reason::Reload,
        canary: None,
        ever_ready: true,
        probation: Duration::from_secs(2),
        drain_timeout: Duration::from_secs(30),
        leaving: 2,
    }
}

fn actions(slots: &[Slot]) -> Vec<Action> {
    plan(&view(slots), NOW).actions
}

fn pass(slot: usize, number: i32, reason: Reason) -> Action {
    Action::Drain { slot, pid: pid(number), kill_at: KILL_AT, order: Order::Pass, reason }
}

fn closing(slot: usize, number: i32, order: Order, reason: Reason) -> Action {
    Action::Drain { slot, pid: pid(number), kill_at: KILL_AT, order, reason }
}

#[test]
fn an_empty_slot_is_filled_and_a_ready_one_left_alone() {
    let slots = [ready(1), slot(1, &[])];
    assert_eq!(
        plan(&view(&slots), NOW),
        Plan { actions: vec![Action::Spawn { slot: 1, generation: 1 }], wake_at: None }
    );
}

#[test]
fn a_backed_off_slot_waits_and_the_others_do_not() {
    let slots = [failed(5), slot(1, &[])];
    let spawn = |slot| Action::Spawn { slot, generation: 1 };
    assert_eq!(plan(&view(&slots), NOW), Plan { actions: vec![spawn(1)], wake_at: Some(LATER) });
    assert_eq!(plan(&view(&slots), LATER).actions, [spawn(0), spawn(1)]);
}

#[test]
fn one_slot_that_never_boots_does_not_end_the_fleet() {
    let mut slots = [failed(50), ready(1)];
    assert!(!actions(&slots).contains(&Action::GiveUp));
    slots[1] = slot(1, &[worker(2, 1, BOOTING)]);
    assert!(!plan(&View { ever_ready: false, ..view(&slots) }, NOW).actions.contains(&Action::GiveUp));
}

#[test]
fn a_fleet_of_which_no_slot_ever_boots_gives_up() {
    let mut slots = [failed(2), failed(2), failed(2)];
    let plan = |slots: &[Slot]| plan(&View { ever_ready: false, ..view(slots) }, NOW);
    assert_eq!(plan(&slots).actions, [Action::GiveUp]);
    slots[2] = failed(1);
    assert!(plan(&slots).actions.is_empty());
    // One that still boots for the third time is waited for, and nobody is started meanwhile.
    slots[1].workers = vec![worker(9, 1, BOOTING)];
    slots[2] = Slot { rest_until: None, ..failed(2) };
    assert_eq!(plan(&slots), Plan { actions: vec![], wake_at: Some(LATER) });
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed() {
    let slots = [slot(1, &[worker(7, 1, BOOTING)])];
    assert_eq!(plan(&view(&slots), NOW), Plan { actions: vec![], wake_at: Some(LATER) });
    let kill = Action::Kill { slot: 0, pid: pid(7), cause: Cause::BootTimeout };
    assert_eq!(plan(&view(&slots), LATER).actions, [kill]);
}

#[test]
fn a_new_generation_enters_one_slot_after_another() {
    let two = [ready(1), ready(2)];
    let rolling = |slots: &[Slot], canary| plan(&View { generation: 2, canary, ..view(slots) }, NOW);
    assert_eq!(rolling(&two, Some(0)).actions, [Action::Spawn { slot: 0, generation: 2 }]);
    let booting = [slot(1, &[worker(1, 1, READY), worker(3, 2, BOOTING)]), ready(2)];
    assert_eq!(rolling(&booting, Some(0)).actions, []);
    let fresh = Stage::Ready { since: NOW };
    let watched = [slot(1, &[worker(1, 1, READY), worker(3, 2, fresh)]), ready(2)];
    let probation = Plan { actions: vec![], wake_at: Some(NOW + Duration::from_secs(2)) };
    assert_eq!(rolling(&watched, Some(0)), probation);
    assert_eq!(rolling(&watched, None).actions, [Action::Promote { slot: 0 }]);
    let promoted = [slot(2, &[worker(1, 1, READY), worker(3, 2, fresh)]), ready(2)];
    let expected = [pass(0, 1, Reason::Reload), Action::Spawn { slot: 1, generation: 2 }];
    assert_eq!(rolling(&promoted, None).actions, expected);
}

#[test]
fn a_generation_that_is_taken_back_leaves_and_promoted_slots_get_the_old_one() {
    let fresh = Stage::Ready { since: NOW };
    let canary = [slot(1, &[worker(1, 1, READY), worker(3, 2, fresh)]), ready(2)];
    assert_eq!(actions(&canary), [pass(0, 3, Reason::Reload)]);
    let promoted = [slot(2, &[worker(3, 2, READY)]), ready(2)];
    assert_eq!(actions(&promoted), [Action::Spawn { slot: 0, generation: 1 }]);
    let back = [slot(2, &[worker(3, 2, READY), worker(4, 1, fresh)]), ready(2)];
    assert_eq!(actions(&back), [Action::Promote { slot: 0 }]);
}

#[test]
fn a_crash_in_a_rollout_is_answered_with_the_slots_own_generation_if_it_can_be() {
    let slots = [slot(1, &[worker(1, 1, READY), worker(3, 2, BOOTING)]), slot(1, &[])];
    let spawned = |oldest| plan(&View { generation: 2, oldest, ..view(&slots) }, NOW).actions;
    assert_eq!(spawned(1), [Action::Spawn { slot: 1, generation: 1 }]);
    assert_eq!(spawned(2), [Action::Spawn { slot: 1, generation: 2 }]);
}

#[test]
fn one_worker_at_a_time_is_replaced_of_free_will() {
    let retiring = |number| {
        let retire = Some(Reason::Age);
        slot(1, &[Occupant { retire, ..worker(number, 1, READY) }])
    };
    let mut slots = [retiring(1), retiring(2)];
    assert_eq!(actions(&slots), [Action::Spawn { slot: 0, generation: 1 }]);
    slots[0].workers.push(worker(3, 1, BOOTING));
    assert_eq!(actions(&slots), []);
    slots[0].workers[1].stage = READY;
    assert_eq!(actions(&slots), [pass(0, 1, Reason::Age), Action::Spawn { slot: 1, generation: 1 }]);
}

const HUNG: Stage = Stage::Hung { since: Duration::from_secs(50), kill_at: Some(LATER) };

#[test]
fn a_hung_worker_stays_beside_its_spare_and_drains_when_it_moves_again() {
    let spawn = Action::Spawn { slot: 0, generation: 1 };
    let mut slots = [slot(1, &[worker(1, 1, HUNG)])];
    // No clock kills it: that is judged by the time it could have used.
    assert_eq!(plan(&view(&slots), NOW), Plan { actions: vec![spawn], wake_at: None });
    slots[0].workers.push(worker(2, 1, BOOTING));
    assert_eq!(actions(&slots), []);
    slots[0].workers[1].stage = READY;
    assert_eq!(actions(&slots), [], "it may still move");
    (slots[0].workers[0].stage, slots[0].workers[0].retire) = (READY, Some(Reason::Hang));
    assert_eq!(actions(&slots), [pass(0, 1, Reason::Hang)]);
    // One that moves before its spare is READY serves until then.
    slots[0].workers[1].stage = BOOTING;
    assert_eq!(actions(&slots), []);
}

#[test]
fn a_slot_without_room_for_a_spare_gives_up_its_oldest_hung_worker_and_only_that() {
    let mut slots = [slot(1, &(1..=8).map(|number| worker(number, 1, HUNG)).collect::<Vec<_>>())];
    let kill = Action::Kill { slot: 0, pid: pid(1), cause: Cause::Hang };
    assert_eq!(actions(&slots), [kill]);
    slots[0].workers[0].stage = Stage::Killed { cause: Cause::Hang, forget_at: LATER };
    assert_eq!(actions(&slots), [], "its cell is free as soon as it is reaped");
    slots[0].workers.remove(0);
    assert_eq!(actions(&slots), [Action::Spawn { slot: 0, generation: 1 }]);
}

#[test]
fn a_rollout_goes_past_a_hung_worker_and_never_waits_for_it() {
    let slots = [slot(1, &[worker(1, 1, HUNG), worker(2, 1, READY)]), ready(3)];
    let view = View { generation: 2, ..view(&slots) };
    assert_eq!(plan(&view, NOW).actions, [Action::Spawn { slot: 0, generation: 2 }]);
    // Where it is alone its spare is of the new generation already.
    let slots = [slot(1, &[worker(1, 1, HUNG)]), ready(3)];
    let view = View { slots: &slots, ..view };
    assert_eq!(plan(&view, NOW).actions, [Action::Spawn { slot: 0, generation: 2 }]);
}

#[test]
fn a_hung_worker_is_told_to_stop_and_has_no_longer_than_it_would_have_had() {
    let slots = [slot(1, &[worker(1, 1, HUNG), worker(2, 1, READY)])];
    let stop = plan(&View { target: Target::Stop, ..view(&slots) }, NOW).actions;
    let kill_at = NOW + LEAVE_MARGIN;
    let (order, reason) = (Order::Stop, Reason::Stop);
    let soon = Action::Drain { slot: 0, pid: pid(1), kill_at, order, reason };
    assert_eq!(stop, [soon, closing(0, 2, Order::Stop, Reason::Stop)]);
    let never = Stage::Hung { since: NOW, kill_at: None };
    let slots = [slot(1, &[worker(1, 1, never)])];
    let stop = plan(&View { target: Target::Stop, ..view(&slots) }, NOW).actions;
    assert_eq!(stop, [closing(0, 1, Order::Stop, Reason::Stop)]);
    let now = plan(&View { target: Target::StopNow, ..view(&slots) }, NOW).actions;
    assert_eq!(now, [Action::Kill { slot: 0, pid: pid(1), cause: Cause::StopNow }]);
}

#[test]
fn a_slot_that_retires_with_a_hung_worker_is_drained_by_another_and_closed_to_one_that_comes_back() {
    let closing_slot = |seat, workers: &[Occupant]| [ready(1), Slot { seat, ..slot(1, workers) }];
    let alone = closing_slot(Seat::Closing, &[worker(2, 1, HUNG)]);
    assert_eq!(actions(&alone), [Action::Spawn { slot: 1, generation: 1 }]);
    let closed = closing_slot(Seat::Closed, &[worker(2, 1, HUNG)]);
    assert_eq!(actions(&closed), []);
    let back = closing_slot(Seat::Closed, &[worker(2, 1, READY)]);
    assert_eq!(actions(&back), [closing(1, 2, Order::Close, Reason::Scale)]);
}

#[test]
fn leaving_workers_are_bounded_the_oldest_is_cut() {
    let leaving = |number, cut| {
        let stage = Stage::Draining { kill_at: KILL_AT, reason: Reason::Reload, order: Order::Pass, cut };
        worker(number, 1, stage)
    };
    let full = |cut| [slot(1, &[leaving(1, cut), leaving(2, false), leaving(3, false), worker(4, 1, READY)])];
    assert_eq!(actions(&full(false)), [Action::Cut { slot: 0, pid: pid(1), kill_at: NOW + LEAVE_MARGIN }]);
    assert_eq!(actions(&full(true)), []);
}

#[test]
fn a_retiring_slot_is_attended_until_its_listeners_are_closed() {
    let retiring = |seat, workers: &[Occupant]| [ready(1), Slot { seat, ..slot(1, workers) }];
    let two = retiring(Seat::Closing, &[worker(2, 1, READY)]);
    assert_eq!(actions(&two), [closing(1, 2, Order::Close, Reason::Scale)]);
    let deserted = retiring(Seat::Closing, &[]);
    assert_eq!(actions(&deserted), [Action::Spawn { slot: 1, generation: 1 }]);
    // A first early death may be bad luck; whoever waits in the queue is worth another try.
    let unlucky = [ready(1), Slot { seat: Seat::Closing, rest_until: None, ..failed(1) }];
    assert_eq!(actions(&unlucky), [Action::Spawn { slot: 1, generation: 1 }]);
    let broken = [ready(1), Slot { seat: Seat::Closing, ..failed(2) }];
    assert_eq!(actions(&broken), [Action::CloseSeat { slot: 1 }]);
    let stage = Stage::Draining { kill_at: KILL_AT, reason: Reason::Scale, order: Order::Close, cut: false };
    let finishing = retiring(Seat::Closed, &[worker(2, 1, stage)]);
    assert_eq!(actions(&finishing), []);
    assert_eq!(actions(&retiring(Seat::Closed, &[])), [Action::Remove { slot: 1 }]);
}

#[test]
fn a_worker_of_a_slots_former_life_does_not_attend_its_queue() {
    let stage = Stage::Draining { kill_at: KILL_AT, reason: Reason::Scale, order: Order::Close, cut: false };
    let mut former = worker(2, 1, stage);
    former.passes();
    assert!(former.is_draining() && !former.is_closing());
    let again = [ready(1), Slot { seat: Seat::Closing, ..slot(1, &[former]) }];
    assert_eq!(actions(&again), [Action::Spawn { slot: 1, generation: 1 }]);
}

#[test]
fn stopping_drains_then_kills_then_finishes() {
    let stop = |slots: &[Slot], now| plan(&View { target: Target::Stop, ..view(slots) }, now);
    let slots = [ready(1), failed(3)];
    assert_eq!(stop(&slots, NOW).actions, [closing(0, 1, Order::Stop, Reason::Stop)]);
    let stage = Stage::Draining { kill_at: KILL_AT, reason: Reason::Stop, order: Order::Stop, cut: false };
    let draining = [slot(1, &[worker(1, 1, stage)])];
    assert_eq!(stop(&draining, LATER), Plan { actions: vec![], wake_at: Some(KILL_AT) });
    let late = Action::Kill { slot: 0, pid: pid(1), cause: Cause::DrainTimeout };
    assert_eq!(stop(&draining, KILL_AT).actions, [late]);
    let stage = Stage::Killed { cause: Cause::DrainTimeout, forget_at: LATER };
    let killed = [slot(1, &[worker(1, 1, stage)])];
    assert!(stop(&killed, NOW).actions.is_empty());
    assert_eq!(stop(&killed, LATER).actions, [Action::Finish]);
    assert_eq!(stop(&[slot(1, &[])], NOW).actions, [Action::Finish]);
}

#[test]
fn stopping_at_once_kills_whatever_lives() {
    let slots = [ready(1), slot(1, &[worker(2, 1, BOOTING)]), slot(1, &[])];
    let kill = |slot, number| Action::Kill { slot, pid: pid(number), cause: Cause::StopNow };
    let plan = plan(&View { target: Target::StopNow, ..view(&slots) }, NOW);
    assert_eq!(plan.actions, [kill(0, 1), kill(1, 2)]);
}
