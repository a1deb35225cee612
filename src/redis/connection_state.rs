//! Whether there is a connection, as every caller of a worker sees it.
//!
//! Guarantees that a call which finds no connection waits for one only while the outage is short, that all waiting calls
//! continue or fail at the same moment, and that afterwards calls fail at once until there is a connection.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::redis::breakers::RedisBreakers;
use crate::redis::call_tracker::YIELDS_BEFORE_TIMEOUT;
use crate::redis::error::RedisError;
use crate::redis::outage_stats::ReconnectWaits;
use crate::redis::transport::{ActiveConnection, RedisTransport};

/// Longest wait for the first attempt to connect.
pub(super) const FIRST_ATTEMPT_TIMEOUT: Duration = Duration::from_millis(2500);

/// Whether Redis can be used.
///
/// ```
/// use regatta::RedisStatus;
///
/// assert!(!RedisStatus::Connecting.is_up());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisStatus {
    /// The first attempt has not ended yet.
    Connecting,
    /// Connected, and the server-side code is there.
    Up,
    /// Not usable; connecting is tried again for ever.
    Down {
        /// Why, in one short sentence without any password.
        reason: String,
    },
}

impl RedisStatus {
    /// Whether Redis can be used.
    pub fn is_up(&self) -> bool {
        *self == Self::Up
    }
}

/// What a call finds.
#[derive(Clone)]
pub(super) enum RedisAvailability {
    /// A connection to call on.
    Available(ActiveConnection),
    /// No connection, but the outage is still short: calls wait.
    Waiting {
        /// When the connection was lost, fell silent, or was first needed.
        since: Instant,
        /// Whether the connection is open but silent, and may answer again.
        silent: bool,
        /// The latest reason.
        cause: RedisError,
    },
    /// No connection, and calls fail at once; the reason, in a few words.
    Unavailable(Arc<str>),
}

/// How long calls wait for a connection: longer than the outage that requests should not notice, because connecting to a
/// server that is back takes time too.
fn reconnect_wait(patience: Duration) -> Duration {
    const CONNECTING: Duration = Duration::from_millis(500);
    patience + (patience / 4).min(CONNECTING)
}

/// The state of a worker's connection to Redis.
pub(super) struct ConnectionState {
    /// How long calls wait for a connection.
    pub(super) reconnect_wait: Duration,
    pub(super) waits: ReconnectWaits,
    pub(super) breakers: RedisBreakers,
    availability: watch::Sender<RedisAvailability>,
    status: watch::Sender<RedisStatus>,
    /// When the server last answered, ms since `origin`; 0: never.
    last_response_ms: AtomicU64,
    origin: Instant,
}

impl ConnectionState {
    /// A state in which the first attempt has not begun.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            reconnect_wait: reconnect_wait(patience),
            waits: ReconnectWaits::default(),
            breakers: RedisBreakers::new(),
            availability: watch::Sender::new(RedisAvailability::Unavailable("there is no connection".into())),
            status: watch::Sender::new(RedisStatus::Connecting),
            last_response_ms: AtomicU64::new(0),
            origin: Instant::now(),
        }
    }

    pub(super) fn status(&self) -> RedisStatus {
        self.status.borrow().clone()
    }

    /// Waits until the first attempt has ended, or for [`FIRST_ATTEMPT_TIMEOUT`].
    pub(super) async fn wait_for_first_attempt(&self) -> RedisStatus {
        let mut status = self.status.subscribe();
        let finished = status.wait_for(|status| *status != RedisStatus::Connecting);
        // After a timeout the status still says `Connecting`, which is the result then.
        let _ = tokio::time::timeout(FIRST_ATTEMPT_TIMEOUT, finished).await.is_ok();
        self.status()
    }

    /// Applies `read` to the connection in use without cloning it; every request calls this.
    pub(super) fn with_active<T>(&self, read: impl FnOnce(&ActiveConnection) -> T) -> Option<T> {
        match &*self.availability.borrow() {
            RedisAvailability::Available(active) => Some(read(active)),
            RedisAvailability::Waiting { .. } | RedisAvailability::Unavailable(_) => None,
        }
    }

    pub(super) fn active_connection(&self) -> Option<ActiveConnection> {
        self.with_active(Clone::clone)
    }

    /// The connection to call on; waits for one while the outage is short.
    ///
    /// # Errors
    /// `Unavailable` when the outage is no longer short; nothing was sent.
    pub(super) async fn wait_for_connection(&self) -> Result<ActiveConnection, RedisError> {
        match &*self.availability.borrow() {
            RedisAvailability::Available(active) => return Ok(active.clone()),
            RedisAvailability::Unavailable(reason) => return Err(RedisError::unavailable(&**reason)),
            RedisAvailability::Waiting { .. } => {}
        }
        let waited = self.waits.start();
        let mut availability = self.availability.subscribe();
        let decided = availability.wait_for(|now| !matches!(now, RedisAvailability::Waiting { .. })).await;
        drop(waited);
        match decided.as_deref() {
            Ok(RedisAvailability::Available(active)) => Ok(active.clone()),
            Ok(RedisAvailability::Unavailable(reason)) => Err(RedisError::unavailable(&**reason)),
            Ok(RedisAvailability::Waiting { .. }) | Err(_) => {
                Err(RedisError::unavailable("there is no connection"))
            }
        }
    }

    /// Waits while calls wait; the batch takes the connection that it is sent on later.
    ///
    /// # Errors
    /// As [`ConnectionState::wait_for_connection`].
    pub(super) async fn wait_while_held(&self) -> Result<(), RedisError> {
        match &*self.availability.borrow() {
            RedisAvailability::Available(_) => return Ok(()),
            RedisAvailability::Unavailable(reason) => return Err(RedisError::unavailable(&**reason)),
            RedisAvailability::Waiting { .. } => {}
        }
        Box::pin(self.wait_for_connection()).await.map(|_| ())
    }

    /// Waits until the connection with this number is no longer in use; false when that takes longer than until `end`.
    pub(super) async fn wait_until_replaced(&self, number: u64, end: Instant) -> bool {
        let mut availability = self.availability.subscribe();
        let replaced = availability
            .wait_for(|now| !matches!(now, RedisAvailability::Available(active) if active.number == number));
        timeout_at(end, replaced).await.is_ok()
    }

    /// A number that changes with the connection; in a cluster also with the map of slots and the state of any node.
    pub(super) fn connection_version(&self) -> u64 {
        let version = self.with_active(|active| match &active.transport {
            RedisTransport::Cluster(router) => router.change_count().wrapping_add(active.number),
            RedisTransport::Standalone(_) => active.number,
        });
        version.unwrap_or(u64::MAX)
    }

    /// Notes that the server has answered.
    pub(super) fn record_response(&self) {
        let now_ms = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_response_ms.store(now_ms.max(1), Relaxed);
    }

    /// How long ago the server last answered; `None` if it never did.
    pub(super) fn time_since_response(&self) -> Option<Duration> {
        let answered_ms = self.last_response_ms.load(Relaxed);
        let at = Duration::from_millis(answered_ms);
        (answered_ms > 0).then(|| self.origin.elapsed().saturating_sub(at))
    }

    /// A connection is ready; `write_rejection` is the server's error if it takes no writes.
    pub(super) fn set_up(&self, active: ActiveConnection, write_rejection: Option<&RedisError>) {
        self.breakers.on_connected(write_rejection);
        self.record_response();
        let before = self.availability.send_replace(RedisAvailability::Available(active));
        self.status.send_replace(RedisStatus::Up);
        match before {
            RedisAvailability::Waiting { since, .. } => {
                let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(ms, "Redis is reachable");
            }
            RedisAvailability::Available(_) | RedisAvailability::Unavailable(_) => {
                tracing::info!("Redis is reachable")
            }
        }
    }

    /// A silent connection answers again; no call was lost.
    pub(super) fn resume_after_silence(&self, active: &ActiveConnection) {
        self.record_response();
        self.availability.send_if_modified(|now| {
            let silent = matches!(now, RedisAvailability::Waiting { silent: true, .. });
            if silent {
                *now = RedisAvailability::Available(active.clone());
            }
            silent
        });
    }

    /// Usable in part: calls that need the missing part fail by themselves.
    pub(super) fn set_degraded(&self, active: ActiveConnection, error: &RedisError) {
        self.availability.send_replace(RedisAvailability::Available(active));
        self.log_down(error);
    }

    /// There has been no connection since `since`. Calls wait for one, up to `reconnect_wait`.
    pub(super) fn set_lost(self: &Arc<Self>, since: Instant, silent: bool, error: &RedisError) {
        let started = self.availability.send_if_modified(|now| match now {
            RedisAvailability::Available(_) => {
                *now = RedisAvailability::Waiting { since, silent, cause: error.clone() };
                true
            }
            // A silent connection has ended; the outage keeps its start.
            RedisAvailability::Waiting { silent: before, cause, .. } => {
                *before &= silent;
                *cause = error.clone();
                false
            }
            RedisAvailability::Unavailable(_) => false,
        });
        if started {
            tracing::info!(cause = %error, "Redis does not answer, requests wait for it: {error}");
            self.start_wait_timer(since, self.reconnect_wait);
        }
    }

    /// Lets calls wait for the worker's first connection.
    pub(super) fn expect_first_connection(self: &Arc<Self>) {
        let since = Instant::now();
        let cause = RedisError::unavailable("it has not answered yet");
        self.availability.send_replace(RedisAvailability::Waiting { since, silent: false, cause });
        // Also with a patience of zero: otherwise the first requests fail before an attempt could end.
        self.start_wait_timer(since, self.reconnect_wait.max(FIRST_ATTEMPT_TIMEOUT));
    }

    /// Ends all waits of an outage after `time`.
    fn start_wait_timer(self: &Arc<Self>, since: Instant, time: Duration) {
        let state = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(since + time).await;
            // The worker may have been stopped: replies that are already in the socket are read first.
            for _ in 0..YIELDS_BEFORE_TIMEOUT {
                tokio::task::yield_now().await;
            }
            state.stop_waiting(|waiting_since| waiting_since == since);
        });
    }

    /// Makes waiting calls fail if `applies` to the start of the outage.
    fn stop_waiting(&self, applies: impl Fn(Instant) -> bool) {
        let mut stopped = None;
        self.availability.send_if_modified(|now| match now {
            RedisAvailability::Waiting { since, cause, .. } if applies(*since) => {
                let cause = cause.clone();
                *now = RedisAvailability::Unavailable(cause.reason_text().into());
                stopped = Some(cause);
                true
            }
            RedisAvailability::Waiting { .. }
            | RedisAvailability::Available(_)
            | RedisAvailability::Unavailable(_) => false,
        });
        if let Some(cause) = stopped {
            self.log_down(&cause);
        }
    }

    /// An attempt to connect has failed. While calls wait nothing is logged, because the next attempt may succeed; a wrong
    /// configuration, or a patience of zero, ends the wait at once.
    pub(super) fn on_attempt_failed(&self, error: &RedisError) {
        let first = *self.status.borrow() == RedisStatus::Connecting;
        let mut unavailable = false;
        self.availability.send_if_modified(|now| {
            match now {
                RedisAvailability::Unavailable(reason) => {
                    (*reason, unavailable) = (error.reason_text().into(), true)
                }
                RedisAvailability::Waiting { cause, .. } => *cause = error.clone(),
                RedisAvailability::Available(_) => {}
            }
            false
        });
        if first || unavailable {
            self.log_down(error);
        }
        if error.is_misconfiguration() || self.reconnect_wait.is_zero() {
            self.stop_waiting(|_| true);
        }
    }

    /// Logs only when the status or its reason changes, not at every attempt.
    fn log_down(&self, error: &RedisError) {
        let reason = error.to_string();
        let down = RedisStatus::Down { reason: reason.clone() };
        if self.status.send_replace(down.clone()) != down {
            tracing::warn!(cause = %reason, "redis unavailable: {reason}");
        }
    }
}
