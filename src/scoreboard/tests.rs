//! The table over the lives of its workers and programs.

use std::num::NonZeroUsize;
use std::sync::atomic::Ordering::Relaxed;

use super::cell::CellState;
use super::exit_reason::ExitReason;
use super::layout::{HeadLayout, LAYOUT_VERSION};
use super::row::SlotState;
use super::table::Scoreboard;
use crate::sys::shared_memory::SharedMapping;

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
    let taken = Scoreboard::adopt(table.file().unwrap().try_clone().unwrap()).unwrap();
    assert_eq!((taken.capacity(), taken.slots()), (8, 3));
    assert_eq!(taken.row(2).snapshot(2).crashes, 1);
    let memory = SharedMapping::adopt(table.file().unwrap().try_clone().unwrap()).unwrap();
    memory.memory.get::<HeadLayout>(0).version.store(LAYOUT_VERSION + 1, Relaxed);
    assert!(Scoreboard::adopt(table.file().unwrap().try_clone().unwrap()).is_err());
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

#[test]
fn a_peer_is_reported_once_by_its_network() {
    let table = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
    assert_eq!(table.untrusted_proxy(), None);
    for (peer, expected) in
        [("10.0.0.7", "10.0.0.7"), ("fd00:1:2:3::4", "fd00:1:2:3::"), ("::ffff:10.0.0.7", "10.0.0.7")]
    {
        let peer = peer.parse().unwrap();
        assert_eq!((table.record_untrusted_proxy(peer), table.record_untrusted_proxy(peer)), (true, false));
        assert_eq!(table.untrusted_proxy(), Some(expected.parse().unwrap()));
    }
    table.set_redis_memory_permille(801);
    assert_eq!(table.redis_memory_permille(), 801);
}

#[test]
fn a_journal_passes_on_when_its_owner_is_gone_and_not_before() {
    let another_table = table;
    let table = table();
    table.cell(1, 0).reset(1, 0);
    table.cell(1, 0).set_pid(10);
    table.cell(1, 1).reset(1, 0);
    let (old, new) = (table.journal_owner(1, 0), table.journal_owner(1, 1));
    assert!(table.claim_journal(1, 0, old));
    table.journal(1, 0).add("n", 3, 4).unwrap();
    assert!(!table.claim_journal(1, 0, new) && !table.claim_journal(1, 0, old), "a journal has one owner");
    table.cell(1, 0).clear();
    assert!(table.claim_journal(1, 0, new) && !table.claim_journal(1, 0, new));
    // The same cell again, another life.
    table.cell(1, 0).reset(1, 0);
    table.cell(1, 0).set_pid(12);
    assert!(!table.claim_journal(1, 0, table.journal_owner(1, 0)));
    let slot = &table.snapshot().slots[1];
    assert_eq!((slot.pending_increments, slot.pending_since_ms), (3, Some(4)));
    assert_ne!(table.counter_epoch(), another_table().counter_epoch());
}
