//! A worker's share of its fleet.

mod extractors;
mod handle;
pub(super) mod snapshot;
