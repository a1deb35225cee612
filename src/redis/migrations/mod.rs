//! Numbered changes of server-side code and keys: applied once by the whole fleet, recorded, never edited afterwards.
//!
//! A file is identified by its number and the SHA-256 of its text; the ledger in Redis records which were applied. The
//! first worker takes a lock and renews it; after it loses the lock, its fencing number stops its further writes. There
//! are two kinds: a **library** of server-side code, which every worker loads before it serves, and a **walk** over
//! keys, which takes its time and is run by `regatta migrate`.

mod ledger;
mod lock;
mod migration;
mod repair;
mod run;
mod set;
mod survey;
mod walk;

pub use migration::{Migration, MigrationState, MigrationStatus};
pub use repair::LedgerProblem;
pub(super) use set::ensure_applied;
pub use set::{MigrationSet, SHIPPED};
pub use survey::MigrationSurvey;
pub use walk::WalkProgress;

pub use crate::redis::functions::checksum;
