//! The public names alone, with public features: what a program that uses the library can rely on, and the programs of
//! `examples/` as their own tests would drive them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "../../examples/api.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod api;
#[path = "../../examples/login.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod login;
#[path = "../../examples/pool.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod pool;
#[path = "../../examples/thumbnails.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod thumbnails;
#[path = "../../examples/upkeep.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod upkeep;
#[path = "../../examples/views.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod views;

mod errors;
mod examples;
mod handles;
mod limits;
mod names;
mod programs;
mod test_app;
