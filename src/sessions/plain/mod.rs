//! Sessions by plain commands, for servers and users that allow no server-side code.
//!
//! The same requests and replies as with functions, with fewer guarantees: what a function does in one step takes several
//! here, and other workers' commands run between them.
//!
//! Kept: views are exact, an ended session is never restored, its id is hashed, and all times are Redis's. Lost: of two
//! requests that change one session at the same moment the later one may undo the earlier one's change; an interrupted
//! step leaves what it did. What cannot be kept at all is refused (`Unsupported`), never half done.

mod provisional;
mod record;
mod rotation;

pub use provisional::{destroy_session, lookup_or_create};
pub use record::{commit_session, delete_session, lookup_and_count, lookup_session, quarantine_session};
pub use rotation::rotate_session;
