//! Integration tests: one binary, one module per subject.

mod state_begin;
mod state_faults;
mod state_migrations;
mod state_session;
mod support;
