//! The composition root, where all rooms meet: configuration → listeners → scoreboard → supervisor and worker.
//!
//! Guarantees that a fleet can be run, handed over and proven without a command line: it names nothing of `cli`, and an
//! exit code is decided where the failure is known.

pub mod app_definition;
pub mod exit_code;
pub mod fleet;
pub mod fleet_config;
mod serve;
mod slot_count;
pub mod takeover;
mod worker_host;

pub use serve::{address_failure, create_run_dir, listen_request, program, search_path, serve};
pub use slot_count::initial_slots;
