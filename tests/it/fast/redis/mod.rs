//! The client of Redis, its batches, its server-side code.

pub(crate) mod batch_faults;
pub(crate) mod batches;
pub(crate) mod batches_cluster;
pub(crate) mod client;
pub(crate) mod compensation;
pub(crate) mod fred_assumptions;
pub(crate) mod key_names;
mod migrations_fencing;
pub(crate) mod migrations_ledger;
pub(crate) mod migrations_versions;
pub(crate) mod migrations_walk;
pub(crate) mod notification_spaces;
