//! Deployment.

pub mod handoff;
pub(in crate::supervisor) mod preflight;
pub(in crate::supervisor) mod program;
pub(in crate::supervisor) mod reload;
pub(in crate::supervisor) mod restore;
pub mod rollout;
pub(in crate::supervisor) mod state;
pub(in crate::supervisor) mod takeover;
pub mod takeover_env;
