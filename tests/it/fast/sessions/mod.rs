//! The store of sessions, and histories of concurrent requests.

pub(crate) mod linearizability;
pub(crate) mod stock_store;
pub(crate) mod store;
