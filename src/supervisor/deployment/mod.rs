//! Reloads and upgrades: what the fleet is changed to, and the program that follows this one.
//!
//! `state` holds the one value that says what is under way, `rollout` how a generation goes through the slots, both
//! pure. An upgrade proves itself (`preflight`), takes over by exec (`takeover`, with a `handoff` in a sealed memfd), and
//! goes on (`restore`) or back. The handoff keeps its form: the release before reads it, and this one reads that one's.

pub mod handoff;
pub(in crate::supervisor) mod inherited;
pub(in crate::supervisor) mod preflight;
pub(in crate::supervisor) mod program;
pub(in crate::supervisor) mod reload;
pub(in crate::supervisor) mod restore;
pub mod rollout;
pub(in crate::supervisor) mod state;
pub(in crate::supervisor) mod takeover;
pub mod takeover_env;
