//! How Redis stands, as all callers in a worker see it: the calls' gate, the health, the connection in use.
//!
//! Guarantees that a call which finds no connection waits for one only while the absence is short, that all that wait go
//! on or fail at the same moment, and that afterwards calls fail at once until a connection lives.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::redis::FIRST_ATTEMPT_MAX;
use crate::redis::Health;
use crate::redis::Inner;
use crate::redis::error::Error;
use crate::redis::line::PASSES;
use crate::redis::link::Live;

/// What a call finds.
#[derive(Clone)]
pub(super) enum Gate {
    /// A connection to call on.
    Open(Live),
    /// None at this moment: the absence is short as yet, and until then calls wait.
    Held {
        /// When the connection was lost, fell silent, or was first wanted.
        since: Instant,
        /// Whether it is a connection that is silent and may go on.
        silent: bool,
        /// What was heard of it last.
        cause: Error,
    },
    /// None, and no call waits; why, in a few words.
    Shut(Arc<str>),
}

/// How long calls wait for a connection: somewhat longer than the absence that is to be invisible, because a server that
/// is back is connected to within that time.
pub(super) fn hold(patience: Duration) -> Duration {
    const CONNECTING: Duration = Duration::from_millis(500);
    patience + (patience / 4).min(CONNECTING)
}

impl Inner {
    pub(super) fn live(&self) -> Option<Live> {
        match &*self.gate.borrow() {
            Gate::Open(live) => Some(live.clone()),
            Gate::Held { .. } | Gate::Shut(_) => None,
        }
    }

    /// The connection to call on; waits for one while the absence is short.
    ///
    /// # Errors
    /// `Unavailable` when it is not short any more; nothing was sent.
    pub(super) async fn connection(&self) -> Result<Live, Error> {
        match &*self.gate.borrow() {
            Gate::Open(live) => return Ok(live.clone()),
            Gate::Shut(reason) => return Err(Error::unavailable(&**reason)),
            Gate::Held { .. } => {}
        }
        let waited = self.waits.begin();
        let mut gate = self.gate.subscribe();
        let decided = gate.wait_for(|gate| !matches!(gate, Gate::Held { .. })).await;
        drop(waited);
        match decided.as_deref() {
            Ok(Gate::Open(live)) => Ok(live.clone()),
            Ok(Gate::Shut(reason)) => Err(Error::unavailable(&**reason)),
            Ok(Gate::Held { .. }) | Err(_) => Err(Error::unavailable("there is no connection")),
        }
    }

    /// A connection is ready; `refused` is what the server said if it takes no writes.
    pub(super) fn up(&self, live: Live, refused: Option<&Error>) {
        self.lanes.connected(refused);
        self.answered();
        let before = self.gate.send_replace(Gate::Open(live));
        self.health.send_replace(Health::Up);
        match before {
            Gate::Held { since, .. } => {
                let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(ms, "Redis is reachable");
            }
            Gate::Open(_) | Gate::Shut(_) => tracing::info!("Redis is reachable"),
        }
    }

    /// A connection that was silent goes on; nothing was lost.
    pub(super) fn resume(&self, live: &Live) {
        self.answered();
        self.gate.send_if_modified(|gate| {
            let silent = matches!(gate, Gate::Held { silent: true, .. });
            if silent {
                *gate = Gate::Open(live.clone());
            }
            silent
        });
    }

    /// Usable in part: what cannot be done fails by itself.
    pub(super) fn impaired(&self, live: Live, error: &Error) {
        self.gate.send_replace(Gate::Open(live));
        self.say_down(error);
    }

    /// There is no connection, since this moment or longer. Calls wait for one, and after a time no more.
    pub(super) fn lost(self: &Arc<Self>, since: Instant, silent: bool, error: &Error) {
        let began = self.gate.send_if_modified(|gate| match gate {
            Gate::Open(_) => {
                *gate = Gate::Held { since, silent, cause: error.clone() };
                true
            }
            // The connection that was silent is gone for good; the absence is the same.
            Gate::Held { silent: before, cause, .. } => {
                *before &= silent;
                *cause = error.clone();
                false
            }
            Gate::Shut(_) => false,
        });
        if began {
            tracing::info!(cause = %error, "Redis does not answer, requests wait for it: {error}");
            self.hold(since, self.hold);
        }
    }

    /// Lets calls wait for the first connection of this worker's life.
    pub(super) fn expect(self: &Arc<Self>) {
        let since = Instant::now();
        let cause = Error::unavailable("it has not answered yet");
        self.gate.send_replace(Gate::Held { since, silent: false, cause });
        // Even with a patience of zero, calls wait until the first attempt could end.
        self.hold(since, self.hold.max(FIRST_ATTEMPT_MAX));
    }

    /// One timer for all that wait.
    fn hold(self: &Arc<Self>, since: Instant, time: Duration) {
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(since + time).await;
            // The worker may have stood still: what is there to be read is read first.
            for _ in 0..PASSES {
                tokio::task::yield_now().await;
            }
            inner.shut(|begun, _| begun == since);
        });
    }

    /// Lets no call wait any longer, if what is held is held since such a time and for such a cause.
    fn shut(&self, which: impl Fn(Instant, &Error) -> bool) {
        let mut said = None;
        self.gate.send_if_modified(|gate| match gate {
            Gate::Held { since, cause, .. } if which(*since, cause) => {
                let cause = cause.clone();
                *gate = Gate::Shut(cause.words().into());
                said = Some(cause);
                true
            }
            Gate::Held { .. } | Gate::Open(_) | Gate::Shut(_) => false,
        });
        if let Some(cause) = said {
            self.say_down(&cause);
        }
    }

    /// An attempt to connect has failed. While calls wait nothing is said, because the next one may succeed; unless the
    /// configuration is wrong, which no waiting mends, or calls are not to wait at all.
    pub(super) fn failed(&self, error: &Error) {
        let first = *self.health.borrow() == Health::Connecting;
        let mut shut = false;
        self.gate.send_if_modified(|gate| {
            match gate {
                Gate::Shut(reason) => (*reason, shut) = (error.words().into(), true),
                Gate::Held { cause, .. } => *cause = error.clone(),
                Gate::Open(_) => {}
            }
            false
        });
        if first || shut {
            self.say_down(error);
        }
        if error.misconfigured() || self.hold.is_zero() {
            self.shut(|_, _| true);
        }
    }

    /// Logged when the state or its reason changes, not at every attempt.
    pub(super) fn say_down(&self, error: &Error) {
        let reason = error.to_string();
        let before = self.health.send_replace(Health::Down { reason: reason.clone() });
        if before != (Health::Down { reason: reason.clone() }) {
            tracing::warn!(cause = %reason, "Redis is not usable: {reason}");
        }
    }
}
