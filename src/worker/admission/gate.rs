//! The gate: which requests may begin in this turn, and which wait.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::WorkerCell;
use crate::sys::thread;
use crate::worker::admission::load_shedder::{LoadShedder, ShedChange, ShedState};
use crate::worker::admission::turn_allowance::TurnAllowance;
use crate::worker::admission::waiter::{AdmissionOutcome, AdmissionWaiter};

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
pub(in crate::worker) struct AdmissionGate {
    /// Requests that may still begin in this turn; none while others wait, so that no request is overtaken.
    allowance_left: AtomicU32,
    /// Requests that began in this turn, besides those that had waited.
    started: AtomicU32,
    /// Whether a turn is under way, which [`AdmissionGate::poll_turns`] will end.
    turn_active: AtomicBool,
    /// When it began, nanoseconds since the start.
    turn_started_ns: AtomicU64,
    turn_waker: OnceLock<Waker>,
    /// Requests that wait.
    waiting: Arc<AtomicUsize>,
    /// Requests that may wait; more are refused on arrival.
    max_waiting: AtomicUsize,
    /// Time left for refusing, nanoseconds.
    refusal_budget_ns: AtomicI64,
    /// What a refusal costs, averaged, nanoseconds.
    refusal_cost_ns: AtomicI64,
    /// Notified when accepting may go on.
    accepting: Notify,
    created_at: Instant,
    queue: Mutex<GateQueue>,
    scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
}

/// The requests that wait, and what decides about them.
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
pub(in crate::worker) enum ArrivalOutcome {
    /// It waits.
    Queued(Arc<AdmissionWaiter>),
    /// It is refused.
    Refused,
}

impl AdmissionGate {
    pub(in crate::worker) fn new(scoreboard: Arc<Scoreboard>, slot: usize, cell: usize) -> Self {
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
            waiting: Arc::default(),
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
    pub(in crate::worker) fn is_open(&self) -> bool {
        self.allowance_left.load(Relaxed) > 0
    }

    /// A request begins; [`Self::is_open`] was checked before.
    pub(in crate::worker) fn start_request(&self) {
        self.allowance_left.store(self.allowance_left.load(Relaxed).saturating_sub(1), Relaxed);
        self.started.store(self.started.load(Relaxed) + 1, Relaxed);
        self.start_turn();
    }

    /// The task of [`Self::poll_turns`] runs when all that is runnable now has run: that is the turn's end.
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
    pub(in crate::worker) fn enqueue(&self) -> ArrivalOutcome {
        let waiting = self.waiting.load(Relaxed);
        if waiting >= self.max_waiting.load(Relaxed) && self.refusal_budget_ns.load(Relaxed) > 0 {
            return ArrivalOutcome::Refused;
        }
        self.waiting.store(waiting + 1, Relaxed);
        let waiter = Arc::new(AdmissionWaiter::new(Arc::clone(&self.waiting), self.now()));
        self.lock().waiting.push_back(Arc::clone(&waiter));
        self.start_turn();
        ArrivalOutcome::Queued(waiter)
    }

    /// Waits for a turn that cannot begin at once.
    ///
    /// # Cancel safety
    /// The request leaves the queue when the future is dropped.
    pub(in crate::worker) async fn wait_for_turn(&self) -> AdmissionOutcome {
        struct CancelGuard(Arc<AdmissionWaiter>);
        impl Drop for CancelGuard {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        match self.enqueue() {
            ArrivalOutcome::Refused => AdmissionOutcome::Refused,
            ArrivalOutcome::Queued(waiter) => {
                let guard = CancelGuard(waiter);
                poll_fn(|context| guard.0.poll(context)).await
            }
        }
    }

    /// A request was refused, which took this long.
    pub(in crate::worker) fn record_refusal(&self, took: Duration) {
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
    pub(in crate::worker) async fn wait_until_accepting(&self) {
        while self.is_saturated() {
            self.accepting.notified().await;
        }
    }

    fn is_saturated(&self) -> bool {
        let waiting = self.waiting.load(Relaxed);
        waiting > 0 && waiting >= self.max_waiting.load(Relaxed) && self.refusal_budget_ns.load(Relaxed) <= 0
    }

    /// Ends turns for ever; to be polled by a task of its own.
    pub(in crate::worker) fn poll_turns(&self, context: &Context<'_>) -> Poll<()> {
        if self.turn_waker.set(context.waker().clone()).is_ok() {
            // Requests that came before this first poll could not wake this task.
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
        // One reading of the clock: the next turn, if there is one, begins where this one ends.
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

    /// Puts aside requests that waited too long, and refuses as many of them as there is time for.
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

    /// Lets in waiting requests, as far as the allowance goes; how many.
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
    pub(in crate::worker) fn sample_starvation(&self) {
        let now = self.now();
        let mut queue = self.lock();
        // Reading it costs some microseconds, which a worker without waiting requests need not spend.
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

    /// Whether nothing waits and nothing is refused, so that [`Self::sample_starvation`] need not be called.
    pub(in crate::worker) fn is_idle(&self) -> bool {
        let queue = self.lock();
        queue.starvation.is_none() && queue.shed.state() == ShedState::Normal
    }

    /// Applies what was decided, and logs what changed.
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
mod tests {
    use std::num::NonZeroUsize;
    use std::thread::sleep;

    use super::*;

    fn gate() -> Arc<AdmissionGate> {
        let scoreboard = Arc::new(Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap());
        scoreboard.cell(0, 0).reset(1, 0);
        Arc::new(AdmissionGate::new(scoreboard, 0, 0))
    }

    fn run_turn(gate: &AdmissionGate) {
        assert!(gate.poll_turns(&Context::from_waker(Waker::noop())).is_pending());
    }

    fn enqueue(gate: &Arc<AdmissionGate>) -> Arc<AdmissionWaiter> {
        match gate.enqueue() {
            ArrivalOutcome::Queued(waiter) => waiter,
            ArrivalOutcome::Refused => panic!("refused while all is calm"),
        }
    }

    fn outcome(waiter: &AdmissionWaiter) -> Option<AdmissionOutcome> {
        match waiter.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }

    fn drain(gate: &AdmissionGate) {
        while gate.is_open() {
            gate.start_request();
        }
    }

    #[test]
    fn a_turn_begins_as_many_as_it_may_and_the_next_one_takes_those_that_waited() {
        let gate = gate();
        run_turn(&gate);
        drain(&gate);
        let waiters: Vec<_> = (0..10).map(|_| enqueue(&gate)).collect();
        assert!(waiters.iter().all(|waiter| outcome(waiter).is_none()));
        run_turn(&gate);
        assert!(waiters.iter().all(|waiter| outcome(waiter) == Some(AdmissionOutcome::Admitted)));
        assert!(gate.is_open(), "there is allowance left for others");
        let snapshot = gate.cell().snapshot().unwrap();
        assert_eq!((snapshot.turns, snapshot.waiting), (2, 0));
    }

    #[test]
    fn no_request_is_overtaken() {
        let gate = gate();
        run_turn(&gate);
        // Long turns leave the fewest.
        for _ in 0..8 {
            gate.start_request();
            sleep(Duration::from_millis(9));
            run_turn(&gate);
        }
        drain(&gate);
        let waiters: Vec<_> = (0..6).map(|_| enqueue(&gate)).collect();
        run_turn(&gate);
        assert!(!gate.is_open(), "the queue comes first");
        let admitted = waiters.iter().filter(|waiter| outcome(waiter).is_some()).count();
        assert!((4..6).contains(&admitted), "{admitted}");
        assert!(waiters[..admitted].iter().all(|waiter| outcome(waiter).is_some()), "in their order");
        run_turn(&gate);
        assert!(waiters.iter().all(|waiter| outcome(waiter).is_some()));
    }

    #[test]
    fn a_cancelled_request_uses_no_turn() {
        let gate = gate();
        run_turn(&gate);
        drain(&gate);
        let waiters: Vec<_> = (0..4).map(|_| enqueue(&gate)).collect();
        waiters[0].cancel();
        waiters[0].cancel();
        assert_eq!(gate.waiting.load(Relaxed), 3);
        run_turn(&gate);
        assert_eq!(gate.waiting.load(Relaxed), 0);
        assert_eq!(outcome(&waiters[0]), None);
        assert_eq!(outcome(&waiters[3]), Some(AdmissionOutcome::Admitted));
    }

    #[test]
    fn a_request_that_comes_before_the_first_poll_is_not_lost() {
        let gate = gate();
        drain(&gate);
        let waiter = enqueue(&gate);
        run_turn(&gate);
        assert_eq!(outcome(&waiter), Some(AdmissionOutcome::Admitted));
    }

    #[test]
    fn an_idle_loop_is_not_kept_turning() {
        let gate = gate();
        run_turn(&gate);
        gate.start_request();
        run_turn(&gate);
        let turns = gate.cell().snapshot().unwrap().turns;
        run_turn(&gate);
        assert_eq!(gate.cell().snapshot().unwrap().turns, turns);
        assert!(!gate.turn_active.load(Relaxed));
    }

    #[test]
    fn refusing_takes_its_share_of_the_time_and_no_more() {
        let gate = gate();
        run_turn(&gate);
        gate.max_waiting.store(1, Relaxed);
        drain(&gate);
        let _first = enqueue(&gate);
        let mut refused = 0;
        while let ArrivalOutcome::Refused = gate.enqueue() {
            gate.record_refusal(Duration::from_micros(100));
            refused += 1;
        }
        assert_eq!(refused, 67, "20 ms were saved up, and each costs three times what was measured");
        assert!(gate.is_saturated());
        assert!(gate.refusal_budget_ns.load(Relaxed) <= 0);
    }
}
