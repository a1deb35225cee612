//! One round trip for limits, session, view and counters.

pub(crate) mod begin;
pub(crate) mod begin_batch;
pub(crate) mod commit;
pub(crate) mod commit_batch;
