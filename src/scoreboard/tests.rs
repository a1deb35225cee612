//! The table over the lives of its workers and programs.

use super::cell::CellState;
use super::row::SlotState;
use super::*;

fn table() -> Scoreboard {
    Scoreboard::create(NonZeroUsize::new(8).unwrap(), 1, 2).unwrap()
}

#[test]
fn busy_time_adds_up_over_workers_and_never_goes_back() {
    let table = table();
    for (pid, busy) in [(10, [100, 250]), (11, [70, 70])] {
        table.cell(0, 0).reset(1, 5);
        table.cell(0, 0).set_pid(pid);
        for busy_us in busy {
            table.cell(0, 0).record_heartbeat(1, 0, busy_us * 2, busy_us);
        }
        table.cell(0, 0).clear();
    }
    let slot = &table.snapshot().slots[0];
    assert_eq!((slot.busy_us, slot.cpu_us), (320, 640));
}

#[test]
fn totals_survive_the_worker_that_wrote_them() {
    let table = table();
    table.set_slots(2);
    let cell = table.cell(1, 0);
    cell.reset(1, 1000);
    cell.set_pid(10);
    cell.count_request_started();
    cell.count_request_finished(200, 12, 1500);
    cell.count_request_started();
    cell.clear();
    let cell = table.cell(1, 1);
    cell.reset(1, 2000);
    cell.set_pid(11);
    table.row(1).set_state(SlotState::Booting, Some(1));
    cell.count_request_started();
    cell.count_request_finished(503, 1, 100);
    let slot = &table.snapshot().slots[1];
    assert_eq!((slot.pid(), slot.sum(|worker| worker.in_flight), slot.starts), (11, 0, 2));
    assert_eq!((slot.responses[2], slot.responses[5], slot.requests()), (1, 1, 2));
}

#[test]
fn two_workers_of_a_slot_do_not_count_each_others_connections() {
    let table = table();
    let (old, new) = (table.cell(0, 0), table.cell(0, 1));
    old.reset(1, 1000);
    old.count_connection_opened();
    new.reset(2, 2000);
    new.count_connection_opened();
    old.count_connection_closed();
    new.set_state(CellState::Ready);
    table.row(0).set_state(SlotState::Ready, Some(1));
    let slot = table.row(0).snapshot(0);
    let seen: Vec<_> = slot.workers.iter().map(|worker| (worker.generation, worker.connections)).collect();
    assert_eq!(seen, [(1, 0), (2, 1)]);
    assert_eq!((slot.generation(), slot.accepted), (2, 2));
}

#[test]
fn a_table_taken_over_is_the_same_table() {
    let table = table();
    table.set_slots(3);
    table.row(2).record_exit(ExitReason::Hang);
    let taken = Scoreboard::adopt(table.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!((taken.capacity(), taken.slots()), (8, 3));
    assert_eq!(taken.row(2).snapshot(2).crashes, 1);
    table.words[HEAD_VERSION].store(LAYOUT_VERSION + 1, Relaxed);
    assert!(Scoreboard::adopt(table.as_fd().try_clone_to_owned().unwrap()).is_err());
}

#[test]
fn a_retired_slot_stays_in_the_totals() {
    let table = table();
    table.set_slots(3);
    let cell = table.cell(2, 0);
    cell.reset(1, 0);
    cell.set_pid(10);
    cell.count_request_finished(200, 0, 1);
    table.set_slots(1);
    assert_eq!(table.snapshot().requests(), 1);
}

#[test]
fn every_end_is_counted_under_its_reason() {
    let table = table();
    table.row(0).record_exit(ExitReason::Reload);
    table.row(0).record_exit(ExitReason::Hang);
    let slot = table.row(0).snapshot(0);
    assert_eq!((slot.crashes, slot.last_exit_reason), (1, Some(ExitReason::Hang)));
    assert_eq!((slot.exits[ExitReason::Reload as usize], slot.exits.iter().sum::<u64>()), (1, 2));
}

#[test]
fn transfers_do_not_change_the_number_of_instances() {
    let table = table();
    table.set_instance_count(3);
    for _ in 0..5 {
        table.start_transfer();
        table.finish_transfer();
    }
    assert_eq!((table.instance_count(), table.pending_transfers()), (3, (0, 5)));
    table.set_instance_count(2);
    assert_eq!(table.pending_transfers(), (0, 5));
}
