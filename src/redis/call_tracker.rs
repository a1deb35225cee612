//! The calls of one connection: how many are under way, what ends them, and the watch for silence.
//!
//! A call has no deadline of its own. It ends with its reply or with the connection: its failure, or its silence, which
//! is judged for all calls together. So a call that waits behind others does not count as unanswered, and no call costs
//! a timer.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit, TryAcquireError, watch};
use tokio::time::Instant;

use crate::redis::error::RedisError;
use crate::redis::silence_detector::{SilenceCheck, SilenceDetector};
use crate::sys::clock;

/// Calls under way at once on one connection; more wait in order. It bounds the burst when Redis is back, and what may
/// be executed although its caller got an error.
pub(super) const MAX_CALLS_IN_FLIGHT: usize = 512;

/// Silence timeout while a connection is prepared, or while a call is under way whose reply may be large.
pub(super) const LONG_RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Passes through the run queue before an overdue reply counts as missing. Before each the sockets are polled: in the
/// first pass the client writes what was queued, in the second it reads replies, in the third they reach their callers.
/// One more, because the watch may run before the client in its pass.
pub(super) const YIELDS_BEFORE_TIMEOUT: usize = 4;

/// The calls of one connection.
pub(super) struct CallTracker {
    origin: Instant,
    permits: Semaphore,
    silence: Mutex<SilenceDetector>,
    /// Whether the connection is silent now.
    silent: watch::Sender<bool>,
    /// Notified when a call is sent while the watch is idle.
    call_sent: Notify,
    /// Why the connection has ended.
    close_reason: Mutex<Option<String>>,
    closed: Notify,
}

impl fmt::Debug for CallTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("silence", &self.lock()).finish_non_exhaustive()
    }
}

impl CallTracker {
    /// A connection without calls; `limit` is the silence timeout.
    pub(super) fn new(limit: Duration) -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            permits: Semaphore::new(MAX_CALLS_IN_FLIGHT),
            silence: Mutex::new(SilenceDetector::new(limit, LONG_RESPONSE_TIMEOUT)),
            silent: watch::Sender::new(false),
            call_sent: Notify::new(),
            close_reason: Mutex::new(None),
            closed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, SilenceDetector> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Makes one call, in its turn; `long` if its reply may be large.
    ///
    /// # Errors
    /// `Unavailable` when the connection ended before the call was sent, `ConnectionLost` when it did after; otherwise
    /// the call's own.
    pub(super) async fn call<T>(
        &self,
        long: bool,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        // Registered before the state is read, so that an end in between is not missed.
        let mut closed = pin!(self.closed.notified());
        closed.as_mut().enable();
        if let Some(reason) = self.close_reason() {
            return Err(RedisError::unavailable(reason));
        }
        let _turn = tokio::select! {
            biased;
            turn = self.acquire_permit() => turn?,
            () = closed.as_mut() => return Err(RedisError::unavailable(self.close_reason().unwrap_or_default())),
        };
        let call = OutstandingCall::start(self, long);
        tokio::select! {
            biased;
            answer = work => match answer {
                // It was handed to the client: whether it was executed is unknown.
                Err(RedisError::Unavailable { reason }) => Err(RedisError::ConnectionLost { reason }),
                answer => {
                    call.complete();
                    answer
                }
            },
            () = closed => Err(RedisError::ConnectionLost { reason: self.close_reason().unwrap_or_default() }),
        }
    }

    async fn acquire_permit(&self) -> Result<SemaphorePermit<'_>, RedisError> {
        match self.permits.try_acquire() {
            Ok(turn) => Ok(turn),
            Err(TryAcquireError::NoPermits) => {
                self.permits.acquire().await.map_err(|_| RedisError::unavailable("the connection has ended"))
            }
            Err(TryAcquireError::Closed) => Err(RedisError::unavailable("the connection has ended")),
        }
    }

    fn close_reason(&self) -> Option<String> {
        self.close_reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection has ended: every call on it fails now. Only the first reason counts.
    pub(super) fn close(&self, reason: &str) {
        self.close_reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| reason.to_owned());
        self.permits.close();
        self.closed.notify_waiters();
    }

    /// Changes when a silence begins or ends.
    pub(super) fn silence_changes(&self) -> watch::Receiver<bool> {
        self.silent.subscribe()
    }

    /// Since when calls wait for a reply.
    pub(super) fn waiting_since(&self) -> Instant {
        self.origin + self.lock().waiting_since()
    }
}

/// One call that is under way. Dropped without a reply it counts as abandoned.
struct OutstandingCall<'a> {
    tracker: &'a CallTracker,
    long: bool,
    answered: bool,
}

impl<'a> OutstandingCall<'a> {
    fn start(tracker: &'a CallTracker, long: bool) -> Self {
        if tracker.lock().on_call_sent(long, tracker.now()) {
            tracker.call_sent.notify_one();
        }
        Self { tracker, long, answered: false }
    }

    fn complete(mut self) {
        self.answered = true;
        if self.tracker.lock().on_response(self.long, self.tracker.now()) {
            self.tracker.silent.send_replace(false);
        }
    }
}

impl Drop for OutstandingCall<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.tracker.lock().on_call_dropped(self.long);
        }
    }
}

/// Watches for silence until the connection ends. It must be a task of its own: only then do its yields let the
/// client's task run.
pub(super) async fn watch_for_silence(tracker: Arc<CallTracker>) {
    let mut silent = tracker.silence_changes();
    loop {
        let check = tracker.lock().check(tracker.now());
        match check {
            SilenceCheck::Idle => tracker.call_sent.notified().await,
            // At a tick: one wake-up and not two for a call on an idle connection, whose reply has arrived by then.
            SilenceCheck::At(due) => {
                tokio::time::sleep(clock::after_tick(due.saturating_sub(tracker.now()))).await
            }
            SilenceCheck::Overdue(answers) => {
                for _ in 0..YIELDS_BEFORE_TIMEOUT {
                    tokio::task::yield_now().await;
                }
                if tracker.lock().confirm_silence(answers) {
                    tracker.silent.send_replace(true);
                    // The connection's owner decides what a silence means; a reply ends it.
                    let _ = silent.wait_for(|silent| !silent).await.is_ok();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(250);

    fn watched() -> Arc<CallTracker> {
        let tracker = CallTracker::new(LIMIT);
        tokio::spawn(watch_for_silence(Arc::clone(&tracker)));
        tracker
    }

    async fn after(time: Duration) -> Result<u8, RedisError> {
        tokio::time::sleep(time).await;
        Ok(7)
    }

    #[tokio::test]
    async fn calls_beyond_the_bound_wait_and_none_is_rejected() {
        let tracker = watched();
        let calls: Vec<_> = (0..6000)
            .map(|_| Arc::clone(&tracker))
            .map(|tracker| {
                tokio::spawn(async move { tracker.call(false, after(Duration::from_millis(20))).await })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap(), Ok(7));
        }
        // Twelve batches of 512 calls, and never a silence.
        assert!(!*tracker.silence_changes().borrow());
    }

    #[tokio::test]
    async fn a_silence_is_reported_once_and_ends_with_a_response_that_loses_nothing() {
        let tracker = watched();
        let slow = Arc::clone(&tracker);
        let call = tokio::spawn(async move { slow.call(false, after(Duration::from_secs(1))).await });
        let (started, mut silences) = (Instant::now(), tracker.silence_changes());
        silences.wait_for(|silent| *silent).await.unwrap();
        assert!(started.elapsed() >= LIMIT);
        silences.wait_for(|silent| !silent).await.unwrap();
        assert_eq!(call.await.unwrap(), Ok(7));
    }

    #[tokio::test]
    async fn a_lost_connection_fails_sent_calls_as_unknown_and_waiting_calls_as_never_sent() {
        let tracker = watched();
        let call =
            |tracker: Arc<CallTracker>| async move { tracker.call(false, std::future::pending::<_>()).await };
        let calls: Vec<_> =
            (0..MAX_CALLS_IN_FLIGHT + 3).map(|_| tokio::spawn(call(Arc::clone(&tracker)))).collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        tracker.close("reset");
        let mut unsent = 0;
        for call in calls {
            let answer: Result<(), RedisError> = call.await.unwrap();
            match answer {
                Err(RedisError::Unavailable { .. }) => unsent += 1,
                other => assert_eq!(other, Err(RedisError::ConnectionLost { reason: "reset".to_owned() })),
            }
        }
        assert_eq!(unsent, 3);
        let late: Result<(), RedisError> = call(Arc::clone(&tracker)).await;
        assert_eq!(late, Err(RedisError::unavailable("reset")));
    }
}
