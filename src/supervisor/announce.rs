//! Says that the fleet serves, and where.

use std::net::SocketAddr;

use crate::supervisor::Supervisor;
use crate::supervisor::history::happened;
use crate::supervisor::plan::Target;
use crate::supervisor::slot::Slot;

/// Early deaths of a slot after which the fleet goes ahead without it.
const TRIES: u32 = 2;

impl Supervisor<'_> {
    /// Says once that the fleet serves: every slot does, or was tried in earnest while others do.
    pub(super) fn announce(&mut self) {
        let tried = |slot: &Slot| slot.serves() || slot.backoff.early_deaths() >= TRIES;
        if self.announced || self.target != Target::Serve || !self.ever_ready || !self.slots.iter().all(tried)
        {
            return;
        }
        let serving = self.slots.iter().filter(|slot| slot.serves()).count();
        if serving == 0 {
            return;
        }
        self.announced = true;
        let list = |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let url = self.addresses.public.first().copied().map(shown).unwrap_or_default();
        let (listen, admin) = (list(&self.addresses.public), list(&self.addresses.admin));
        tracing::info!(listen, admin, workers = serving, "serving on {url}");
        let sentence = match self.slots.len() {
            slots if slots == serving => format!("{serving} workers serve on {url}"),
            slots => format!("{serving} of {slots} workers serve on {url}, the others are tried again"),
        };
        self.tell_ready(&sentence);
        self.note(happened("serving", sentence));
    }
}

/// The address as a person types it.
fn shown(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("http://localhost:{}", address.port()),
        false => format!("http://{address}"),
    }
}
