//! Tasks over the workers of a fleet.

pub(crate) mod fleet;
pub(crate) mod pages;
