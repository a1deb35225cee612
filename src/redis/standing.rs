//! How Redis stands, as everybody in this room sees it: the connection in use, the health, the signing keys.

use std::sync::PoisonError;

use tokio::time::Instant;

use crate::redis::Health;
use crate::redis::Inner;
use crate::redis::error::Error;
use crate::redis::link::Live;

impl Inner {
    pub(super) fn live(&self) -> Option<Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_live(&self, live: Option<Live>) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
    }

    /// A connection is ready; `refused` is what the server said if it takes no writes.
    pub(super) fn up(&self, live: Live, refused: Option<&Error>) {
        self.lanes.connected(refused);
        self.answered();
        self.set_live(Some(live));
        self.set_lost_at(None);
        self.health.send_replace(Health::Up);
        tracing::info!("Redis is reachable");
    }

    /// Usable in part: what cannot be done fails by itself.
    pub(super) fn impaired(&self, live: Live, error: &Error) {
        self.set_live(Some(live));
        self.say_down(error);
    }

    /// Not usable at all.
    pub(super) fn down(&self, error: &Error) {
        if self.live().is_some() {
            self.set_live(None);
            self.set_lost_at(Some(Instant::now()));
        }
        self.say_down(error);
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
