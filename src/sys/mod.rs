//! The operating system: the only room that names `nix`, `libc` or `unsafe`.
#![allow(
    unsafe_code,
    reason = "the wall of the house: system calls without a safe face live here and nowhere else"
)]

pub mod backtrace;
pub mod bpf;
pub mod build;
pub mod cpu;
pub mod exec;
pub mod fd;
pub mod fork;
pub mod identity;
pub mod interface;
pub mod orphan;
pub mod path;
pub mod pressure;
pub mod proc;
pub mod queue;
pub mod shm;
pub mod signal;
pub mod sink;
pub mod socket;
pub mod task;
pub mod time;
pub mod unix;
pub mod watch;
