//! The sockets the fleet listens on: one reuseport listener per slot and address, owned by the slot.
//!
//! The supervisor opens them and never closes one while its slot lives. So the connections queued on the slot of a
//! dead worker wait for its successor instead of being reset. Unix sockets, and those that systemd opened, are the
//! exception: one queue for all slots, which is not steered. The former end with the fleet, the latter never.
//! The room knows sockets and how connections are spread over them; it does not know workers or what they serve.

mod addresses;
mod change;
mod error;
pub mod proxy_protocol;
pub mod shared_queue;
mod slot_listeners;
mod socket;
mod source;
pub mod steering;
pub mod systemd;
#[cfg(test)]
mod tests;

pub use addresses::{ListenAddresses, ListenRequest, open_listeners};
pub use change::{ClosingListeners, ListenChange};
pub use error::ListenError;
pub use slot_listeners::{ListenAudience, SlotListeners};
pub use socket::{Listener, ListeningSocket, SocketOwner};
