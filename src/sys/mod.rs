//! The operating system: the only room that names `nix`, `libc` or `unsafe`.
