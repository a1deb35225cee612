//! Where requests wait before they begin, so that a turn of the event loop stays short whatever the crowd.
//!
//! A request of HTTP/1 waits unread, in its connection's kernel buffer; one of HTTP/2 waits in its service. The keeper, a
//! task that runs behind all that is runnable, ends a turn: it measures it, lets waiting requests in, and wakes again only
//! while requests wait. Beyond bounds ([`shed`]) waiting requests are refused.
//!
//! Everything here runs on the worker's one thread, so loads and stores of its atomics need no order and are never raced.

mod shed;
mod ticket;
mod turn;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::Notify;

pub(super) use ticket::Ticket;
pub(super) use ticket::Verdict;

use shed::Change;
use shed::Shed;
use shed::State;
use turn::Allowance;

use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Cell;
use crate::sys::task;

/// Share of the loop's time that may go into refusing, one in so many parts: at twice the capacity as many requests are
/// refused as are served, and refusing them must leave the time to serve.
const REFUSING: u32 = 7;

/// Most time for refusing that is saved up.
const SAVED: Duration = Duration::from_millis(20);

/// What a refusal costs, in parts of what its measured part costs: its connection is accepted and closed besides.
const WHOLE: u32 = 3;

/// What a refusal costs before one was measured.
const GUESSED: Duration = Duration::from_micros(20);

/// The gate of a worker's public listeners.
#[derive(Debug)]
pub(super) struct Gate {
    /// Requests that may still begin in this turn; none while others wait, so that no request is overtaken.
    left: AtomicU32,
    /// Requests that began in this turn, besides those that had waited.
    begun: AtomicU32,
    /// Whether a turn is under way, which the keeper will end.
    turning: AtomicBool,
    /// When it began, nanoseconds since the start.
    began_ns: AtomicU64,
    keeper: OnceLock<Waker>,
    /// Requests that wait.
    waiting: AtomicUsize,
    /// Requests that may wait; more are refused on arrival.
    most_waiting: AtomicUsize,
    /// Time left for refusing, nanoseconds.
    budget_ns: AtomicI64,
    /// What a refusal costs, averaged, nanoseconds.
    cost_ns: AtomicI64,
    /// Told when accepting may go on.
    relief: Notify,
    start: Instant,
    queue: Mutex<Queue>,
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
}

/// Who waits, and what decides about them.
#[derive(Debug)]
struct Queue {
    allowance: Allowance,
    shed: Shed,
    /// Requests that will be let in, in the order in which they came.
    waiting: VecDeque<Arc<Ticket>>,
    /// Requests that waited too long and are to be refused as soon as there is time for it.
    late: VecDeque<Arc<Ticket>>,
    /// When it was last looked how long the worker was starved, and for how long that was; none: no request waited.
    starved: Option<(Duration, Duration)>,
}

/// What becomes of a request that finds no allowance.
#[derive(Debug)]
pub(super) enum Arrival {
    /// It waits.
    Waits(Arc<Ticket>),
    /// It is refused.
    Refused,
}

impl Gate {
    pub(super) fn new(scoreboard: Arc<Scoreboard>, slot: usize, cell: usize) -> Self {
        let queue = Queue {
            allowance: Allowance::default(),
            shed: Shed::new(Duration::ZERO),
            waiting: VecDeque::new(),
            late: VecDeque::new(),
            starved: None,
        };
        Self {
            left: AtomicU32::new(queue.allowance.get()),
            begun: AtomicU32::new(0),
            turning: AtomicBool::new(false),
            began_ns: AtomicU64::new(0),
            keeper: OnceLock::new(),
            waiting: AtomicUsize::new(0),
            most_waiting: AtomicUsize::new(usize::MAX),
            budget_ns: AtomicI64::new(nanos(SAVED)),
            cost_ns: AtomicI64::new(nanos(GUESSED)),
            relief: Notify::new(),
            start: Instant::now(),
            queue: Mutex::new(queue),
            scoreboard,
            slot,
            cell,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Whole after any panic: each use is one push, one pop or a figure.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self) -> Cell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Whether a request may begin now.
    pub(super) fn is_open(&self) -> bool {
        self.left.load(Relaxed) > 0
    }

    /// A request begins; [`Gate::is_open`] was asked before.
    pub(super) fn enter(&self) {
        self.left.store(self.left.load(Relaxed).saturating_sub(1), Relaxed);
        self.begun.store(self.begun.load(Relaxed) + 1, Relaxed);
        self.begin_turn();
    }

    /// The keeper runs when all that is runnable now has run: that is the turn's end.
    fn begin_turn(&self) {
        if !self.turning.load(Relaxed)
            && let Some(keeper) = self.keeper.get()
        {
            self.turning.store(true, Relaxed);
            self.began_ns.store(self.now_ns(), Relaxed);
            keeper.wake_by_ref();
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.now().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request has come that may not begin now.
    pub(super) fn arrive(self: &Arc<Self>) -> Arrival {
        let waiting = self.waiting.load(Relaxed);
        if waiting >= self.most_waiting.load(Relaxed) && self.budget_ns.load(Relaxed) > 0 {
            return Arrival::Refused;
        }
        self.waiting.store(waiting + 1, Relaxed);
        let ticket = Arc::new(Ticket::new(Arc::clone(self), self.now()));
        self.lock().waiting.push_back(Arc::clone(&ticket));
        self.begin_turn();
        Arrival::Waits(ticket)
    }

    /// A request does not wait any more.
    fn leave(&self) {
        self.waiting.store(self.waiting.load(Relaxed).saturating_sub(1), Relaxed);
    }

    /// A request was refused, which took this long.
    pub(super) fn refused(&self, took: Duration) {
        let whole = nanos(took.saturating_mul(WHOLE));
        self.budget_ns.store(self.budget_ns.load(Relaxed) - whole, Relaxed);
        let cost = self.cost_ns.load(Relaxed);
        self.cost_ns.store(cost + (whole - cost) / 8, Relaxed);
        self.lock().shed.refused(self.now());
    }

    /// Waits as long as more connections would only mean more refusals than there is time for.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn may_accept(&self) {
        while self.is_swamped() {
            self.relief.notified().await;
        }
    }

    fn is_swamped(&self) -> bool {
        let waiting = self.waiting.load(Relaxed);
        waiting > 0 && waiting >= self.most_waiting.load(Relaxed) && self.budget_ns.load(Relaxed) <= 0
    }

    /// Ends turns for ever; to be polled by a task of its own.
    pub(super) fn poll_keep(&self, context: &Context<'_>) -> Poll<()> {
        if self.keeper.set(context.waker().clone()).is_ok() {
            // Requests that came before this first poll could not wake the keeper.
            self.turning.store(true, Relaxed);
        }
        if self.turning.load(Relaxed) {
            self.end_turn();
            if self.waiting.load(Relaxed) > 0 {
                // Behind those just let in: that is the next turn's end.
                context.waker().wake_by_ref();
            } else {
                self.turning.store(false, Relaxed);
            }
        }
        Poll::Pending
    }

    fn end_turn(&self) {
        // The clock is asked once: what is ended here is where the next turn begins, if there is one.
        let now = self.now();
        let began = Duration::from_nanos(self.began_ns.load(Relaxed));
        self.began_ns.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        let length = now.saturating_sub(began);
        let mut queue = self.lock();
        let before = self.waiting.load(Relaxed);
        let earned = self.budget_ns.load(Relaxed).saturating_add(nanos(length / REFUSING));
        self.budget_ns.store(earned.min(nanos(SAVED)), Relaxed);
        queue.allowance.turned(length, before > 0);
        let refused = self.refuse_late(&mut queue, now);
        let let_in = self.let_in(&mut queue);
        let begun = self.begun.load(Relaxed) + let_in;
        self.begun.store(0, Relaxed);
        let change = queue.shed.turned(now, length, begun, self.waiting.load(Relaxed));
        let spare = queue.allowance.get().saturating_sub(let_in);
        self.left.store(if queue.waiting.is_empty() { spare } else { 0 }, Relaxed);
        self.settle(&queue, change);
        drop(queue);
        let waiting = self.waiting.load(Relaxed);
        self.cell().turned(u64::try_from(length.as_micros()).unwrap_or(u64::MAX), waiting as u64);
        if refused || !self.is_swamped() {
            self.relief.notify_waiters();
        }
    }

    /// Puts aside who waited too long, and refuses as many of them as there is time for.
    fn refuse_late(&self, queue: &mut Queue, now: Duration) -> bool {
        if let Some(bound) = queue.shed.too_old() {
            while queue.waiting.front().is_some_and(|ticket| ticket.age(now) > bound) {
                let late = queue.waiting.pop_front();
                queue.late.extend(late);
            }
        }
        let cost = self.cost_ns.load(Relaxed).max(1);
        let affordable = usize::try_from(self.budget_ns.load(Relaxed) / cost).unwrap_or(0);
        // Where no request waits to be served, the time is there.
        let most = if queue.waiting.is_empty() { affordable.max(64) } else { affordable };
        let mut refused = 0;
        while refused < most
            && let Some(ticket) = queue.late.pop_front()
        {
            refused += usize::from(ticket.refuse());
        }
        refused > 0
    }

    /// Lets in who waits, as far as the allowance goes; how many.
    fn let_in(&self, queue: &mut Queue) -> u32 {
        let mut let_in = 0;
        while let_in < queue.allowance.get()
            && let Some(ticket) = queue.waiting.pop_front()
        {
            let_in += u32::from(ticket.admit());
        }
        let_in
    }

    /// A moment has passed in which there may have been no turn at all.
    pub(super) fn tick(&self) {
        let now = self.now();
        let mut queue = self.lock();
        // Reading it costs some microseconds, which a worker without a crowd need not spend.
        let starved =
            (self.waiting.load(Relaxed) > 0).then(task::starved).flatten().map(|starved| (now, starved));
        if let (Some((before, was)), Some((_, is))) = (queue.starved, starved) {
            queue.shed.was_starved(is.saturating_sub(was), now.saturating_sub(before));
        }
        queue.starved = starved;
        if queue.shed.state() == State::Shedding && self.waiting.load(Relaxed) == 0 {
            let change = queue.shed.turned(now, Duration::ZERO, 0, 0);
            self.settle(&queue, change);
        }
    }

    /// Whether nothing waits and nothing is refused, so that no moment need be told to it.
    pub(super) fn is_at_rest(&self) -> bool {
        let queue = self.lock();
        queue.starved.is_none() && queue.shed.state() == State::Calm
    }

    /// Takes over what was decided, and says what changed.
    fn settle(&self, queue: &Queue, change: Option<Change>) {
        self.most_waiting.store(queue.shed.most_waiting().unwrap_or(usize::MAX), Relaxed);
        match change {
            Some(Change::Begun(wait)) => {
                self.cell().set_shedding(true);
                let (waiting, wait_ms) = (self.waiting.load(Relaxed), wait.as_millis());
                tracing::warn!(
                    waiting,
                    wait_ms,
                    "overloaded: {waiting} requests wait for their turn, the last of them would wait \
                     {wait_ms} ms; requests that would wait too long are refused from now on"
                );
            }
            Some(Change::Ended) => {
                self.cell().set_shedding(false);
                tracing::info!("no longer overloaded: no request had to be refused for a while");
            }
            None => {}
        }
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
