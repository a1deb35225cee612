//! The hub of broadcasts.

pub(crate) mod cluster;
pub(crate) mod faults;
pub(crate) mod hub;
pub(crate) mod topics;
