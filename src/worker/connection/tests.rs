//! Deadlines, orders and books, tick by tick.

use std::num::NonZeroUsize;

use super::*;

fn connections() -> Arc<Connections> {
    let scoreboard = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
    Arc::new(Connections::new(Patience { header: TICK * 3, idle: TICK * 10 }, Arc::new(scoreboard), 0, 0))
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
    let (slow, busy, waiting) = (all.open(), all.open(), all.open());
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
    let entry = all.open();
    entry.seat();
    sweep(&all, 5);
    assert_eq!(order(&entry), Order::Expire as u8);
    entry.asked(false);
    assert!(!entry.is_expired());
    assert_eq!(order(&entry), Order::Serve as u8);
}

#[test]
fn a_client_that_stops_reading_expires_even_with_a_request_under_way() {
    let all = connections();
    let entry = all.open();
    entry.seat();
    entry.asked(false);
    entry.stalls();
    sweep(&all, 8);
    entry.sent();
    entry.stalls();
    sweep(&all, 10);
    assert_eq!(order(&entry), Order::Serve as u8);
    all.sweep();
    assert_eq!(order(&entry), Order::Expire as u8);
}

#[test]
fn half_a_header_is_waited_for_as_long_as_a_header_may_take() {
    let all = connections();
    let entry = all.open();
    entry.seat();
    assert!(!entry.is_begun());
    entry.read();
    assert!(entry.is_begun());
    sweep(&all, 5);
    assert!(!entry.is_begun());
}

#[test]
fn frames_keep_an_idle_http2_connection_alive() {
    let all = connections();
    let entry = all.open();
    entry.seat();
    entry.asked(true);
    entry.answered();
    for _ in 0..5 {
        sweep(&all, 8);
        entry.read();
    }
    assert_eq!(order(&entry), Order::Serve as u8);
}

#[test]
fn an_upgraded_connection_may_be_silent_but_not_deaf() {
    let all = connections();
    let entry = all.open();
    entry.seat();
    entry.asked(false);
    entry.upgraded();
    entry.answered();
    sweep(&all, 100);
    entry.read();
    sweep(&all, 100);
    assert!(!entry.must_end(Side::Reader, Waker::noop()));
    entry.stalls();
    sweep(&all, 11);
    assert!(entry.must_end(Side::Writer, Waker::noop()));
    entry.sent();
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
    let entry = all.open();
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
    all.cell().prepare(1, 0);
    let entry = all.open();
    assert_eq!((all.len(), all.cell().snapshot().unwrap().connections), (1, 1));
    drop(entry);
    assert_eq!((all.len(), all.cell().snapshot().unwrap().connections), (0, 0));
}

#[test]
fn an_http2_client_that_gives_no_room_expires_whatever_else_it_sends() {
    let all = connections();
    let entry = all.open();
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
        entry.read();
        entry.sent();
    }
    assert_eq!(order(&entry), Order::Serve as u8);
    all.sweep();
    assert!(entry.is_expired());
    entry.body_moved(true, true);
    assert!(!entry.is_expired());
}
