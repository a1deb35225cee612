//! What a worker's claims, executions and watchers share.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};

use crate::config::settings::TasksConfig;
use crate::redis::notifications::{ChannelSubscriptionGuard, NotificationChannel};
use crate::redis::{RedisClient, RedisError};
use crate::sys::{clock, random};
use crate::tasks::context::TaskContext;
use crate::tasks::jobs::JobTable;
use crate::tasks::watch::TaskWatchers;
use crate::tasks::{NextClaim, TASK_CHANGED, TASK_QUEUED, TaskId, TaskPolicy, TaskState};

/// A task that was queued for this long is dead: no running program has its job.
pub(super) const QUEUE_WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Time between two claims while no notification can wake this worker, and after a failed one. Otherwise Redis returns
/// the delay, because notifications may be lost, and an overdue task causes none.
pub(super) const POLL_INTERVAL: Duration = clock::TICK.saturating_mul(10);

/// Checks in a row without a failed call before a task is reclaimed. While Redis was unavailable no lease was renewed:
/// the worker that runs a task must have the first chance afterwards.
pub(super) const QUIET_CHECKS: u32 = 3;

/// Delay before the second attempt where a kind has none of its own; the longest is a lease.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);

/// What holds for a kind of tasks: its options, and the settings where it has none.
#[derive(Debug, Clone, Copy)]
pub(super) struct KindSettings {
    pub(super) policy: TaskPolicy,
    /// A task that runs for longer has failed.
    pub(super) timeout: Duration,
    /// First and longest delay between two attempts.
    pub(super) backoff: (Duration, Duration),
}

/// What a worker does with tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum IntakeState {
    /// Tasks are claimed.
    Accepting,
    /// No task is claimed; running ones may finish.
    Draining,
    /// Running tasks are released.
    Releasing,
}

/// The state behind a worker's task queue.
pub(super) struct TaskService {
    pub(super) redis: RedisClient,
    pub(super) policy: TaskPolicy,
    /// A task that runs for longer has failed, where its kind has no time of its own.
    timeout: Duration,
    /// The name of this worker that operators see.
    pub(super) worker: String,
    jobs: RwLock<JobTable>,
    /// What keeps the connection of a program that only queues tasks; none: only kinds that have a job here are queued.
    pub(super) connection: Option<Arc<dyn Any + Send + Sync>>,
    /// Most executions at once.
    pub(super) running_max: usize,
    /// One for each execution.
    pub(super) permits: Arc<Semaphore>,
    /// Notified when there may be a task to claim.
    pub(super) wake: Notify,
    /// Random name of the channel on which only this worker is notified.
    pub(super) worker_channel: String,
    /// When to claim without a notification.
    next_check: Mutex<Duration>,
    pub(super) intake: watch::Sender<IntakeState>,
    /// Claims and executions in progress.
    pub(super) active: watch::Sender<usize>,
    /// Jobs that go on although their context is cancelled.
    pub(super) hung: watch::Sender<usize>,
    running_tasks: Mutex<HashMap<TaskId, TaskContext>>,
    pub(super) watchers: Arc<TaskWatchers>,
    changes_subscribed: AtomicBool,
    /// Whether a call failed since the last check, and how many checks in a row saw none.
    had_failure: AtomicBool,
    quiet_checks: AtomicU32,
}

/// Counts as active until it is dropped.
pub(super) struct ActiveGuard(watch::Sender<usize>);

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.send_modify(|active| *active -= 1);
    }
}

impl TaskService {
    pub(super) fn new(redis: RedisClient, settings: &TasksConfig, worker: &str) -> Self {
        let policy = TaskPolicy {
            queue_max: settings.max_queued,
            max_attempts: settings.max_attempts,
            // Twice the longest wait, so that an overdue task is found before its record expires; and it may run then.
            max_lifetime: QUEUE_WAIT_MAX * 2 + settings.timeout,
            retention: settings.retention,
            lease: settings.lease,
        };
        let channel = random::number().unwrap_or_else(|_| u64::from(std::process::id()));
        Self {
            redis,
            policy,
            timeout: settings.timeout,
            worker: worker.to_owned(),
            jobs: RwLock::default(),
            connection: None,
            running_max: settings.concurrency,
            permits: Arc::new(Semaphore::new(settings.concurrency)),
            wake: Notify::new(),
            worker_channel: format!("{channel:016x}"),
            next_check: Mutex::new(clock::monotonic()),
            intake: watch::Sender::new(IntakeState::Accepting),
            active: watch::Sender::new(0),
            hung: watch::Sender::new(0),
            running_tasks: Mutex::default(),
            watchers: Arc::default(),
            changes_subscribed: AtomicBool::new(false),
            had_failure: AtomicBool::new(false),
            quiet_checks: AtomicU32::new(QUIET_CHECKS),
        }
    }

    pub(super) fn jobs(&self) -> RwLockReadGuard<'_, JobTable> {
        self.jobs.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn jobs_mut(&self) -> RwLockWriteGuard<'_, JobTable> {
        self.jobs.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registered kinds.
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        self.jobs().keys().copied().collect()
    }

    pub(super) fn settings_of(&self, kind: &str) -> KindSettings {
        let options = self.jobs().get(kind).map(|registered| registered.options).unwrap_or_default();
        let mut policy = self.policy;
        let timeout = options.timeout.unwrap_or(self.timeout);
        policy.max_lifetime += timeout.saturating_sub(self.timeout);
        policy.max_attempts = options.attempts.map_or(policy.max_attempts, u64::from);
        policy.retention = options.keep.unwrap_or(policy.retention);
        // Redis holds a task back for a lease at most.
        let (first, most) = options.backoff.unwrap_or((RETRY_DELAY_MIN, policy.lease));
        let backoff = (first.min(policy.lease), most.min(policy.lease));
        KindSettings { policy, timeout, backoff }
    }

    pub(super) fn running_tasks(&self) -> MutexGuard<'_, HashMap<TaskId, TaskContext>> {
        self.running_tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves on to a later state; an earlier one changes nothing.
    pub(super) fn set_intake(&self, state: IntakeState) {
        self.intake.send_if_modified(|last| {
            let is_later = state > *last;
            *last = state.max(*last);
            is_later
        });
    }

    pub(super) fn is_draining(&self) -> bool {
        *self.intake.borrow() >= IntakeState::Draining
    }

    pub(super) fn activate(&self) -> ActiveGuard {
        self.active.send_modify(|active| *active += 1);
        ActiveGuard(self.active.clone())
    }

    /// Returns when no claim or execution is in progress.
    pub(super) async fn wait_until_idle(&self) {
        let mut active = self.active.subscribe();
        // The sender is in `self`, so the channel is open.
        let _ = active.wait_for(|active| *active == 0).await.is_ok();
    }

    pub(super) fn next_check_at(&self) -> Duration {
        *self.next_check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn schedule_check(&self, delay: Duration) {
        let delay = if delay.is_zero() { delay } else { clock::after_tick(delay) };
        *self.next_check.lock().unwrap_or_else(PoisonError::into_inner) = clock::monotonic() + delay;
    }

    /// The delay that Redis returned; a shorter one while no notification can wake this worker.
    pub(super) fn check_delay(&self, delay: Duration) -> Duration {
        match self.redis.notifications_complete_since() {
            Some(_) => delay,
            None => delay.min(POLL_INTERVAL),
        }
    }

    /// A permit is free, and Redis has returned what to claim next.
    pub(super) fn on_permit_freed(&self, next: NextClaim) {
        if next.has_more {
            self.wake.notify_one();
        } else if self.next_check_at() <= clock::monotonic() {
            self.schedule_check(self.check_delay(next.pause));
        }
    }

    /// A call failed: for some checks no task is reclaimed.
    pub(super) fn record_failure(&self, what: &str, error: &RedisError) {
        self.reset_quiet_checks();
        tracing::debug!(%error, "{what}: {error}");
    }

    pub(super) fn reset_quiet_checks(&self) {
        self.had_failure.store(true, Relaxed);
        self.quiet_checks.store(0, Relaxed);
    }

    /// One check is over.
    pub(super) fn update_quiet_checks(&self) {
        let quiet = match self.had_failure.swap(false, Relaxed) {
            true => 0,
            false => self.quiet_checks.load(Relaxed).saturating_add(1),
        };
        self.quiet_checks.store(quiet, Relaxed);
    }

    /// Whether the tasks of silent workers may be reclaimed.
    pub(super) fn may_reclaim(&self) -> bool {
        self.quiet_checks.load(Relaxed) >= QUIET_CHECKS
    }

    /// Subscribes, once, to the channel on which workers of earlier releases announce changes to all.
    pub(super) fn subscribe_changes(self: &Arc<Self>) {
        if self.changes_subscribed.swap(true, Relaxed) {
            return;
        }
        let service = Arc::downgrade(self);
        let handler = move |text: &str| {
            if let Some(service) = service.upgrade() {
                service.on_task_changed(text);
            }
        };
        self.redis.on_notification(TASK_CHANGED, Arc::new(handler));
    }

    /// Subscribes to the channel on which workers of earlier releases announce queued tasks to all.
    pub(super) fn subscribe_queued(self: &Arc<Self>) {
        let service = Arc::downgrade(self);
        let handler = move |kind: &str| {
            if let Some(service) = service.upgrade() {
                service.on_task_queued(kind);
            }
        };
        self.redis.on_notification(TASK_QUEUED, Arc::new(handler));
    }

    /// Subscribes to this worker's own channel for as long as the returned guard lives.
    pub(super) fn subscribe_worker_channel(self: &Arc<Self>) -> ChannelSubscriptionGuard {
        let service = Arc::downgrade(self);
        let handler = move |text: &str| {
            let Some(service) = service.upgrade() else { return };
            let mut letters = text.chars();
            match (letters.next(), letters.next()) {
                (Some(TASK_QUEUED), Some(' ')) => service.on_task_queued(letters.as_str()),
                (Some(TASK_CHANGED), Some(' ')) => service.on_task_changed(letters.as_str()),
                _ => {}
            }
        };
        self.redis.subscribe(NotificationChannel::worker(&self.worker_channel), Arc::new(handler))
    }

    /// A notification: an id, a space and a state.
    fn on_task_changed(&self, text: &str) {
        let Some((id, state)) = text.split_once(' ') else { return };
        let Ok(id) = id.parse() else { return };
        // Anyone may send notifications, so this one stops no job: the execution checks in Redis.
        if state == TaskState::Cancelled.name()
            && let Some(context) = self.running_tasks().get(&id)
        {
            context.request_check();
        }
        self.watchers.notify(id);
    }

    /// A notification: a task of this kind is queued.
    fn on_task_queued(&self, kind: &str) {
        if self.jobs().contains_key(kind) {
            self.wake.notify_one();
        }
    }
}
