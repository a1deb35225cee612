//! HTTP.
pub mod identity;
pub mod offload;
pub mod problem;
pub mod security;
