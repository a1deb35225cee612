//! Status.

pub mod build;
pub mod document;
pub mod rates;
pub mod units;
