//! Counters over the workers of a fleet.

pub(crate) mod batched;
pub(crate) mod bounded_and_distinct;
