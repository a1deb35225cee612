//! What becomes of slots, without a process.

use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::config::settings::{ListenAddress, SocketFileConfig, SteeringMode};
use crate::control::event_kind::EventKind;
use crate::listener::systemd::ActivatedSockets;
use crate::listener::{ListenRequest, open_listeners};
use crate::scoreboard::cell::{CellState, DrainOrder};
use crate::scoreboard::{ExitReason, Scoreboard};
use crate::supervisor::deployment::rollout::{DeploymentKind, Rollout};
use crate::supervisor::effects::Effect;
use crate::supervisor::monitor::hang::{Stall, StallKind};
use crate::supervisor::settings::SupervisorSettings;
use crate::supervisor::slots::checks::REPORT_TIMEOUT;
use crate::supervisor::slots::context::SlotContext;
use crate::supervisor::slots::exits::ExitReport;
use crate::supervisor::slots::plan::{DesiredState, KillReason, SlotAction};
use crate::supervisor::slots::slot::{SlotListening, WorkerHandle, WorkerPhase};
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::supervisor::slots::table::SlotTable;
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::signal::Signal;

const NOW: Duration = Duration::from_secs(100);
const CANARY_PERIOD: Duration = Duration::from_secs(1);

/// Two slots of generation 1, and where they are written down.
fn table() -> (SlotTable, Scoreboard) {
    let public = [ListenAddress::Internet("127.0.0.1:0".parse().unwrap())];
    let socket_file = SocketFileConfig { mode: 0o660, owner: None, group: None };
    let request = ListenRequest { public: &public, admin: &[], socket_file: &socket_file };
    let (addresses, listeners) = open_listeners(request, &ActivatedSockets::default(), 2).unwrap();
    let scoreboard = Scoreboard::create(NonZeroUsize::new(2).unwrap(), 1, 0).unwrap();
    scoreboard.set_slots(2);
    (SlotTable::new(addresses, listeners, 1, SteeringMode::Kernel), scoreboard)
}

fn running(scoreboard: &Scoreboard) -> SlotContext<'_> {
    SlotContext {
        scoreboard,
        settings: SupervisorSettings::for_tests(CANARY_PERIOD),
        desired_state: DesiredState::Running,
        generation: 1,
        rolling_out: None,
        rolling_back_to: None,
        now: NOW,
    }
}

fn rolling_out(scoreboard: &Scoreboard) -> SlotContext<'_> {
    let rollout = Rollout { kind: DeploymentKind::Reload, from: 1, to: 2, started: NOW };
    SlotContext { generation: 2, rolling_out: Some(rollout), ..running(scoreboard) }
}

/// A worker in the first slot.
fn with_worker(table: &mut SlotTable, generation: u64, phase: WorkerPhase) -> (usize, Pid) {
    let pid = Pid::from_raw(10 + i32::try_from(table.entries[0].workers.len()).unwrap());
    let cell = table.entries[0].free_cell().unwrap();
    let worker = WorkerHandle { pid, generation, cell, phase, started: NOW, replace_reason: None };
    table.entries[0].workers.push(worker);
    (0, pid)
}

fn says(table: &mut SlotTable, (_, pid): (usize, Pid), text: &str) {
    table.status_pipes.insert(pid, StatusPipe::restore(None, text.into()));
}

fn killed() -> ExitReport {
    ExitReport { exit: ExitStatus::Signal(Signal::SIGSEGV), boot_failure: None, out_of_memory: false }
}

/// What the effects are, for short: the kinds of events, and everything else by its name.
fn names(effects: &[Effect]) -> Vec<String> {
    let name = |effect: &Effect| match effect {
        Effect::Record(event) => event.kind.clone().into_owned(),
        other => format!("{other:?}").split(['(', ' ']).next().unwrap().to_owned(),
    };
    effects.iter().map(name).collect()
}

#[test]
fn a_worker_that_says_so_is_ready_once() {
    let (mut table, scoreboard) = table();
    let worker = with_worker(&mut table, 1, WorkerPhase::Booting { deadline: NOW });
    says(&mut table, worker, "ready\nready\nnonsense\n");
    let effects = table.read_status_pipes(&running(&scoreboard));
    assert_eq!(names(&effects), [EventKind::WorkerReady.name()]);
    assert!(table.ever_ready && table.entries[0].was_ready);
    assert_eq!(table.entries[0].workers[0].phase, WorkerPhase::Ready { since: NOW });
}

#[test]
fn a_death_before_ready_fails_the_command_that_waits_and_the_generation_on_its_way() {
    let (mut table, scoreboard) = table();
    let old = with_worker(&mut table, 1, WorkerPhase::Ready { since: Duration::ZERO });
    let new = with_worker(&mut table, 2, WorkerPhase::Booting { deadline: NOW });
    table.entries[0].worker_mut(old.1).unwrap().replace_reason = Some(ExitReason::Operator);
    says(&mut table, new, "failed no database\n");
    let context = rolling_out(&scoreboard);
    let boot_failure = table.receive_messages(new, &context, &mut Vec::new());
    let report = ExitReport { boot_failure, ..killed() };
    let effects = table.on_exit(new, report, &context);
    assert_eq!(names(&effects), [EventKind::WorkerCrashed.name(), "FailReplacement", "RollBack"]);
    assert!(format!("{effects:?}").contains("the new worker in slot 0 failed: no database"), "{effects:?}");
    assert_eq!(table.last_failure, "no database");
    let slot = &table.entries[0];
    assert_eq!(slot.workers.len(), 1, "the old one stays");
    assert_eq!((slot.workers[0].replace_reason, slot.backoff_until), (None, None));
}

#[test]
fn a_crash_outside_of_a_rollout_condemns_nothing_and_a_second_early_one_waits() {
    let (mut table, scoreboard) = table();
    for expected_wait in [false, true] {
        let worker = with_worker(&mut table, 1, WorkerPhase::Ready { since: NOW });
        let effects = table.on_exit(worker, killed(), &running(&scoreboard));
        assert_eq!(names(&effects), [EventKind::WorkerCrashed.name()]);
        assert_eq!(table.entries[0].backoff_until.is_some(), expected_wait);
    }
    assert_eq!(scoreboard.snapshot().slots[0].crashes, 2);
    let unknown = (0, Pid::from_raw(99));
    assert_eq!(table.on_exit(unknown, killed(), &running(&scoreboard)), []);
}

#[test]
fn a_rollback_whose_worker_fails_too_says_so() {
    let (mut table, scoreboard) = table();
    let worker = with_worker(&mut table, 1, WorkerPhase::Booting { deadline: NOW });
    let context = SlotContext { rolling_back_to: Some(1), ..running(&scoreboard) };
    let effects = table.on_exit(worker, killed(), &context);
    assert_eq!(names(&effects), [EventKind::WorkerCrashed.name(), "FailReplacement", "RollbackFailed"]);
}

#[test]
fn the_last_worker_of_a_stopping_fleet_closes_its_slot() {
    let (mut table, scoreboard) = table();
    let phase = WorkerPhase::Draining {
        kill_at: NOW,
        reason: ExitReason::Operator,
        order: DrainOrder::Stop,
        aborted: false,
    };
    let worker = with_worker(&mut table, 1, phase);
    let report = ExitReport { exit: ExitStatus::Code(0), ..killed() };
    let context = SlotContext { desired_state: DesiredState::Stopping, ..running(&scoreboard) };
    let effects = table.on_exit(worker, report, &context);
    assert_eq!(names(&effects), [EventKind::WorkerExited.name(), EventKind::SlotRetired.name()]);
    assert_eq!(table.entries[0].listening, SlotListening::Retired);
    assert_eq!(names(&table.close_empty_slots()), [EventKind::SlotRetired.name()], "the other slot");
    assert_eq!(table.close_empty_slots(), [], "once is enough");
}

#[test]
fn background_work_that_panics_condemns_a_young_generation() {
    let (mut table, scoreboard) = table();
    let worker = with_worker(&mut table, 2, WorkerPhase::Ready { since: NOW });
    says(&mut table, worker, "failing\n");
    let effects = table.read_status_pipes(&rolling_out(&scoreboard));
    assert_eq!(names(&effects), [EventKind::WorkerDraining.name(), "RollBack"]);
    assert!(table.entries[0].workers[0].is_draining());
}

#[test]
fn a_queue_that_ran_dry_closes_the_slot_only_if_it_retires() {
    let (mut table, scoreboard) = table();
    let phase = WorkerPhase::Draining {
        kill_at: NOW,
        reason: ExitReason::Operator,
        order: DrainOrder::Retire,
        aborted: false,
    };
    let worker = with_worker(&mut table, 1, phase);
    says(&mut table, worker, "closed\n");
    assert_eq!(table.read_status_pipes(&running(&scoreboard)), [], "the slot was opened again");
    table.entries[0].listening = SlotListening::Retiring;
    says(&mut table, worker, "closed\n");
    let effects = table.read_status_pipes(&running(&scoreboard));
    assert_eq!(names(&effects), [EventKind::SlotRetired.name()]);
}

#[test]
fn an_order_is_a_phase_and_a_signal() {
    let (mut table, scoreboard) = table();
    let (slot, pid) = with_worker(&mut table, 1, WorkerPhase::Ready { since: NOW });
    let context = running(&scoreboard);
    let drain = SlotAction::Drain {
        slot,
        pid,
        kill_at: NOW + CANARY_PERIOD,
        order: DrainOrder::HandOver,
        reason: ExitReason::Reload,
    };
    let effects = table.apply(drain, &context);
    assert_eq!(effects[0], Effect::Signal(pid, Signal::SIGTERM));
    assert!(table.entries[0].workers[0].is_draining());
    let effects = table.apply(SlotAction::Abort { slot, pid, kill_at: NOW }, &context);
    assert_eq!(names(&effects), ["Signal", EventKind::WorkerAborted.name()]);
    let effects = table.apply(SlotAction::Kill { slot, pid, cause: KillReason::DrainTimeout }, &context);
    assert_eq!(effects[0], Effect::Signal(pid, Signal::SIGKILL));
    assert_eq!(table.killed, 1);
    assert_eq!(scoreboard.cell(0, 0).snapshot().map(|cell| cell.state), Some(CellState::Killed));
}

#[test]
fn a_fork_that_fails_ends_a_rollout_and_has_the_slot_wait() {
    let (mut table, scoreboard) = table();
    let refused = || Err(io::Error::from(io::ErrorKind::WouldBlock));
    assert_eq!(table.on_spawned((0, 0), 1, refused(), &running(&scoreboard)), []);
    assert!(table.entries[0].backoff_until.is_some_and(|until| until > NOW));
    let effects = table.on_spawned((0, 0), 2, refused(), &rolling_out(&scoreboard));
    assert_eq!(names(&effects), ["RollBack"]);
    assert!(table.last_failure.starts_with("cannot fork"));
}

#[test]
fn a_worker_that_hangs_and_moves_again_hands_over_to_its_spare() {
    let (mut table, scoreboard) = table();
    let (slot, pid) = with_worker(&mut table, 1, WorkerPhase::Ready { since: NOW });
    scoreboard.cell(0, 0).reset(1, 0);
    scoreboard.cell(0, 0).set_pid(10);
    let context = running(&scoreboard);
    let [seen] = <[_; 1]>::try_from(table.serving_workers(&scoreboard)).unwrap();
    let stall = Stall { silent: CANARY_PERIOD, kind: StallKind::Blocked, queued_connections: 0 };
    let effects = table.on_hang(&seen, stall, &context);
    assert_eq!(names(&effects), [EventKind::WorkerHung.name(), "RequestBacktrace"]);
    assert!(table.any_hung() && scoreboard.cell(0, 0).snapshot().unwrap().state == CellState::Hung);
    with_worker(&mut table, 1, WorkerPhase::Ready { since: NOW });
    assert!(table.on_recovery(&seen, &context).is_some());
    let worker = table.entries[slot].worker_mut(pid).unwrap();
    assert_eq!((worker.is_ready(), worker.replace_reason), (true, Some(ExitReason::Hang)));
}

#[test]
fn a_stopped_worker_of_a_young_generation_fails_it_without_a_backtrace() {
    let (mut table, scoreboard) = table();
    with_worker(&mut table, 2, WorkerPhase::Ready { since: Duration::ZERO });
    scoreboard.cell(0, 0).reset(2, 0);
    scoreboard.cell(0, 0).set_pid(10);
    let [seen] = <[_; 1]>::try_from(table.serving_workers(&scoreboard)).unwrap();
    let stall = Stall { silent: CANARY_PERIOD, kind: StallKind::Stopped, queued_connections: 0 };
    let effects = table.on_hang(&seen, stall, &rolling_out(&scoreboard));
    assert_eq!(names(&effects), [EventKind::WorkerHung.name(), "RollBack"]);
}

#[test]
fn a_first_worker_whose_check_fails_while_the_old_one_passes_it_ends_the_rollout() {
    let (mut table, scoreboard) = table();
    let old = with_worker(&mut table, 1, WorkerPhase::Ready { since: Duration::ZERO });
    let new = with_worker(&mut table, 2, WorkerPhase::Ready { since: NOW });
    says(&mut table, new, "checks\n");
    table.read_status_pipes(&rolling_out(&scoreboard));
    let held = table.judge_checks(&rolling_out(&scoreboard));
    assert_eq!(held, (Some(NOW + REPORT_TIMEOUT), None));
    let now_ms = u64::try_from(NOW.as_millis()).unwrap();
    assert!((0..2).all(|cell| scoreboard.cell(0, cell).are_checks_requested(now_ms)), "both are asked");
    let failure = r#"check {"name":"mast","failure":"check \"mast\" fails: it sways"}"#;
    table.status_pipes.get_mut(&new.1).unwrap().text = format!("{failure}\nchecked\n");
    table.read_status_pipes(&rolling_out(&scoreboard));
    assert!(table.judge_checks(&rolling_out(&scoreboard)).0.is_some(), "the old one is waited for");
    says(&mut table, old, "check {\"name\":\"mast\"}\nchecked\n");
    let later = SlotContext { now: NOW + CANARY_PERIOD, ..rolling_out(&scoreboard) };
    table.read_status_pipes(&later);
    assert!(table.judge_checks(&later).0.is_some(), "a second run of the new one is waited for");
    table.status_pipes.get_mut(&new.1).unwrap().text = format!("{failure}\nchecked\n");
    let later = SlotContext { now: NOW + 2 * CANARY_PERIOD, ..rolling_out(&scoreboard) };
    table.read_status_pipes(&later);
    let reason = "the new worker in slot 0 failed: check \"mast\" fails: it sways; the old worker passes it";
    assert_eq!(table.judge_checks(&later), (None, Some(Effect::RollBack(reason.into()))));
    assert_eq!(table.judge_checks(&running(&scoreboard)), (None, None), "no rollout, no checks");
}
