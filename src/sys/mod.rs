//! The operating system: the only room that names `nix`, `libc` or `unsafe`.
//!
//! Its functions are safe whatever their callers do, and say in `# Errors` what an old kernel or a filter may refuse. It
//! knows no fleet: no slots, no settings, no Redis.
#![allow(
    unsafe_code,
    reason = "the wall of the house: system calls without a safe face live here and nowhere else"
)]

#[cfg(feature = "demo")]
pub mod allocator;
#[cfg(feature = "fleet")]
pub mod application_fds;
pub mod atomic_memory;
#[cfg(feature = "fleet")]
pub mod backtrace;
#[cfg(feature = "fleet")]
pub mod bpf;
pub mod clock;
pub mod cpu;
#[cfg(feature = "fleet")]
pub mod exec;
#[cfg(feature = "fleet")]
pub mod executable;
#[cfg(feature = "fleet")]
pub mod fd;
#[cfg(feature = "fleet")]
pub mod folder_watch;
#[cfg(feature = "fleet")]
pub mod fork;
#[cfg(feature = "fleet")]
pub mod memory;
#[cfg(feature = "fleet")]
pub mod network;
#[cfg(feature = "fleet")]
pub mod parent_exit;
pub mod path;
#[cfg(feature = "fleet")]
pub mod pressure;
#[cfg(feature = "fleet")]
pub mod process;
#[cfg(feature = "fleet")]
pub mod process_identity;
pub mod random;
#[cfg(feature = "fleet")]
pub mod shared_memory;
#[cfg(feature = "fleet")]
pub mod signal;
#[cfg(feature = "fleet")]
pub mod sink;
#[cfg(feature = "fleet")]
pub mod socket_queue;
#[cfg(feature = "fleet")]
pub mod startup;
#[cfg(feature = "fleet")]
pub mod tcp_socket;
#[cfg(feature = "fleet")]
pub mod terminal;
#[cfg(feature = "fleet")]
pub mod thread;
#[cfg(feature = "fleet")]
pub mod unix_listener;
#[cfg(feature = "fleet")]
pub mod unix_socket;
pub mod unix_socket_name;

/// The same error, with the name of what the kernel refused: an error number alone does not say what is missing.
fn named<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> std::io::Error {
    move |error| {
        let error = error.into();
        std::io::Error::new(error.kind(), format!("{what}: {error}"))
    }
}

/// Whether the kernel does not know a call, or a filter (seccomp(2)) forbids it.
fn is_missing(error: &std::io::Error) -> bool {
    const MISSING: &[i32] =
        &[libc::ENOSYS, libc::ENOPROTOOPT, libc::EOPNOTSUPP, libc::EINVAL, libc::EPERM, libc::EACCES];
    error.raw_os_error().is_some_and(|number| MISSING.contains(&number))
}
