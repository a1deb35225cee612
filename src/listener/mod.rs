//! The sockets the fleet listens on: one reuseport listener per slot and address, owned by the slot.
//!
//! The supervisor opens them and never closes one while its slot lives. So the connections queued on the slot of a
//! dead worker wait for its successor instead of being reset. Sockets that systemd opened are the exception: one queue
//! for all slots, which the fleet neither closes nor steers.
//! The room knows sockets and how connections are spread over them; it does not know workers or what they serve.

mod addresses;
mod error;
pub mod shared_queue;
mod slot_listeners;
pub mod steering;
pub mod systemd;
#[cfg(test)]
mod tests;

pub use addresses::{ListenAddresses, open_listeners};
pub use error::ListenError;
pub use slot_listeners::{Listener, SlotListeners, SocketOwner};
