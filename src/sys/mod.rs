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
pub mod application_fds;
pub mod atomic_memory;
pub mod backtrace;
pub mod bpf;
pub mod clock;
pub mod cpu;
pub mod exec;
pub mod executable;
pub mod fd;
pub mod folder_watch;
pub mod fork;
pub mod memory;
pub mod network;
pub mod parent_exit;
pub mod path;
pub mod pressure;
pub mod process;
pub mod process_identity;
pub mod random;
pub mod shared_memory;
pub mod signal;
pub mod sink;
pub mod socket_queue;
pub mod startup;
pub mod tcp_socket;
pub mod terminal;
pub mod thread;
pub mod unix_listener;
pub mod unix_socket;

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
