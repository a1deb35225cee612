//! Says that the fleet serves, and where.

use std::net::SocketAddr;

use crate::supervisor::Supervisor;
use crate::supervisor::history::happened;
use crate::supervisor::plan::Target;

impl Supervisor<'_> {
    /// Says once that every slot serves for the first time.
    pub(super) fn announce(&mut self) {
        if self.announced || self.target != Target::Serve || !self.is_settled() {
            return;
        }
        self.announced = true;
        let public: Vec<_> = self.addresses.public.iter().map(ToString::to_string).collect();
        let url = self.addresses.public.first().copied().map(shown).unwrap_or_default();
        let (listen, admin) = (public.join(","), self.addresses.admin);
        tracing::info!(listen, %admin, workers = self.wanted, "serving on {url}");
        self.tell_ready(&format!("{} workers serve on {url}", self.wanted));
        self.note(happened("serving", format!("{} workers serve on {url}", self.wanted)));
    }
}

/// The address as a person types it.
fn shown(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("http://localhost:{}", address.port()),
        false => format!("http://{address}"),
    }
}
