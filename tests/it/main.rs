//! Integration tests: one binary, one module per subject.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "whatever fails in a test shall end it, helpers included"
)]

mod deploy; // manifests and compose agree
mod nginx; // the proxy in front
mod state_begin;
mod state_faults;
mod state_migrations;
mod state_session;
mod support;
