//! A model of everything that can happen to a journal: its owner is killed at any store, its messages get lost.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::prelude::*;

use super::*;
use crate::sys::atomic_memory::AtomicMemory;

thread_local! {
    /// Stores that are left until the process is killed; none: it lives.
    static FUSE: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What [`put`] calls before each store.
pub(super) fn burn() {
    match FUSE.get() {
        Some(0) => resume_unwind(Box::new("killed")),
        Some(left) => FUSE.set(Some(left - 1)),
        None => {}
    }
}

/// Runs `act`, killed before its `fuse`-th store from 0; none if it was killed.
fn killed<T>(fuse: Option<u32>, act: impl FnOnce() -> T) -> Option<T> {
    FUSE.set(fuse);
    let outcome = catch_unwind(AssertUnwindSafe(act));
    FUSE.set(None);
    outcome.ok()
}

struct Memory(AtomicMemory);

impl Memory {
    fn new() -> Self {
        let bytes = size_of::<JournalHead>() + size_of::<JournalBody>();
        Self(AtomicMemory::on_heap(NonZeroUsize::new(bytes).unwrap()))
    }

    fn journal(&self) -> CounterJournal<'_> {
        CounterJournal::new(self.0.get(0), self.0.get(size_of::<JournalHead>()))
    }
}

/// Redis, as the function in `migrations/0005_regatta_counter_v1.lua` behaves.
#[derive(Default)]
struct Server {
    last: u64,
    sums: BTreeMap<String, i64>,
    taken: BTreeMap<u64, SealedBatch>,
}

impl Server {
    fn flush(&mut self, batch: &SealedBatch) {
        if batch.sequence <= self.last {
            assert_eq!(self.taken.get(&batch.sequence), Some(batch), "a number stands for one batch");
            return;
        }
        self.last = batch.sequence;
        self.taken.insert(batch.sequence, batch.clone());
        for (name, by) in &batch.sums {
            *self.sums.entry(name.clone()).or_default() += by;
        }
    }

    fn seen_by(&self, journal: CounterJournal<'_>, name: &str) -> i64 {
        self.sums.get(name).copied().unwrap_or(0) + journal.pending(name).pending_after(self.last)
    }
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    NeverSent,
    ReplyLost,
    Answered,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Add { name: usize, by: i64, fuse: Option<u32> },
    Flush { seal: Option<u32>, fate: Fate, acknowledge: Option<u32> },
}

fn fuse() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![3 => Just(None), 2 => (0..8_u32).prop_map(Some)]
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![Just(Fate::NeverSent), Just(Fate::ReplyLost), Just(Fate::Answered)];
    prop_oneof![
        2 => (0..70_usize, -3..4_i64, fuse()).prop_map(|(name, by, fuse)| Step::Add { name, by, fuse }),
        2 => (0..3_usize, -3..4_i64, fuse()).prop_map(|(name, by, fuse)| Step::Add { name, by, fuse }),
        3 => (fuse(), fate, fuse()).prop_map(|(seal, fate, acknowledge)| Step::Flush { seal, fate, acknowledge }),
    ]
}

fn name(number: usize) -> String {
    format!("counter-with-a-long-name-{number}")
}

/// One flush; the one who does it may be killed while it seals and while it settles.
fn flush(
    journal: CounterJournal<'_>,
    server: &mut Server,
    seal: Option<u32>,
    fate: Fate,
    acknowledge: Option<u32>,
) {
    let Some(Some(batch)) = killed(seal, || journal.seal()) else { return };
    match fate {
        Fate::NeverSent => {}
        Fate::ReplyLost => server.flush(&batch),
        Fate::Answered => {
            server.flush(&batch);
            killed(acknowledge, || journal.acknowledge(batch.sequence));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_dies_and_whatever_gets_lost_every_addition_counts_once(steps in prop::collection::vec(step(), 1..200)) {
        let memory = Memory::new();
        let journal = memory.journal();
        let mut server = Server::default();
        let mut expected = BTreeMap::<usize, i64>::new();
        for step in steps {
            match step {
                Step::Add { name: number, by, fuse } => {
                    let before = expected.get(&number).copied().unwrap_or(0);
                    let added = killed(fuse, || journal.add(&name(number), by, 7));
                    let seen = server.seen_by(journal, &name(number));
                    match added {
                        Some(Ok(_)) => prop_assert_eq!(seen, before + by, "an answered addition counts"),
                        Some(Err(_)) => prop_assert_eq!(seen, before, "a refused one does not"),
                        None => prop_assert!(seen == before || seen == before + by, "one cut short: all or nothing"),
                    }
                    expected.insert(number, seen);
                }
                Step::Flush { seal, fate, acknowledge } => flush(journal, &mut server, seal, fate, acknowledge),
            }
            for (number, sum) in &expected {
                prop_assert_eq!(server.seen_by(journal, &name(*number)), *sum);
            }
        }
        for _ in 0..2 {
            flush(journal, &mut server, None, Fate::Answered, None);
        }
        prop_assert_eq!(journal.oldest_ms(), None);
        prop_assert_eq!(journal.pending_total(), 0);
        for (number, sum) in &expected {
            prop_assert_eq!(server.sums.get(&name(*number)).copied().unwrap_or(0), *sum);
        }
    }
}

#[test]
fn a_full_journal_refuses_names_until_some_are_acknowledged() {
    let memory = Memory::new();
    let journal = memory.journal();
    for number in 0..NAMES {
        journal.add(&name(number), 1, 1).unwrap();
    }
    assert_eq!(journal.add("one more", 1, 1), Err(JournalError::Full));
    assert_eq!(journal.add(&name(3), 1, 1), Ok(false), "what has its place keeps it");
    let batch = journal.seal().unwrap();
    assert_eq!(journal.add("one more", 1, 1), Err(JournalError::Full), "a batch on its way is not forgotten");
    journal.acknowledge(batch.sequence);
    assert_eq!(journal.add("one more", 1, 1), Ok(true));
    assert_eq!(journal.seal().unwrap().sums, [("one more".to_owned(), 1)]);
}

#[test]
fn a_sum_that_leaves_the_range_is_refused() {
    let memory = Memory::new();
    let journal = memory.journal();
    journal.add("n", i64::MAX, 1).unwrap();
    assert_eq!(journal.add("n", 1, 1), Err(JournalError::Overflow));
    assert_eq!(journal.pending("n").pending_after(0), i64::MAX);
    assert_eq!(journal.pending_total(), i64::MAX as u64);
}

#[test]
fn what_cancels_out_is_never_sent() {
    let memory = Memory::new();
    let journal = memory.journal();
    journal.add("n", 5, 9).unwrap();
    journal.add("n", -5, 11).unwrap();
    assert_eq!(journal.oldest_ms(), Some(9));
    assert_eq!((journal.seal(), journal.oldest_ms()), (None, None));
}

#[test]
fn names_as_long_as_they_may_be_are_distinguished() {
    let memory = Memory::new();
    let journal = memory.journal();
    let (one, other) = ("x".repeat(NAME_MAX), format!("{}y", "x".repeat(NAME_MAX - 1)));
    journal.add(&one, 1, 1).unwrap();
    journal.add(&other, 2, 1).unwrap();
    journal.add("x", 4, 1).unwrap();
    assert_eq!([&one, &other, "x", "y"].map(|name| journal.pending(name).pending_after(0)), [1, 2, 4, 0]);
}

#[test]
fn a_journal_changes_hands_once() {
    let memory = Memory::new();
    let journal = memory.journal();
    let (first, second) = (JournalOwner::new(9, 1), JournalOwner::new(3, 7));
    assert!(journal.change_owner(None, first) && !journal.change_owner(None, second));
    assert!(journal.change_owner(Some(first), second) && !journal.change_owner(Some(first), second));
    assert_eq!(journal.owner().map(|owner| (owner.index(), owner.incarnation())), Some((3, 7)));
    journal.release();
    assert_eq!(journal.owner(), None);
}
