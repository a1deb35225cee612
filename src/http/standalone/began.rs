//! A mark in the extensions of a request outside a fleet whose state has begun.

/// The client's address was read: what would change it comes too late.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HasBegun;
