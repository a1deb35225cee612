//! What a request changed in its session, and the reply: plain data and its wire form. It must not know connections.

pub mod batch;
mod request;

pub use request::{CommitOutcome, CommitSession, NewSession};
pub(super) use request::{decode, encode};
