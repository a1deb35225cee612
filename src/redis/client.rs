//! The one way to Redis: every call of a request passes here, where it is counted, held back, or made again.
//!
//! Guarantees that at most [`CALLS_MAX`] calls are in the worker's hands, that one which finds no connection waits for it
//! while the absence is short and fails at once when it is not, and that nothing is sent twice which may have been
//! executed, unless twice is the same as once.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::redis::availability::RedisAvailability;
use crate::redis::breakers::{BreakerStates, CallKind};
use crate::redis::connection::ActiveConnection;
use crate::redis::error::RedisError;
use crate::redis::transport::RedisTransport;
use crate::redis::{ClientInner, RedisClient, RedisStatus, connection};

/// Calls that may be under way or wait at the same time, per worker; more are refused at once. A call that waits holds
/// its request, some 10 KiB with its connection: 16,384 are about 160 MiB.
pub(super) const MAX_CALLS: usize = 16_384;

/// Whether twice is the same as once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepeatPolicy {
    Never,
    /// Where Redis notes calls.
    WhenDeduplicated,
    Always,
}

/// Pause before a call goes to a cluster again: the node's keeper learns of the loss first.
const CLUSTER_RETRY_PAUSE: Duration = Duration::from_millis(3);

impl RedisClient {
    /// A call of this kind, made once: it may have been executed when it fails.
    pub(super) async fn send_once<T>(
        &self,
        kind: CallKind,
        call: impl AsyncFnOnce(ActiveConnection) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let inner = &*self.inner;
        let _place = inner.acquire_call_permit()?;
        let live = inner.wait_for_connection().await?;
        inner.attempt(kind, call(live)).await
    }

    /// A call of this kind, made again if it was not sent, or if twice is the same as once and its connection was lost.
    pub(super) async fn send<T, F>(
        &self,
        kind: CallKind,
        call: impl Fn(ActiveConnection) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let again = if kind.is_repeatable() { RepeatPolicy::Always } else { RepeatPolicy::Never };
        self.send_with_policy(kind, again, |live, _| call(live)).await
    }

    /// The same; `again` says whether twice is the same as once. The call is told whether it may have been executed
    /// before.
    pub(super) async fn send_with_policy<T, F>(
        &self,
        kind: CallKind,
        again: RepeatPolicy,
        call: impl Fn(ActiveConnection, bool) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let _place = self.inner.acquire_call_permit()?;
        self.send_admitted(kind, again, call).await
    }

    /// The same for a call whose place is taken already.
    pub(super) async fn send_admitted<T, F>(
        &self,
        kind: CallKind,
        again: RepeatPolicy,
        call: impl Fn(ActiveConnection, bool) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let inner = &*self.inner;
        let (mut lost, mut end) = (None, None);
        loop {
            let live = match inner.wait_for_connection().await {
                Ok(live) if kind.is_large_read() => live.with_long_timeout(),
                Ok(live) => live,
                Err(error) => return Err(lost.unwrap_or(error)),
            };
            let (number, one) = (live.number, matches!(live.transport, RedisTransport::Standalone(..)));
            let repeatable =
                again == RepeatPolicy::Always || again == RepeatPolicy::WhenDeduplicated && live.deduplicates;
            let error = match inner.attempt(kind, call(live, lost.is_some())).await {
                Err(error @ RedisError::ConnectionLost { .. }) if repeatable => lost.insert(error).clone(),
                Err(error @ RedisError::Unavailable { .. }) if one => error,
                // A no to a repetition says nothing of the first time, which may have written.
                Err(error @ (RedisError::Unavailable { .. } | RedisError::Rejected { .. })) => {
                    return Err(lost.filter(|_| kind.writes()).unwrap_or(error));
                }
                answer => return answer,
            };
            // Connections that are made and lost at once must not hold it for ever.
            let end = *end.get_or_insert_with(|| Instant::now() + inner.reconnect_wait);
            if Instant::now() >= end || !inner.wait_until_replaced(number, one, end).await {
                return Err(lost.unwrap_or(error));
            }
        }
    }
}

impl RedisClient {
    /// Where the breakers of reads and writes stand.
    pub fn breaker_states(&self) -> BreakerStates {
        self.inner.breakers.states()
    }

    /// How long ago the server last answered anything, a PING included; `None` if it never did.
    pub fn time_since_response(&self) -> Option<Duration> {
        let answered_ms = self.inner.last_response_ms.load(Relaxed);
        let at = Duration::from_millis(answered_ms);
        (answered_ms > 0).then(|| self.inner.origin.elapsed().saturating_sub(at))
    }
}

/// A call's place among those in the worker's hands.
pub(super) struct CallPermit<'a>(&'a ClientInner);

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        self.0.calls_in_flight.fetch_sub(1, Relaxed);
    }
}

impl ClientInner {
    pub(super) fn acquire_call_permit(&self) -> Result<CallPermit<'_>, RedisError> {
        let place = CallPermit(self);
        match self.calls_in_flight.fetch_add(1, Relaxed) {
            calls if calls < MAX_CALLS => Ok(place),
            _ => Err(RedisError::unavailable(format!("{MAX_CALLS} calls wait already"))),
        }
    }

    /// The server has answered.
    pub(super) fn record_response(&self) {
        let now_ms = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_response_ms.store(now_ms.max(1), Relaxed);
    }

    async fn attempt<T>(
        &self,
        kind: CallKind,
        call: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let guard = self.breakers.acquire(kind)?;
        let answer = call.await;
        let failed = answer.as_ref().err();
        guard.record_outcome(failed);
        match failed {
            Some(error) if connection::suggests_failover(error) => self.failover_suspected.notify_one(),
            // An answer is an answer, be it a no.
            None | Some(RedisError::Rejected { .. }) => self.record_response(),
            Some(_) => {}
        }
        answer
    }

    /// Waits until a connection on which a call failed is no longer in use; whether it came to that in time.
    async fn wait_until_replaced(&self, number: u64, one: bool, end: Instant) -> bool {
        if !one {
            tokio::time::sleep(CLUSTER_RETRY_PAUSE).await;
            return true;
        }
        let mut gate = self.availability.subscribe();
        let left = gate
            .wait_for(|gate| !matches!(gate, RedisAvailability::Available(live) if live.number == number));
        timeout_at(end, left).await.is_ok()
    }
}

impl RedisStatus {
    /// Whether it can be used.
    pub fn is_up(&self) -> bool {
        *self == Self::Up
    }
}
