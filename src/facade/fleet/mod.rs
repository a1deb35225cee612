//! A worker's share of its fleet.

pub(super) mod busy;
mod extractors;
mod handle;
pub(super) mod snapshot;
