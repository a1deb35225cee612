//! Each test starts the real program, and a Redis of its own: as many at once as there are processors, and more.

pub(crate) mod counters;
pub(crate) mod http;
pub(crate) mod operations;
pub(crate) mod redis;
pub(crate) mod sessions;
pub(crate) mod streams;
pub(crate) mod supervisor;
pub(crate) mod tasks;
pub(crate) mod zero_loss;
