//! Integration tests: one binary, one module per subject.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot go on says so by panicking, also from the harness"
)]

mod deploy; // manifests and compose agree
mod nginx; // the proxy in front
