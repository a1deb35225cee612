//! The public names alone, with public features: what a program that uses the library can rely on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod errors;
mod handles;
mod names;
