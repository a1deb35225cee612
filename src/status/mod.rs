//! The status document: the JSON form of a fleet at one moment, for the control socket, `status --json` and `top`.
//!
//! `build` makes it of a snapshot of the scoreboard and of what only the supervisor knows; `rates` measures what a single
//! snapshot cannot show, and `check_result` is what a worker says of its application's checks. Fields are added under one version, and none is removed. It must not know who serves it.

pub mod build;
pub mod check_result;
pub mod document;
pub mod rates;
