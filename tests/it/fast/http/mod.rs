//! What a request says of itself, without a fleet.

pub(crate) mod fuzz;
pub(crate) mod idempotency_names;
pub(crate) mod real_ip;
