//! Where requests wait before they begin, so that a turn of the event loop stays short whatever the crowd.
//!
//! A request of HTTP/1 waits unread, in its connection's kernel buffer; one of HTTP/2 waits in its service. The keeper, a
//! task that runs behind all that is runnable, ends a turn: it measures it, lets waiting requests in, and wakes again only
//! while requests wait. Beyond bounds ([`shed`]) waiting requests are refused.
//!
//! Everything here runs on the worker's one thread, so loads and stores of its atomics need no order and are never raced.

mod load_shedder;
mod turn_allowance;
mod waiter;

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use load_shedder::{LoadShedder, ShedChange, ShedState};
use tokio::sync::Notify;
use turn_allowance::TurnAllowance;
pub(super) use waiter::{AdmissionOutcome, AdmissionWaiter};

use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::WorkerCell;
use crate::sys::thread;

/// Share of the loop's time that may go into refusing, one in so many parts: at twice the capacity as many requests are
/// refused as are served, and refusing them must leave the time to serve.
const REFUSAL_TIME_SHARE: u32 = 7;

/// Most time for refusing that is saved up.
const MAX_REFUSAL_BUDGET: Duration = Duration::from_millis(20);

/// What a refusal costs, in parts of what its measured part costs: its connection is accepted and closed besides.
const REFUSAL_COST_FACTOR: u32 = 3;

/// What a refusal costs before one was measured.
const INITIAL_REFUSAL_COST: Duration = Duration::from_micros(20);

/// The gate of a worker's public listeners.
#[derive(Debug)]
pub(super) struct AdmissionGate {
    /// Requests that may still begin in this turn; none while others wait, so that no request is overtaken.
    allowance_left: AtomicU32,
    /// Requests that began in this turn, besides those that had waited.
    started: AtomicU32,
    /// Whether a turn is under way, which the keeper will end.
    turn_active: AtomicBool,
    /// When it began, nanoseconds since the start.
    turn_started_ns: AtomicU64,
    turn_waker: OnceLock<Waker>,
    /// Requests that wait.
    waiting: AtomicUsize,
    /// Requests that may wait; more are refused on arrival.
    max_waiting: AtomicUsize,
    /// Time left for refusing, nanoseconds.
    refusal_budget_ns: AtomicI64,
    /// What a refusal costs, averaged, nanoseconds.
    refusal_cost_ns: AtomicI64,
    /// Told when accepting may go on.
    accepting: Notify,
    created_at: Instant,
    queue: Mutex<GateQueue>,
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
}

/// Who waits, and what decides about them.
#[derive(Debug)]
struct GateQueue {
    allowance: TurnAllowance,
    shed: LoadShedder,
    /// Requests that will be let in, in the order in which they came.
    waiting: VecDeque<Arc<AdmissionWaiter>>,
    /// Requests that waited too long and are to be refused as soon as there is time for it.
    overdue: VecDeque<Arc<AdmissionWaiter>>,
    /// When it was last looked how long the worker was starved, and for how long that was; none: no request waited.
    starvation: Option<(Duration, Duration)>,
}

/// What becomes of a request that finds no allowance.
#[derive(Debug)]
pub(super) enum ArrivalOutcome {
    /// It waits.
    Queued(Arc<AdmissionWaiter>),
    /// It is refused.
    Refused,
}

impl AdmissionGate {
    pub(super) fn new(scoreboard: Arc<Scoreboard>, slot: usize, cell: usize) -> Self {
        let queue = GateQueue {
            allowance: TurnAllowance::default(),
            shed: LoadShedder::new(Duration::ZERO),
            waiting: VecDeque::new(),
            overdue: VecDeque::new(),
            starvation: None,
        };
        Self {
            allowance_left: AtomicU32::new(queue.allowance.get()),
            started: AtomicU32::new(0),
            turn_active: AtomicBool::new(false),
            turn_started_ns: AtomicU64::new(0),
            turn_waker: OnceLock::new(),
            waiting: AtomicUsize::new(0),
            max_waiting: AtomicUsize::new(usize::MAX),
            refusal_budget_ns: AtomicI64::new(nanos(MAX_REFUSAL_BUDGET)),
            refusal_cost_ns: AtomicI64::new(nanos(INITIAL_REFUSAL_COST)),
            accepting: Notify::new(),
            created_at: Instant::now(),
            queue: Mutex::new(queue),
            scoreboard,
            slot,
            cell,
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateQueue> {
        // Whole after any panic: each use is one push, one pop or a figure.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self) -> WorkerCell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    fn now(&self) -> Duration {
        self.created_at.elapsed()
    }

    /// Whether a request may begin now.
    pub(super) fn is_open(&self) -> bool {
        self.allowance_left.load(Relaxed) > 0
    }

    /// A request begins; [`Gate::is_open`] was asked before.
    pub(super) fn start_request(&self) {
        self.allowance_left.store(self.allowance_left.load(Relaxed).saturating_sub(1), Relaxed);
        self.started.store(self.started.load(Relaxed) + 1, Relaxed);
        self.start_turn();
    }

    /// The keeper runs when all that is runnable now has run: that is the turn's end.
    fn start_turn(&self) {
        if !self.turn_active.load(Relaxed)
            && let Some(waker) = self.turn_waker.get()
        {
            self.turn_active.store(true, Relaxed);
            self.turn_started_ns.store(self.now_ns(), Relaxed);
            waker.wake_by_ref();
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.now().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request has come that may not begin now.
    pub(super) fn enqueue(self: &Arc<Self>) -> ArrivalOutcome {
        let waiting = self.waiting.load(Relaxed);
        if waiting >= self.max_waiting.load(Relaxed) && self.refusal_budget_ns.load(Relaxed) > 0 {
            return ArrivalOutcome::Refused;
        }
        self.waiting.store(waiting + 1, Relaxed);
        let waiter = Arc::new(AdmissionWaiter::new(Arc::clone(self), self.now()));
        self.lock().waiting.push_back(Arc::clone(&waiter));
        self.start_turn();
        ArrivalOutcome::Queued(waiter)
    }

    /// A request does not wait any more.
    fn decrement_waiting(&self) {
        self.waiting.store(self.waiting.load(Relaxed).saturating_sub(1), Relaxed);
    }

    /// A request was refused, which took this long.
    pub(super) fn record_refusal(&self, took: Duration) {
        let whole = nanos(took.saturating_mul(REFUSAL_COST_FACTOR));
        self.refusal_budget_ns.store(self.refusal_budget_ns.load(Relaxed) - whole, Relaxed);
        let cost = self.refusal_cost_ns.load(Relaxed);
        self.refusal_cost_ns.store(cost + (whole - cost) / 8, Relaxed);
        self.lock().shed.record_refusal(self.now());
    }

    /// Waits as long as more connections would only mean more refusals than there is time for.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn wait_until_accepting(&self) {
        while self.is_saturated() {
            self.accepting.notified().await;
        }
    }

    fn is_saturated(&self) -> bool {
        let waiting = self.waiting.load(Relaxed);
        waiting > 0 && waiting >= self.max_waiting.load(Relaxed) && self.refusal_budget_ns.load(Relaxed) <= 0
    }

    /// Ends turns for ever; to be polled by a task of its own.
    pub(super) fn poll_turns(&self, context: &Context<'_>) -> Poll<()> {
        if self.turn_waker.set(context.waker().clone()).is_ok() {
            // Requests that came before this first poll could not wake the keeper.
            self.turn_active.store(true, Relaxed);
        }
        if self.turn_active.load(Relaxed) {
            self.finish_turn();
            if self.waiting.load(Relaxed) > 0 {
                // Behind those just let in: that is the next turn's end.
                context.waker().wake_by_ref();
            } else {
                self.turn_active.store(false, Relaxed);
            }
        }
        Poll::Pending
    }

    fn finish_turn(&self) {
        // The clock is asked once: what is ended here is where the next turn begins, if there is one.
        let now = self.now();
        let started = Duration::from_nanos(self.turn_started_ns.load(Relaxed));
        self.turn_started_ns.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        let length = now.saturating_sub(started);
        let mut queue = self.lock();
        let before = self.waiting.load(Relaxed);
        let earned = self.refusal_budget_ns.load(Relaxed).saturating_add(nanos(length / REFUSAL_TIME_SHARE));
        self.refusal_budget_ns.store(earned.min(nanos(MAX_REFUSAL_BUDGET)), Relaxed);
        queue.allowance.record_turn(length, before > 0);
        let refused = self.refuse_overdue(&mut queue, now);
        let admitted = self.admit_waiting(&mut queue);
        let started = self.started.load(Relaxed) + admitted;
        self.started.store(0, Relaxed);
        let change = queue.shed.record_turn(now, length, started, self.waiting.load(Relaxed));
        let spare = queue.allowance.get().saturating_sub(admitted);
        self.allowance_left.store(if queue.waiting.is_empty() { spare } else { 0 }, Relaxed);
        self.apply_shed_change(&queue, change);
        drop(queue);
        let waiting = self.waiting.load(Relaxed);
        self.cell().record_turn(u64::try_from(length.as_micros()).unwrap_or(u64::MAX), waiting as u64);
        if refused || !self.is_saturated() {
            self.accepting.notify_waiters();
        }
    }

    /// Puts aside who waited too long, and refuses as many of them as there is time for.
    fn refuse_overdue(&self, queue: &mut GateQueue, now: Duration) -> bool {
        if let Some(bound) = queue.shed.max_age() {
            while queue.waiting.front().is_some_and(|waiter| waiter.age(now) > bound) {
                let overdue = queue.waiting.pop_front();
                queue.overdue.extend(overdue);
            }
        }
        let cost = self.refusal_cost_ns.load(Relaxed).max(1);
        let affordable = usize::try_from(self.refusal_budget_ns.load(Relaxed) / cost).unwrap_or(0);
        // Where no request waits to be served, the time is there.
        let most = if queue.waiting.is_empty() { affordable.max(64) } else { affordable };
        let mut refused = 0;
        while refused < most
            && let Some(waiter) = queue.overdue.pop_front()
        {
            refused += usize::from(waiter.refuse());
        }
        refused > 0
    }

    /// Lets in who waits, as far as the allowance goes; how many.
    fn admit_waiting(&self, queue: &mut GateQueue) -> u32 {
        let mut admitted = 0;
        while admitted < queue.allowance.get()
            && let Some(waiter) = queue.waiting.pop_front()
        {
            admitted += u32::from(waiter.admit());
        }
        admitted
    }

    /// A moment has passed in which there may have been no turn at all.
    pub(super) fn sample_starvation(&self) {
        let now = self.now();
        let mut queue = self.lock();
        // Reading it costs some microseconds, which a worker without a crowd need not spend.
        let starved = (self.waiting.load(Relaxed) > 0)
            .then(thread::own_cpu_wait)
            .flatten()
            .map(|starved| (now, starved));
        if let (Some((before, was)), Some((_, is))) = (queue.starvation, starved) {
            queue.shed.record_starvation(is.saturating_sub(was), now.saturating_sub(before));
        }
        queue.starvation = starved;
        if queue.shed.state() == ShedState::Shedding && self.waiting.load(Relaxed) == 0 {
            let change = queue.shed.record_turn(now, Duration::ZERO, 0, 0);
            self.apply_shed_change(&queue, change);
        }
    }

    /// Whether nothing waits and nothing is refused, so that no moment need be told to it.
    pub(super) fn is_idle(&self) -> bool {
        let queue = self.lock();
        queue.starvation.is_none() && queue.shed.state() == ShedState::Normal
    }

    /// Takes over what was decided, and says what changed.
    fn apply_shed_change(&self, queue: &GateQueue, change: Option<ShedChange>) {
        self.max_waiting.store(queue.shed.max_waiting().unwrap_or(usize::MAX), Relaxed);
        match change {
            Some(ShedChange::Started(wait)) => {
                self.cell().set_shedding(true);
                let (waiting, wait_ms) = (self.waiting.load(Relaxed), wait.as_millis());
                tracing::warn!(
                    waiting,
                    wait_ms,
                    "overloaded: {waiting} requests wait for their turn, the last of them would wait \
                     {wait_ms} ms; requests that would wait too long are refused from now on"
                );
            }
            Some(ShedChange::Stopped) => {
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
