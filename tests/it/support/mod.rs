//! What tests stand on: servers of their own that end with them.

pub(crate) mod redis;
