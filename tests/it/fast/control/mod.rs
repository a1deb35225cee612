//! The control protocol.

pub(crate) mod protocol;
