//! Scenes of the planner: what it sees and what it wants.

use super::*;
use crate::supervisor::slots::backoff::{RestartBackoff, WorkerDeath};

const NOW: Duration = Duration::from_secs(100);
const LATER: Duration = Duration::from_secs(101);
const KILL_AT: Duration = Duration::from_secs(132);

fn pid(number: i32) -> Pid {
    Pid::from_raw(number)
}

fn worker(number: i32, generation: u64, stage: WorkerPhase) -> WorkerHandle {
    WorkerHandle {
        pid: pid(number),
        generation,
        cell: usize::try_from(number).unwrap() % 8,
        phase: stage,
        started: NOW,
        replace_reason: None,
    }
}

const READY: WorkerPhase = WorkerPhase::Ready { since: Duration::from_secs(50) };
const BOOTING: WorkerPhase = WorkerPhase::Booting { deadline: LATER };

fn slot(generation: u64, workers: &[WorkerHandle]) -> Slot {
    Slot { workers: workers.to_vec(), was_ready: true, ..Slot::new(generation) }
}

fn ready(number: i32) -> Slot {
    slot(1, &[worker(number, 1, READY)])
}

fn failed(deaths: u32) -> Slot {
    let mut backoff = RestartBackoff::default();
    for _ in 0..deaths {
        backoff.delay_after(WorkerDeath::BeforeReady, 0.0);
    }
    Slot { backoff, backoff_until: Some(LATER), ..slot(1, &[]) }
}

fn view(slots: &[Slot]) -> PlanInput<'_> {
    PlanInput {
        desired_state: DesiredState::Running,
        slots,
        generation: 1,
        oldest_generation: 1,
        replace_reason: ExitReason::Reload,
        canary_slot: None,
        ever_ready: true,
        canary_period: Duration::from_secs(2),
        canary_held_until: None,
        drain_timeout: Duration::from_secs(30),
        max_draining_workers: 2,
    }
}

fn actions(slots: &[Slot]) -> Vec<SlotAction> {
    plan(&view(slots), NOW).actions
}

fn pass(slot: usize, number: i32, reason: ExitReason) -> SlotAction {
    SlotAction::Drain { slot, pid: pid(number), kill_at: KILL_AT, order: DrainOrder::HandOver, reason }
}

fn closing(slot: usize, number: i32, order: DrainOrder, reason: ExitReason) -> SlotAction {
    SlotAction::Drain { slot, pid: pid(number), kill_at: KILL_AT, order, reason }
}

#[test]
fn an_empty_slot_is_filled_and_a_ready_one_left_alone() {
    let slots = [ready(1), slot(1, &[])];
    assert_eq!(
        plan(&view(&slots), NOW),
        Plan { actions: vec![SlotAction::Spawn { slot: 1, generation: 1 }], wake_at: None }
    );
}

#[test]
fn a_backed_off_slot_waits_and_the_others_do_not() {
    let slots = [failed(5), slot(1, &[])];
    let spawn = |slot| SlotAction::Spawn { slot, generation: 1 };
    assert_eq!(plan(&view(&slots), NOW), Plan { actions: vec![spawn(1)], wake_at: Some(LATER) });
    assert_eq!(plan(&view(&slots), LATER).actions, [spawn(0), spawn(1)]);
}

#[test]
fn one_slot_that_never_boots_does_not_end_the_fleet() {
    let mut slots = [failed(50), ready(1)];
    assert!(!actions(&slots).contains(&SlotAction::ReportBootFailure));
    slots[1] = slot(1, &[worker(2, 1, BOOTING)]);
    assert!(
        !plan(&PlanInput { ever_ready: false, ..view(&slots) }, NOW)
            .actions
            .contains(&SlotAction::ReportBootFailure)
    );
}

#[test]
fn a_fleet_of_which_no_slot_ever_boots_gives_up() {
    let mut slots = [failed(2), failed(2), failed(2)];
    let plan = |slots: &[Slot]| plan(&PlanInput { ever_ready: false, ..view(slots) }, NOW);
    assert_eq!(plan(&slots).actions, [SlotAction::ReportBootFailure]);
    slots[2] = failed(1);
    assert!(plan(&slots).actions.is_empty());
    // One that still boots for the third time is waited for, and no worker is started meanwhile.
    slots[1].workers = vec![worker(9, 1, BOOTING)];
    slots[2] = Slot { backoff_until: None, ..failed(2) };
    assert_eq!(plan(&slots), Plan { actions: vec![], wake_at: Some(LATER) });
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed() {
    let slots = [slot(1, &[worker(7, 1, BOOTING)])];
    assert_eq!(plan(&view(&slots), NOW), Plan { actions: vec![], wake_at: Some(LATER) });
    let kill = SlotAction::Kill { slot: 0, pid: pid(7), cause: KillReason::BootTimeout };
    assert_eq!(plan(&view(&slots), LATER).actions, [kill]);
}

#[test]
fn a_new_generation_enters_one_slot_after_another() {
    let two = [ready(1), ready(2)];
    let rolling =
        |slots: &[Slot], canary| plan(&PlanInput { generation: 2, canary_slot: canary, ..view(slots) }, NOW);
    assert_eq!(rolling(&two, Some(0)).actions, [SlotAction::Spawn { slot: 0, generation: 2 }]);
    let booting = [slot(1, &[worker(1, 1, READY), worker(3, 2, BOOTING)]), ready(2)];
    assert_eq!(rolling(&booting, Some(0)).actions, []);
    let fresh = WorkerPhase::Ready { since: NOW };
    let watched = [slot(1, &[worker(1, 1, READY), worker(3, 2, fresh)]), ready(2)];
    let probation = Plan { actions: vec![], wake_at: Some(NOW + Duration::from_secs(2)) };
    assert_eq!(rolling(&watched, Some(0)), probation);
    assert_eq!(rolling(&watched, None).actions, [SlotAction::Promote { slot: 0 }]);
    let promoted = [slot(2, &[worker(1, 1, READY), worker(3, 2, fresh)]), ready(2)];
    let expected = [pass(0, 1, ExitReason::Reload), SlotAction::Spawn { slot: 1, generation: 2 }];
    assert_eq!(rolling(&promoted, None).actions, expected);
}

#[test]
fn a_generation_that_is_taken_back_leaves_and_promoted_slots_get_the_old_one() {
    let fresh = WorkerPhase::Ready { since: NOW };
    let canary = [slot(1, &[worker(1, 1, READY), worker(3, 2, fresh)]), ready(2)];
    assert_eq!(actions(&canary), [pass(0, 3, ExitReason::Reload)]);
    let promoted = [slot(2, &[worker(3, 2, READY)]), ready(2)];
    assert_eq!(actions(&promoted), [SlotAction::Spawn { slot: 0, generation: 1 }]);
    let back = [slot(2, &[worker(3, 2, READY), worker(4, 1, fresh)]), ready(2)];
    assert_eq!(actions(&back), [SlotAction::Promote { slot: 0 }]);
}

#[test]
fn a_crash_in_a_rollout_is_answered_with_the_slots_own_generation_if_it_can_be() {
    let slots = [slot(1, &[worker(1, 1, READY), worker(3, 2, BOOTING)]), slot(1, &[])];
    let spawned =
        |oldest| plan(&PlanInput { generation: 2, oldest_generation: oldest, ..view(&slots) }, NOW).actions;
    assert_eq!(spawned(1), [SlotAction::Spawn { slot: 1, generation: 1 }]);
    assert_eq!(spawned(2), [SlotAction::Spawn { slot: 1, generation: 2 }]);
}

#[test]
fn one_worker_at_a_time_is_replaced_of_free_will() {
    let retiring = |number| {
        let retire = Some(ExitReason::Age);
        slot(1, &[WorkerHandle { replace_reason: retire, ..worker(number, 1, READY) }])
    };
    let mut slots = [retiring(1), retiring(2)];
    assert_eq!(actions(&slots), [SlotAction::Spawn { slot: 0, generation: 1 }]);
    slots[0].workers.push(worker(3, 1, BOOTING));
    assert_eq!(actions(&slots), []);
    slots[0].workers[1].phase = READY;
    assert_eq!(actions(&slots), [pass(0, 1, ExitReason::Age), SlotAction::Spawn { slot: 1, generation: 1 }]);
}

const HUNG: WorkerPhase = WorkerPhase::Hung { since: Duration::from_secs(50), kill_at: Some(LATER) };

#[test]
fn a_hung_worker_stays_beside_its_spare_and_drains_when_it_moves_again() {
    let spawn = SlotAction::Spawn { slot: 0, generation: 1 };
    let mut slots = [slot(1, &[worker(1, 1, HUNG)])];
    // No clock kills it: that is judged by the time it could have used.
    assert_eq!(plan(&view(&slots), NOW), Plan { actions: vec![spawn], wake_at: None });
    slots[0].workers.push(worker(2, 1, BOOTING));
    assert_eq!(actions(&slots), []);
    slots[0].workers[1].phase = READY;
    assert_eq!(actions(&slots), [], "it may still move");
    (slots[0].workers[0].phase, slots[0].workers[0].replace_reason) = (READY, Some(ExitReason::Hang));
    assert_eq!(actions(&slots), [pass(0, 1, ExitReason::Hang)]);
    // One that moves before its spare is READY serves until then.
    slots[0].workers[1].phase = BOOTING;
    assert_eq!(actions(&slots), []);
}

#[test]
fn a_slot_without_room_for_a_spare_gives_up_its_oldest_hung_worker_and_only_that() {
    let mut slots = [slot(1, &(1..=8).map(|number| worker(number, 1, HUNG)).collect::<Vec<_>>())];
    let kill = SlotAction::Kill { slot: 0, pid: pid(1), cause: KillReason::Hang };
    assert_eq!(actions(&slots), [kill]);
    slots[0].workers[0].phase = WorkerPhase::Killed { cause: KillReason::Hang, give_up_at: LATER };
    assert_eq!(actions(&slots), [], "its cell is free as soon as it is reaped");
    slots[0].workers.remove(0);
    assert_eq!(actions(&slots), [SlotAction::Spawn { slot: 0, generation: 1 }]);
}

#[test]
fn a_rollout_goes_past_a_hung_worker_and_never_waits_for_it() {
    let slots = [slot(1, &[worker(1, 1, HUNG), worker(2, 1, READY)]), ready(3)];
    let view = PlanInput { generation: 2, ..view(&slots) };
    assert_eq!(plan(&view, NOW).actions, [SlotAction::Spawn { slot: 0, generation: 2 }]);
    // Where it is alone its spare is of the new generation already.
    let slots = [slot(1, &[worker(1, 1, HUNG)]), ready(3)];
    let view = PlanInput { slots: &slots, ..view };
    assert_eq!(plan(&view, NOW).actions, [SlotAction::Spawn { slot: 0, generation: 2 }]);
}

#[test]
fn a_hung_worker_gets_a_stop_order_and_no_more_time_than_it_would_have_had() {
    let slots = [slot(1, &[worker(1, 1, HUNG), worker(2, 1, READY)])];
    let stop = plan(&PlanInput { desired_state: DesiredState::Stopping, ..view(&slots) }, NOW).actions;
    let kill_at = NOW + EXIT_GRACE;
    let (order, reason) = (DrainOrder::Stop, ExitReason::Stop);
    let soon = SlotAction::Drain { slot: 0, pid: pid(1), kill_at, order, reason };
    assert_eq!(stop, [soon, closing(0, 2, DrainOrder::Stop, ExitReason::Stop)]);
    let never = WorkerPhase::Hung { since: NOW, kill_at: None };
    let slots = [slot(1, &[worker(1, 1, never)])];
    let stop = plan(&PlanInput { desired_state: DesiredState::Stopping, ..view(&slots) }, NOW).actions;
    assert_eq!(stop, [closing(0, 1, DrainOrder::Stop, ExitReason::Stop)]);
    let now = plan(&PlanInput { desired_state: DesiredState::Killing, ..view(&slots) }, NOW).actions;
    assert_eq!(now, [SlotAction::Kill { slot: 0, pid: pid(1), cause: KillReason::StopNow }]);
}

#[test]
fn a_slot_that_retires_with_a_hung_worker_is_drained_by_another_and_closed_to_one_that_comes_back() {
    let closing_slot =
        |listening, workers: &[WorkerHandle]| [ready(1), Slot { listening, ..slot(1, workers) }];
    let alone = closing_slot(SlotListening::Retiring, &[worker(2, 1, HUNG)]);
    assert_eq!(actions(&alone), [SlotAction::Spawn { slot: 1, generation: 1 }]);
    let closed = closing_slot(SlotListening::Retired, &[worker(2, 1, HUNG)]);
    assert_eq!(actions(&closed), []);
    let back = closing_slot(SlotListening::Retired, &[worker(2, 1, READY)]);
    assert_eq!(actions(&back), [closing(1, 2, DrainOrder::Retire, ExitReason::Scale)]);
}

#[test]
fn leaving_workers_are_bounded_the_oldest_is_cut() {
    let leaving = |number, cut| {
        let stage = WorkerPhase::Draining {
            kill_at: KILL_AT,
            reason: ExitReason::Reload,
            order: DrainOrder::HandOver,
            aborted: cut,
        };
        worker(number, 1, stage)
    };
    let full = |cut| [slot(1, &[leaving(1, cut), leaving(2, false), leaving(3, false), worker(4, 1, READY)])];
    assert_eq!(
        actions(&full(false)),
        [SlotAction::Abort { slot: 0, pid: pid(1), kill_at: NOW + EXIT_GRACE }]
    );
    assert_eq!(actions(&full(true)), []);
}

#[test]
fn a_retiring_slot_is_attended_until_its_listeners_are_closed() {
    let retiring = |listening, workers: &[WorkerHandle]| [ready(1), Slot { listening, ..slot(1, workers) }];
    let two = retiring(SlotListening::Retiring, &[worker(2, 1, READY)]);
    assert_eq!(actions(&two), [closing(1, 2, DrainOrder::Retire, ExitReason::Scale)]);
    let deserted = retiring(SlotListening::Retiring, &[]);
    assert_eq!(actions(&deserted), [SlotAction::Spawn { slot: 1, generation: 1 }]);
    // A first early death may be bad luck; the connections in the queue are worth another attempt.
    let unlucky = [ready(1), Slot { listening: SlotListening::Retiring, backoff_until: None, ..failed(1) }];
    assert_eq!(actions(&unlucky), [SlotAction::Spawn { slot: 1, generation: 1 }]);
    let broken = [ready(1), Slot { listening: SlotListening::Retiring, ..failed(2) }];
    assert_eq!(actions(&broken), [SlotAction::CloseListeners { slot: 1 }]);
    let stage = WorkerPhase::Draining {
        kill_at: KILL_AT,
        reason: ExitReason::Scale,
        order: DrainOrder::Retire,
        aborted: false,
    };
    let finishing = retiring(SlotListening::Retired, &[worker(2, 1, stage)]);
    assert_eq!(actions(&finishing), []);
    assert_eq!(actions(&retiring(SlotListening::Retired, &[])), [SlotAction::Remove { slot: 1 }]);
}

#[test]
fn a_worker_of_a_slots_former_life_does_not_attend_its_queue() {
    let stage = WorkerPhase::Draining {
        kill_at: KILL_AT,
        reason: ExitReason::Scale,
        order: DrainOrder::Retire,
        aborted: false,
    };
    let mut former = worker(2, 1, stage);
    former.cancel_slot_retirement();
    assert!(former.is_draining() && !former.is_retiring_slot());
    let again = [ready(1), Slot { listening: SlotListening::Retiring, ..slot(1, &[former]) }];
    assert_eq!(actions(&again), [SlotAction::Spawn { slot: 1, generation: 1 }]);
}

#[test]
fn stopping_drains_then_kills_then_finishes() {
    let stop =
        |slots: &[Slot], now| plan(&PlanInput { desired_state: DesiredState::Stopping, ..view(slots) }, now);
    let slots = [ready(1), failed(3)];
    assert_eq!(stop(&slots, NOW).actions, [closing(0, 1, DrainOrder::Stop, ExitReason::Stop)]);
    let stage = WorkerPhase::Draining {
        kill_at: KILL_AT,
        reason: ExitReason::Stop,
        order: DrainOrder::Stop,
        aborted: false,
    };
    let draining = [slot(1, &[worker(1, 1, stage)])];
    assert_eq!(stop(&draining, LATER), Plan { actions: vec![], wake_at: Some(KILL_AT) });
    let late = SlotAction::Kill { slot: 0, pid: pid(1), cause: KillReason::DrainTimeout };
    assert_eq!(stop(&draining, KILL_AT).actions, [late]);
    let stage = WorkerPhase::Killed { cause: KillReason::DrainTimeout, give_up_at: LATER };
    let killed = [slot(1, &[worker(1, 1, stage)])];
    assert!(stop(&killed, NOW).actions.is_empty());
    assert_eq!(stop(&killed, LATER).actions, [SlotAction::Finish]);
    assert_eq!(stop(&[slot(1, &[])], NOW).actions, [SlotAction::Finish]);
}

#[test]
fn stopping_at_once_kills_whatever_lives() {
    let slots = [ready(1), slot(1, &[worker(2, 1, BOOTING)]), slot(1, &[])];
    let kill = |slot, number| SlotAction::Kill { slot, pid: pid(number), cause: KillReason::StopNow };
    let plan = plan(&PlanInput { desired_state: DesiredState::Killing, ..view(&slots) }, NOW);
    assert_eq!(plan.actions, [kill(0, 1), kill(1, 2)]);
}

#[test]
fn a_canary_whose_checks_are_not_known_is_held_besides() {
    let slots = [slot(1, &[worker(1, 1, READY), worker(2, 2, READY)])];
    let plan = |held| {
        let view = PlanInput { generation: 2, canary_slot: Some(0), canary_held_until: held, ..view(&slots) };
        plan(&view, NOW)
    };
    assert_eq!(plan(None).actions, [SlotAction::Promote { slot: 0 }]);
    assert_eq!((plan(Some(LATER)).actions, plan(Some(LATER)).wake_at), (Vec::new(), Some(LATER)));
    assert_eq!(plan(Some(NOW)).actions, [SlotAction::Promote { slot: 0 }]);
}
