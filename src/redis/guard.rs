//! The one way to Redis: every call of a request passes here, where it is counted, held back, or made again.
//!
//! Guarantees that at most [`CALLS_MAX`] calls are in the worker's hands, that one which finds no connection waits for it
//! while the absence is short and fails at once when it is not, and that nothing is sent twice which may have been
//! executed, unless twice is the same as once.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::redis::Health;
use crate::redis::Inner;
use crate::redis::Redis;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::lanes::Kind;
use crate::redis::lanes::LaneStates;
use crate::redis::link;
use crate::redis::link::Live;
use crate::redis::standing::Gate;

/// Calls that may be under way or wait at the same time, per worker; more are refused at once. A call that waits holds
/// its request, some 10 KiB with its connection: 16,384 are about 160 MiB.
pub(super) const CALLS_MAX: usize = 16_384;

/// Whether twice is the same as once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// Where Redis notes calls.
    Noted,
    Always,
}

/// Pause before a call goes to a cluster again: the node's keeper learns of the loss first.
const AGAIN: Duration = Duration::from_millis(3);

impl Redis {
    /// A call of this kind, made once: it may have been executed when it fails.
    pub(super) async fn guard_once<T>(
        &self,
        kind: Kind,
        call: impl AsyncFnOnce(Live) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let inner = &*self.inner;
        let _place = inner.place()?;
        let live = inner.connection().await?;
        inner.attempt(kind, call(live)).await
    }

    /// A call of this kind, made again if it was not sent, or if twice is the same as once and its connection was lost.
    pub(super) async fn guard_as<T, F>(&self, kind: Kind, call: impl Fn(Live) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let again = if kind.is_repeatable() { Again::Always } else { Again::Never };
        self.guard_counted(kind, again, |live, _| call(live)).await
    }

    /// The same; `again` says whether twice is the same as once. The call is told whether it may have been executed
    /// before.
    pub(super) async fn guard_counted<T, F>(
        &self,
        kind: Kind,
        again: Again,
        call: impl Fn(Live, bool) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let _place = self.inner.place()?;
        self.guard_again(kind, again, call).await
    }

    /// The same for a call whose place is taken already.
    pub(super) async fn guard_again<T, F>(
        &self,
        kind: Kind,
        again: Again,
        call: impl Fn(Live, bool) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let inner = &*self.inner;
        let (mut lost, mut end) = (None, None);
        loop {
            let live = match inner.connection().await {
                Ok(live) if kind.is_long() => live.long(),
                Ok(live) => live,
                Err(error) => return Err(lost.unwrap_or(error)),
            };
            let (number, one) = (live.number, matches!(live.caller, Caller::One(..)));
            let repeatable = again == Again::Always || again == Again::Noted && live.notes;
            let error = match inner.attempt(kind, call(live, lost.is_some())).await {
                Err(error @ Error::Lost { .. }) if repeatable => lost.insert(error).clone(),
                Err(error @ Error::Unavailable { .. }) if one => error,
                // A no to a repetition says nothing of the first time, which may have written.
                Err(error @ (Error::Unavailable { .. } | Error::Refused { .. })) => {
                    return Err(lost.filter(|_| kind.writes()).unwrap_or(error));
                }
                answer => return answer,
            };
            // Connections that are made and lost at once must not hold it for ever.
            let end = *end.get_or_insert_with(|| Instant::now() + inner.hold);
            if Instant::now() >= end || !inner.leaves(number, one, end).await {
                return Err(lost.unwrap_or(error));
            }
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

/// A call's place among those in the worker's hands.
pub(super) struct Place<'a>(&'a Inner);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

impl Inner {
    pub(super) fn place(&self) -> Result<Place<'_>, Error> {
        let place = Place(self);
        match self.calls.fetch_add(1, Relaxed) {
            calls if calls < CALLS_MAX => Ok(place),
            _ => Err(Error::unavailable(format!("{CALLS_MAX} calls wait already"))),
        }
    }

    /// The server has answered.
    pub(super) fn answered(&self) {
        let now_ms = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.answered_ms.store(now_ms.max(1), Relaxed);
    }

    async fn attempt<T>(&self, kind: Kind, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let ticket = self.lanes.enter(kind)?;
        let answer = call.await;
        let failed = answer.as_ref().err();
        ticket.settle(failed);
        match failed {
            Some(error) if link::doubts(error) => self.doubt.notify_one(),
            // An answer is an answer, be it a no.
            None | Some(Error::Refused { .. }) => self.answered(),
            Some(_) => {}
        }
        answer
    }

    /// Waits until a connection on which a call failed is no longer in use; whether it came to that in time.
    async fn leaves(&self, number: u64, one: bool, end: Instant) -> bool {
        if !one {
            tokio::time::sleep(AGAIN).await;
            return true;
        }
        let mut gate = self.gate.subscribe();
        let left = gate.wait_for(|gate| !matches!(gate, Gate::Open(live) if live.number == number));
        timeout_at(end, left).await.is_ok()
    }
}

impl Health {
    /// Whether it can be used.
    pub fn is_up(&self) -> bool {
        *self == Self::Up
    }
}
