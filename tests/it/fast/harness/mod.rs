//! The helpers of the tests, tested themselves.

pub(crate) mod client_swarm;
pub(crate) mod delivery_audit;
pub(crate) mod fault_proxy;
