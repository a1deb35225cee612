//! Integration tests: one binary, one module per subject.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot go on says so by panicking, also from the harness"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "no test forks its own process: a thread's random numbers are its own"
)]

mod architecture;
mod circles;
mod docs;
mod fast;
mod layers;
mod process;
mod soak;
mod support;
mod vocabulary;
