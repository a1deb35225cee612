//! The table that all processes of a fleet share: a row a slot, a cell a worker, one head for the fleet.
//!
//! Workers write their slot's row, every process may read a [`ScoreboardSnapshot`](snapshot::ScoreboardSnapshot); no
//! message is sent per request. Rows belong to slots and outlive workers, so that totals never go back over a crash, and
//! the layout outlives releases, so that they never go back over an upgrade. The room knows words and what they mean; it
//! does not know Redis, HTTP or how processes are started.

pub mod cell;
mod cell_state;
pub mod connection_share;
pub mod exit_reason;
pub mod journal;
pub mod latency;
mod layout;
pub mod refusal_reason;
pub mod row;
#[cfg(feature = "fleet")]
mod shared_table;
mod slot_state;
pub mod snapshot;
mod table;
#[cfg(test)]
mod tests;

pub use exit_reason::ExitReason;
pub use layout::LAYOUT_VERSION;
pub use table::Scoreboard;
