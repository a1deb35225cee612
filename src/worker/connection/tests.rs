//! Deadlines, commands and the table, tick by tick.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use super::guard::ConnectionGuard;
use super::record::{ConnectionCommand, SMALL_HEADER, UpgradedSide};
use super::state::TICK;
use super::table::{ConnectionLimits, ConnectionTable};
use crate::scoreboard::Scoreboard;
use crate::scoreboard::refusal_reason::ConnectionCloseReason;

fn connections() -> Arc<ConnectionTable> {
    let scoreboard = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
    scoreboard.cell(0, 0).reset(1, 0);
    let limits =
        ConnectionLimits { header: TICK * 3, idle: TICK * 10, header_memory: 100_000, per_client: 3 };
    Arc::new(ConnectionTable::new(limits, Arc::new(scoreboard), 0, 0))
}

fn open(all: &Arc<ConnectionTable>) -> ConnectionGuard {
    ConnectionGuard::open(all, None).unwrap()
}

fn sweep(all: &ConnectionTable, times: usize) {
    (0..times).for_each(|_| all.sweep());
}

/// The command in force, as its number.
fn command(entry: &ConnectionGuard) -> u8 {
    use ConnectionCommand::{Abort, CloseIfExpired, CloseWhenIdle, Continue, RefuseHeader};
    let all = [Continue, CloseIfExpired, RefuseHeader, CloseWhenIdle, Abort];
    all.into_iter().find(|one| entry.connection.is_commanded(*one)).unwrap() as u8
}

#[test]
fn a_header_that_never_ends_expires_and_a_long_request_does_not() {
    let all = connections();
    let (slow, busy, waiting) = (open(&all), open(&all), open(&all));
    slow.start_header_timeout();
    busy.start_header_timeout();
    busy.request_started(false);
    sweep(&all, 20);
    assert_eq!(command(&slow), ConnectionCommand::CloseIfExpired as u8);
    assert_eq!(command(&busy), ConnectionCommand::Continue as u8);
    assert_eq!(command(&waiting), ConnectionCommand::Continue as u8);
    busy.response_taken();
    sweep(&all, 10);
    assert_eq!(command(&busy), ConnectionCommand::Continue as u8);
    all.sweep();
    assert_eq!(command(&busy), ConnectionCommand::CloseIfExpired as u8);
}

#[test]
fn a_request_that_comes_with_the_order_to_expire_is_served() {
    let all = connections();
    let entry = open(&all);
    entry.start_header_timeout();
    sweep(&all, 5);
    assert_eq!(command(&entry), ConnectionCommand::CloseIfExpired as u8);
    entry.request_started(false);
    assert!(entry.check_expired().is_none());
    assert_eq!(command(&entry), ConnectionCommand::Continue as u8);
}

#[test]
fn a_client_that_stops_reading_expires_even_with_a_request_under_way() {
    let all = connections();
    let entry = open(&all);
    entry.start_header_timeout();
    entry.request_started(false);
    entry.send_stalled();
    sweep(&all, 8);
    entry.record_sent(1000);
    entry.send_stalled();
    sweep(&all, 10);
    assert_eq!(command(&entry), ConnectionCommand::Continue as u8);
    all.sweep();
    assert_eq!(command(&entry), ConnectionCommand::CloseIfExpired as u8);
}

#[test]
fn half_a_header_is_waited_for_as_long_as_a_header_may_take() {
    let all = connections();
    let entry = open(&all);
    entry.start_header_timeout();
    assert!(!entry.is_reading_header());
    entry.record_read(1);
    assert!(entry.is_reading_header());
    sweep(&all, 5);
    assert!(!entry.is_reading_header());
}

#[test]
fn no_frame_keeps_an_idle_http2_connection_alive() {
    let all = connections();
    let entry = open(&all);
    entry.start_header_timeout();
    entry.request_started(true);
    entry.response_taken();
    for _ in 0..11 {
        all.sweep();
        // A ping and its answer.
        entry.record_read(17);
        entry.record_sent(17);
    }
    assert_eq!(entry.check_expired(), Some(ConnectionCloseReason::Idle));
}

#[test]
fn a_byte_now_and_then_excuses_no_slow_reader() {
    let all = connections();
    let entry = open(&all);
    entry.start_header_timeout();
    entry.request_started(false);
    for _ in 0..4 {
        entry.send_stalled();
        sweep(&all, 3);
        entry.record_sent(1);
    }
    assert_eq!(entry.check_expired(), None, "nothing is waited for");
    entry.send_stalled();
    assert_eq!(entry.check_expired(), Some(ConnectionCloseReason::SlowReader));
    // One that takes much in between is only slow.
    let entry = open(&all);
    entry.start_header_timeout();
    entry.request_started(false);
    for _ in 0..10 {
        entry.send_stalled();
        sweep(&all, 3);
        entry.record_sent(1000);
    }
    entry.send_stalled();
    assert_eq!(entry.check_expired(), None);
}

#[test]
fn a_request_that_waits_for_its_turn_is_not_idle() {
    let all = connections();
    let entry = open(&all);
    entry.start_header_timeout();
    entry.request_started(false);
    entry.response_taken();
    entry.enter_queue();
    sweep(&all, 100);
    assert_eq!(entry.check_expired(), None);
    assert!(!all.evict());
    entry.leave_queue();
    assert_eq!(entry.check_expired(), None);
    sweep(&all, 11);
    assert_eq!(entry.check_expired(), Some(ConnectionCloseReason::Idle));
}

/// A connection that answered its first request.
fn idle(all: &Arc<ConnectionTable>, client: Option<IpAddr>) -> ConnectionGuard {
    let entry = ConnectionGuard::open(all, client).unwrap();
    entry.start_header_timeout();
    entry.request_started(false);
    entry.response_taken();
    all.sweep();
    entry
}

#[test]
fn places_are_taken_from_those_that_have_been_idle_for_longest() {
    let all = connections();
    let entries: Vec<_> = (0..4).map(|_| idle(&all, None)).collect();
    entries[0].request_started(false);
    entries[1].record_read(1);
    assert!(all.evict() && all.evict());
    assert!(!all.evict(), "what serves and what has begun is left alone");
    let orders: Vec<_> = entries.iter().map(command).collect();
    let (served, finishing) = (ConnectionCommand::Continue as u8, ConnectionCommand::CloseWhenIdle as u8);
    assert_eq!(orders, [served, served, finishing, finishing]);
    // What is idle later is found in the next tick.
    entries[0].response_taken();
    assert!(!all.evict());
    all.sweep();
    assert!(all.evict());
}

#[test]
fn a_client_has_its_share_and_makes_room_for_itself() {
    let all = connections();
    let (client, other) = (Some(IpAddr::from([192, 0, 2, 1])), Some(IpAddr::from([192, 0, 2, 2])));
    let strangers = idle(&all, other);
    let mut own: Vec<_> = (0..3).map(|_| idle(&all, client)).collect();
    own[0].request_started(false);
    own.extend(ConnectionGuard::open(&all, client));
    assert_eq!((own.len(), command(&own[1])), (4, ConnectionCommand::CloseWhenIdle as u8));
    own.extend(ConnectionGuard::open(&all, client));
    assert_eq!((own.len(), command(&own[2])), (5, ConnectionCommand::CloseWhenIdle as u8));
    assert!(ConnectionGuard::open(&all, client).is_none(), "nothing of its own is idle");
    assert_eq!(command(&strangers), ConnectionCommand::Continue as u8);
    assert!(ConnectionGuard::open(&all, other).is_some());
    own.clear();
    assert!(ConnectionGuard::open(&all, client).is_some());
}

#[test]
fn large_unfinished_headers_have_a_bound_together_and_the_largest_go() {
    let all = connections();
    let small: Vec<_> = (0..100).map(|_| open(&all)).collect();
    for entry in &small {
        entry.start_header_timeout();
        entry.record_read(SMALL_HEADER);
    }
    let large: Vec<_> = [20_000, 30_000, 60_000].into_iter().map(|bytes| (open(&all), bytes)).collect();
    for (entry, bytes) in &large {
        entry.start_header_timeout();
        entry.record_read(*bytes);
    }
    assert!(large.iter().all(|(entry, _)| command(entry) == ConnectionCommand::Continue as u8));
    small[0].record_read(20_000);
    assert!(large[2].0.connection.is_header_refused());
    assert!(!large[1].0.connection.is_header_refused());
    // It was complete before the command was read: nothing is refused.
    large[2].0.request_started(false);
    assert!(!large[2].0.connection.is_header_refused());
    drop(large);
    drop(small);
    let entry = open(&all);
    entry.start_header_timeout();
    entry.record_read(SMALL_HEADER + 100_000);
    assert_eq!(command(&entry), ConnectionCommand::Continue as u8, "what ended is not counted");
}

#[test]
fn an_upgraded_connection_may_be_silent_but_not_deaf() {
    let all = connections();
    let entry = open(&all);
    entry.start_header_timeout();
    entry.request_started(false);
    entry.set_upgraded();
    entry.response_taken();
    sweep(&all, 100);
    entry.record_read(1);
    sweep(&all, 100);
    assert!(!entry.must_close(UpgradedSide::Reader, Waker::noop()));
    entry.send_stalled();
    sweep(&all, 11);
    assert!(entry.must_close(UpgradedSide::Writer, Waker::noop()));
    entry.record_sent(1);
    assert!(!entry.must_close(UpgradedSide::Writer, Waker::noop()));
    assert_eq!(command(&entry), ConnectionCommand::Continue as u8);
}

#[test]
fn an_upgraded_connection_receives_commands_and_finishes_by_itself() {
    struct Woken(AtomicU8);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    let all = connections();
    let entry = open(&all);
    entry.start_header_timeout();
    entry.request_started(false);
    entry.set_upgraded();
    entry.response_taken();
    let woken = Arc::new(Woken(AtomicU8::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    assert!(!entry.must_close(UpgradedSide::Reader, &waker));
    all.send_all(ConnectionCommand::CloseWhenIdle);
    assert_eq!(woken.0.load(Relaxed), 1);
    assert!(!entry.must_close(UpgradedSide::Reader, &waker));
    all.abort_all();
    assert_eq!(woken.0.load(Relaxed), 2);
    assert!(entry.must_close(UpgradedSide::Reader, &waker));
}

#[test]
fn a_guard_leaves_every_index_with_its_drop() {
    let all = connections();
    let entry = open(&all);
    assert_eq!((all.len(), all.cell().snapshot().unwrap().connections), (1, 1));
    drop(entry);
    assert_eq!((all.len(), all.cell().snapshot().unwrap().connections), (0, 0));
}

#[test]
fn an_http2_client_that_gives_no_room_expires_whatever_else_it_sends() {
    let all = connections();
    let entry = open(&all);
    entry.start_header_timeout();
    (0..2).for_each(|_| entry.request_started(true));
    (0..2).for_each(|_| entry.set_body_blocked(false, true));
    // One waits for its source, which is not the client's fault.
    entry.set_body_blocked(true, false);
    sweep(&all, 30);
    assert_eq!(command(&entry), ConnectionCommand::Continue as u8);
    entry.set_body_blocked(false, true);
    for _ in 0..10 {
        all.sweep();
        // A ping and its answer.
        entry.record_read(1);
        entry.record_sent(1);
    }
    assert_eq!(command(&entry), ConnectionCommand::Continue as u8);
    all.sweep();
    assert!(entry.check_expired().is_some());
    entry.set_body_blocked(true, true);
    assert!(entry.check_expired().is_some(), "asking for more is no sign of the client's");
    entry.record_body_sent(1000);
    assert!(entry.check_expired().is_none());
}
