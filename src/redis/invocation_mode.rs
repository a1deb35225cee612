//! How server-side code is called.

/// How server-side code is called on this server by this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvocationMode {
    /// By function name.
    Function,
    /// By a script's digest.
    Script,
    /// Not at all: neither is allowed, and plain commands are used instead.
    Plain,
}
