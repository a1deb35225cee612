//! How a Unix socket is named.

use std::fmt;
use std::path::PathBuf;

/// Where a Unix socket is found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnixSocketName {
    /// A file, by its absolute path.
    Path(PathBuf),
    /// A name that exists as long as the socket does, without a file and without permissions.
    Abstract(String),
}

/// As it is written in a configuration: `/run/shop.sock`, `@shop`.
impl fmt::Display for UnixSocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}
