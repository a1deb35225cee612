//! The shared state by plain commands, for servers and users that allow no server-side code.
//!
//! The same requests and replies as `begin` and `commit`, with fewer guarantees: what a function does in one step takes
//! several here, and other workers' commands run between them.
//!
//! Kept: a limit never admits more than its burst in one window, counters and views are exact, an ended session is
//! never restored, its id is hashed, and all times are Redis's. Lost: of two requests that change one session at the
//! same moment the later one may undo the earlier one's change; a limit counts in fixed windows, so twice the burst may
//! pass around a window's end; a denied request is counted for a moment; an interrupted step leaves what it did. What
//! cannot be kept at all is refused (`Unsupported`), never half done.

mod begin;
mod limits;
mod provisional;
mod rotation;
mod sessions;

pub(super) use begin::begin;
pub(super) use limits::{apply_deferred_charge, limit_status, refund_limit, reset_limit};
pub(super) use provisional::destroy_session;
pub(super) use rotation::rotate_session;
pub(super) use sessions::{commit_session, delete_session, lookup_session, quarantine_session};
