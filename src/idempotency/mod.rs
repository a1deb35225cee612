//! Requests that must be executed once: which attempt executes them, and the stored response.

mod commands;
pub mod keys;

pub use commands::{ClaimOutcome, ClaimRequest, IdempotencyNames, StoredResponse};
