//! Deadlines, orders and books, tick by tick.

use std::num::NonZeroUsize;

use std::net::IpAddr;
use std::sync::Arc;
use std::task::Waker;

use super::*;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::refusal::Closing;

fn connections() -> Arc<Connections> {
    let scoreboard = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
    scoreboard.cell(0, 0).prepare(1, 0);
    let patience = Patience { header: TICK * 3, idle: TICK * 10, header_memory: 100_000, per_client: 3 };
    Arc::new(Connections::new(patience, Arc::new(scoreboard), 0, 0))
}

fn open(all: &Arc<Connections>) -> Entry {
    all.open(None).unwrap()
}

fn sweep(all: &Connections, times: usize) {
    (0..times).for_each(|_| all.sweep());
}

fn order(entry: &Entry) -> u8 {
    entry.connection.order.load(Relaxed)
}

#[test]
fn a_header_that_never_ends_expires_and_a_long_request_does_not() {
    let all = connections();
    let (slow, busy, waiting) = (open(&all), open(&all), open(&all));
    slow.seat();
    busy.seat();
    busy.asked(false);
    sweep(&all, 20);
    assert_eq!(order(&slow), Order::Expire as u8);
    assert_eq!(order(&busy), Order::Serve as u8);
    assert_eq!(order(&waiting), Order::Serve as u8);
    busy.answered();
    sweep(&all, 10);
    assert_eq!(order(&busy), Order::Serve as u8);
    all.sweep();
    assert_eq!(order(&busy), Order::Expire as u8);
}

#[test]
fn a_request_that_comes_with_the_order_to_expire_is_served() {
    let all = connections();
    let entry = open(&all);
    entry.seat();
    sweep(&all, 5);
    assert_eq!(order(&entry), Order::Expire as u8);
    entry.asked(false);
    assert!(entry.expired().is_none());
    assert_eq!(order(&entry), Order::Serve as u8);
}

#[test]
fn a_client_that_stops_reading_expires_even_with_a_request_under_way() {
    let all = connections();
    let entry = open(&all);
    entry.seat();
    entry.asked(false);
    entry.stalls();
    sweep(&all, 8);
    entry.sent(1000);
    entry.stalls();
    sweep(&all, 10);
    assert_eq!(order(&entry), Order::Serve as u8);
    all.sweep();
    assert_eq!(order(&entry), Order::Expire as u8);
}

#[test]
fn half_a_header_is_waited_for_as_long_as_a_header_may_take() {
    let all = connections();
    let entry = open(&all);
    entry.seat();
    assert!(!entry.is_begun());
    entry.read(1);
    assert!(entry.is_begun());
    sweep(&all, 5);
    assert!(!entry.is_begun());
}

#[test]
fn no_frame_keeps_an_idle_http2_connection_alive() {
    let all = connections();
    let entry = open(&all);
    entry.seat();
    entry.asked(true);
    entry.answered();
    for _ in 0..11 {
        all.sweep();
        // A ping and its answer.
        entry.read(17);
        entry.sent(17);
    }
    assert_eq!(entry.expired(), Some(Closing::Idle));
}

#[test]
fn a_byte_now_and_then_excuses_no_slow_reader() {
    let all = connections();
    let entry = open(&all);
    entry.seat();
    entry.asked(false);
    for _ in 0..4 {
        entry.stalls();
        sweep(&all, 3);
        entry.sent(1);
    }
    assert_eq!(entry.expired(), None, "nothing is waited for");
    entry.stalls();
    assert_eq!(entry.expired(), Some(Closing::SlowReader));
    // One that takes much in between is only slow.
    let entry = open(&all);
    entry.seat();
    entry.asked(false);
    for _ in 0..10 {
        entry.stalls();
        sweep(&all, 3);
        entry.sent(1000);
    }
    entry.stalls();
    assert_eq!(entry.expired(), None);
}

#[test]
fn a_request_that_waits_for_its_turn_is_not_idle() {
    let all = connections();
    let entry = open(&all);
    entry.seat();
    entry.asked(false);
    entry.answered();
    entry.wait();
    sweep(&all, 100);
    assert_eq!(entry.expired(), None);
    assert!(!all.evict());
    entry.resume();
    assert_eq!(entry.expired(), None);
    sweep(&all, 11);
    assert_eq!(entry.expired(), Some(Closing::Idle));
}

/// A connection that answered its first request.
fn idle(all: &Arc<Connections>, client: Option<IpAddr>) -> Entry {
    let entry = all.open(client).unwrap();
    entry.seat();
    entry.asked(false);
    entry.answered();
    all.sweep();
    entry
}

#[test]
fn places_are_taken_from_those_that_have_been_idle_for_longest() {
    let all = connections();
    let entries: Vec<_> = (0..4).map(|_| idle(&all, None)).collect();
    entries[0].asked(false);
    entries[1].read(1);
    assert!(all.evict() && all.evict());
    assert!(!all.evict(), "what serves and what has begun is left alone");
    let orders: Vec<_> = entries.iter().map(order).collect();
    let (served, told) = (Order::Serve as u8, Order::Finish as u8);
    assert_eq!(orders, [served, served, told, told]);
    // What is idle later is found in the next tick.
    entries[0].answered();
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
    own[0].asked(false);
    own.extend(all.open(client));
    assert_eq!((own.len(), order(&own[1])), (4, Order::Finish as u8));
    own.extend(all.open(client));
    assert_eq!((own.len(), order(&own[2])), (5, Order::Finish as u8));
    assert!(all.open(client).is_none(), "nothing of its own is idle");
    assert_eq!(order(&strangers), Order::Serve as u8);
    assert!(all.open(other).is_some());
    own.clear();
    assert!(all.open(client).is_some());
}

#[test]
fn large_unfinished_headers_have_a_bound_together_and_the_largest_go() {
    let all = connections();
    let small: Vec<_> = (0..100).map(|_| open(&all)).collect();
    for entry in &small {
        entry.seat();
        entry.read(SMALL_HEADER);
    }
    let large: Vec<_> = [20_000, 30_000, 60_000].into_iter().map(|bytes| (open(&all), bytes)).collect();
    for (entry, bytes) in &large {
        entry.seat();
        entry.read(*bytes);
    }
    assert!(large.iter().all(|(entry, _)| order(entry) == Order::Serve as u8));
    small[0].read(20_000);
    assert!(large[2].0.connection.is_header_refused());
    assert!(!large[1].0.connection.is_header_refused());
    // It was complete before it was told: nothing is refused.
    large[2].0.asked(false);
    assert!(!large[2].0.connection.is_header_refused());
    drop(large);
    drop(small);
    let entry = open(&all);
    entry.seat();
    entry.read(SMALL_HEADER + 100_000);
    assert_eq!(order(&entry), Order::Serve as u8, "what ended is not counted");
}

#[test]
fn an_upgraded_connection_may_be_silent_but_not_deaf() {
    let all = connections();
    let entry = open(&all);
    entry.seat();
    entry.asked(false);
    entry.upgraded();
    entry.answered();
    sweep(&all, 100);
    entry.read(1);
    sweep(&all, 100);
    assert!(!entry.must_end(Side::Reader, Waker::noop()));
    entry.stalls();
    sweep(&all, 11);
    assert!(entry.must_end(Side::Writer, Waker::noop()));
    entry.sent(1);
    assert!(!entry.must_end(Side::Writer, Waker::noop()));
    assert_eq!(order(&entry), Order::Serve as u8);
}

#[test]
fn an_upgraded_connection_hears_of_orders_and_finishes_by_itself() {
    struct Woken(AtomicU8);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    let all = connections();
    let entry = open(&all);
    entry.seat();
    entry.asked(false);
    entry.upgraded();
    entry.answered();
    let woken = Arc::new(Woken(AtomicU8::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    assert!(!entry.must_end(Side::Reader, &waker));
    all.tell_all(Order::Finish);
    assert_eq!(woken.0.load(Relaxed), 1);
    assert!(!entry.must_end(Side::Reader, &waker));
    all.cut_all();
    assert_eq!(woken.0.load(Relaxed), 2);
    assert!(entry.must_end(Side::Reader, &waker));
}

#[test]
fn an_entry_leaves_every_book_with_its_drop() {
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
    entry.seat();
    (0..2).for_each(|_| entry.asked(true));
    (0..2).for_each(|_| entry.body_moved(false, true));
    // One waits for what it is made of: nobody is to blame.
    entry.body_moved(true, false);
    sweep(&all, 30);
    assert_eq!(order(&entry), Order::Serve as u8);
    entry.body_moved(false, true);
    for _ in 0..10 {
        all.sweep();
        // A ping and its answer.
        entry.read(1);
        entry.sent(1);
    }
    assert_eq!(order(&entry), Order::Serve as u8);
    all.sweep();
    assert!(entry.expired().is_some());
    entry.body_moved(true, true);
    assert!(entry.expired().is_some(), "asking for more is no sign of the client's");
    entry.body_sent(1000);
    assert!(entry.expired().is_none());
}
