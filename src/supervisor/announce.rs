//! Says that the fleet serves, and where.

use std::net::SocketAddr;

use crate::supervisor::Supervisor;
use crate::supervisor::effects::event_now;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::slots::slot::Slot;

/// Early deaths of a slot after which the fleet goes ahead without it.
const EARLY_DEATHS_BEFORE_ANNOUNCE: u32 = 2;

impl Supervisor<'_> {
    /// Says once that the fleet serves: every slot does, or was tried in earnest while others do.
    pub(super) fn announce_serving(&mut self) {
        let tried =
            |slot: &Slot| slot.is_serving() || slot.backoff.early_deaths() >= EARLY_DEATHS_BEFORE_ANNOUNCE;
        if self.announced
            || self.desired_state != DesiredState::Running
            || !self.ever_ready
            || !self.slots.iter().all(tried)
        {
            return;
        }
        let serving = self.slots.iter().filter(|slot| slot.is_serving()).count();
        if serving == 0 {
            return;
        }
        self.announced = true;
        let list = |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let url = self.addresses.public.first().copied().map(display_url).unwrap_or_default();
        let (listen, admin) = (list(&self.addresses.public), list(&self.addresses.admin));
        tracing::info!(listen, admin, workers = serving, "serving on {url}");
        let message = match self.slots.len() {
            slots if slots == serving => format!("{serving} workers serve on {url}"),
            slots => format!("{serving} of {slots} workers serve on {url}, the others are tried again"),
        };
        self.notify_ready(&message);
        self.record_event(event_now("fleet_serving", message));
    }
}

/// The address as a person types it.
fn display_url(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("http://localhost:{}", address.port()),
        false => format!("http://{address}"),
    }
}
