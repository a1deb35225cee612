//! The one way to Redis: every call of a request passes here, where it is bounded, timed, held back or made again.
//!
//! Guarantees that no call waits longer than its patience, that at most [`IN_FLIGHT_MAX`] do, and that nothing is sent
//! twice which may have been executed, unless twice is the same as once.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::redis::Health;
use crate::redis::Inner;
use crate::redis::Redis;
use crate::redis::error::Error;
use crate::redis::lanes::Kind;
use crate::redis::lanes::LaneStates;
use crate::redis::link;
use crate::redis::link::Caller;
use crate::redis::link::Live;

/// Calls that may wait for Redis at the same time, per worker; more are refused at once.
pub(super) const IN_FLIGHT_MAX: usize = 512;

/// A call that took more than this share of its patience was slow, in percent.
const SLOW: u32 = 80;

/// A rest of patience below this is not worth another attempt.
const REST_MIN: Duration = Duration::from_millis(2);

impl Redis {
    /// A call that writes on a request's way, made once: it may have been executed when it fails.
    pub(super) async fn guard<T>(
        &self,
        call: impl AsyncFnOnce(Live) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.guard_as(Kind::Begin, call).await
    }

    /// A call of this kind, made once.
    pub(super) async fn guard_as<T>(
        &self,
        kind: Kind,
        call: impl AsyncFnOnce(Live) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let inner = &*self.inner;
        let _permit = inner.permits.try_acquire().map_err(|_| crowded())?;
        inner.attempt(kind, Instant::now() + inner.patience(kind), call).await
    }

    /// A call that may be made twice: once more, if the retry budget allows, when its connection is lost.
    pub(super) async fn guard_repeatable<T, F>(
        &self,
        kind: Kind,
        call: impl Fn(Live) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let inner = &*self.inner;
        let _permit = inner.permits.try_acquire().map_err(|_| crowded())?;
        let deadline = Instant::now() + inner.patience(kind);
        let first = inner.attempt(kind, deadline, async |live| call(live).await).await;
        match first {
            Err(Error::Lost { .. }) if kind.is_repeatable() && inner.lanes.may_retry() => {
                inner.attempt(kind, deadline, async |live| call(live).await).await
            }
            other => other,
        }
    }
}

impl Redis {
    /// Where the breakers of reads and writes stand.
    pub fn lanes(&self) -> LaneStates {
        self.inner.lanes.states()
    }

    /// How long ago the server last answered anything, a PING included; `None` if it never did.
    pub fn silent_for(&self) -> Option<Duration> {
        let answered_ms = self.inner.answered_ms.load(Relaxed);
        let at = Duration::from_millis(answered_ms);
        (answered_ms > 0).then(|| self.inner.origin.elapsed().saturating_sub(at))
    }
}

fn crowded() -> Error {
    Error::unavailable(format!("{IN_FLIGHT_MAX} calls wait already"))
}

impl Inner {
    fn lost_at(&self) -> Option<Instant> {
        *self.lost_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_lost_at(&self, at: Option<Instant>) {
        *self.lost_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// The server has answered.
    pub(super) fn answered(&self) {
        let now_ms = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.answered_ms.store(now_ms.max(1), Relaxed);
    }

    pub(super) fn patience(&self, kind: Kind) -> Duration {
        if kind.is_patient() { self.commit_timeout } else { self.command_timeout }
    }

    async fn attempt<T>(
        &self,
        kind: Kind,
        deadline: Instant,
        call: impl AsyncFnOnce(Live) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut live = self.connection(deadline).await?;
        let ticket = self.lanes.enter(kind, live.number)?;
        let begun = Instant::now();
        let (patience, left) = (self.patience(kind), deadline.saturating_duration_since(begun));
        if kind.is_patient() || left + REST_MIN < patience {
            live.caller = Caller::new(&live.client, left);
        }
        // Its connection was there: what the client calls unreachable was sent, or may have been.
        let answer = call(live).await.map_err(|error| match error {
            Error::Unavailable { reason } => Error::Lost { reason },
            other => other,
        });
        let failed = answer.as_ref().err();
        ticket.settle(failed, begun.elapsed() * 100 > patience * SLOW);
        match failed {
            Some(error) if link::doubts(error) => self.doubt.notify_one(),
            // An answer is an answer, be it a no.
            None | Some(Error::Refused { .. }) => self.answered(),
            Some(_) => {}
        }
        answer
    }

    /// The connection; one that was lost just now is most likely back within the time that an answer may take.
    async fn connection(&self, deadline: Instant) -> Result<Live, Error> {
        if let Some(live) = self.live() {
            return Ok(live);
        }
        let none = || Error::unavailable("there is no connection");
        let Some(lost_at) = self.lost_at() else { return Err(none()) };
        let deadline = deadline.min(lost_at + self.command_timeout);
        // In a long outage nobody waits: its first moment only may be one connection's.
        if deadline < Instant::now() + REST_MIN {
            return Err(none());
        }
        let mut health = self.health.subscribe();
        let back = health.wait_for(|health| *health == Health::Up);
        // Either way the connection itself says how things are.
        let _ = timeout_at(deadline, back).await.is_ok();
        self.live().ok_or_else(none)
    }
}

impl Health {
    /// Whether it can be used.
    pub fn is_up(&self) -> bool {
        *self == Self::Up
    }
}
