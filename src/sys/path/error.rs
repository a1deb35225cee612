//! Why a path cannot be used.

use std::io;

/// Why a path that belongs to this process cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Another user could put something else there; says what to do about it.
    #[error("{0}")]
    NotPrivate(String),
    /// The operating system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}
