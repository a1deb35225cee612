//! How Redis stands, as all callers in a worker see it: the calls' gate, the health, the connection in use.
//!
//! Guarantees that a call which finds no connection waits for one only while the absence is short, that all that wait go
//! on or fail at the same moment, and that afterwards calls fail at once until a connection lives.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::redis::call_tracker::YIELDS_BEFORE_TIMEOUT;
use crate::redis::connection::ActiveConnection;
use crate::redis::error::RedisError;
use crate::redis::{ClientInner, FIRST_ATTEMPT_TIMEOUT, RedisStatus};

/// What a call finds.
#[derive(Clone)]
pub(super) enum RedisAvailability {
    /// A connection to call on.
    Available(ActiveConnection),
    /// None at this moment: the absence is short as yet, and until then calls wait.
    Waiting {
        /// When the connection was lost, fell silent, or was first wanted.
        since: Instant,
        /// Whether it is a connection that is silent and may go on.
        silent: bool,
        /// What was heard of it last.
        cause: RedisError,
    },
    /// None, and no call waits; why, in a few words.
    Unavailable(Arc<str>),
}

/// How long calls wait for a connection: somewhat longer than the absence that is to be invisible, because a server that
/// is back is connected to within that time.
pub(super) fn reconnect_wait(patience: Duration) -> Duration {
    const CONNECTING: Duration = Duration::from_millis(500);
    patience + (patience / 4).min(CONNECTING)
}

impl ClientInner {
    pub(super) fn active_connection(&self) -> Option<ActiveConnection> {
        match &*self.availability.borrow() {
            RedisAvailability::Available(live) => Some(live.clone()),
            RedisAvailability::Waiting { .. } | RedisAvailability::Unavailable(_) => None,
        }
    }

    /// The connection to call on; waits for one while the absence is short.
    ///
    /// # Errors
    /// `Unavailable` when it is not short any more; nothing was sent.
    pub(super) async fn wait_for_connection(&self) -> Result<ActiveConnection, RedisError> {
        match &*self.availability.borrow() {
            RedisAvailability::Available(live) => return Ok(live.clone()),
            RedisAvailability::Unavailable(reason) => return Err(RedisError::unavailable(&**reason)),
            RedisAvailability::Waiting { .. } => {}
        }
        let waited = self.reconnect_waits.start();
        let mut gate = self.availability.subscribe();
        let decided = gate.wait_for(|gate| !matches!(gate, RedisAvailability::Waiting { .. })).await;
        drop(waited);
        match decided.as_deref() {
            Ok(RedisAvailability::Available(live)) => Ok(live.clone()),
            Ok(RedisAvailability::Unavailable(reason)) => Err(RedisError::unavailable(&**reason)),
            Ok(RedisAvailability::Waiting { .. }) | Err(_) => {
                Err(RedisError::unavailable("there is no connection"))
            }
        }
    }

    /// A connection is ready; `refused` is what the server said if it takes no writes.
    pub(super) fn set_up(&self, live: ActiveConnection, refused: Option<&RedisError>) {
        self.breakers.on_connected(refused);
        self.record_response();
        let before = self.availability.send_replace(RedisAvailability::Available(live));
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

    /// A connection that was silent goes on; nothing was lost.
    pub(super) fn resume_after_silence(&self, live: &ActiveConnection) {
        self.record_response();
        self.availability.send_if_modified(|gate| {
            let silent = matches!(gate, RedisAvailability::Waiting { silent: true, .. });
            if silent {
                *gate = RedisAvailability::Available(live.clone());
            }
            silent
        });
    }

    /// Usable in part: what cannot be done fails by itself.
    pub(super) fn set_degraded(&self, live: ActiveConnection, error: &RedisError) {
        self.availability.send_replace(RedisAvailability::Available(live));
        self.log_down(error);
    }

    /// There is no connection, since this moment or longer. Calls wait for one, and after a time no more.
    pub(super) fn set_lost(self: &Arc<Self>, since: Instant, silent: bool, error: &RedisError) {
        let started = self.availability.send_if_modified(|gate| match gate {
            RedisAvailability::Available(_) => {
                *gate = RedisAvailability::Waiting { since, silent, cause: error.clone() };
                true
            }
            // The connection that was silent is gone for good; the absence is the same.
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

    /// Lets calls wait for the first connection of this worker's life.
    pub(super) fn expect_first_connection(self: &Arc<Self>) {
        let since = Instant::now();
        let cause = RedisError::unavailable("it has not answered yet");
        self.availability.send_replace(RedisAvailability::Waiting { since, silent: false, cause });
        // Even with a patience of zero, calls wait until the first attempt could end.
        self.start_wait_timer(since, self.reconnect_wait.max(FIRST_ATTEMPT_TIMEOUT));
    }

    /// One timer for all that wait.
    fn start_wait_timer(self: &Arc<Self>, since: Instant, time: Duration) {
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(since + time).await;
            // The worker may have stood still: what is there to be read is read first.
            for _ in 0..YIELDS_BEFORE_TIMEOUT {
                tokio::task::yield_now().await;
            }
            inner.stop_waiting(|waiting_since, _| waiting_since == since);
        });
    }

    /// Lets no call wait any longer, if what is held is held since such a time and for such a cause.
    fn stop_waiting(&self, which: impl Fn(Instant, &RedisError) -> bool) {
        let mut stopped = None;
        self.availability.send_if_modified(|gate| match gate {
            RedisAvailability::Waiting { since, cause, .. } if which(*since, cause) => {
                let cause = cause.clone();
                *gate = RedisAvailability::Unavailable(cause.reason_text().into());
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

    /// An attempt to connect has failed. While calls wait nothing is said, because the next one may succeed; unless the
    /// configuration is wrong, which no waiting mends, or calls are not to wait at all.
    pub(super) fn on_attempt_failed(&self, error: &RedisError) {
        let first = *self.status.borrow() == RedisStatus::Connecting;
        let mut shut = false;
        self.availability.send_if_modified(|gate| {
            match gate {
                RedisAvailability::Unavailable(reason) => {
                    (*reason, shut) = (error.reason_text().into(), true)
                }
                RedisAvailability::Waiting { cause, .. } => *cause = error.clone(),
                RedisAvailability::Available(_) => {}
            }
            false
        });
        if first || shut {
            self.log_down(error);
        }
        if error.is_misconfiguration() || self.reconnect_wait.is_zero() {
            self.stop_waiting(|_, _| true);
        }
    }

    /// Logged when the state or its reason changes, not at every attempt.
    pub(super) fn log_down(&self, error: &RedisError) {
        let reason = error.to_string();
        let before = self.status.send_replace(RedisStatus::Down { reason: reason.clone() });
        if before != (RedisStatus::Down { reason: reason.clone() }) {
            tracing::warn!(cause = %reason, "Redis is not usable: {reason}");
        }
    }
}
