//! The operators' page.

use std::path::PathBuf;

use crate::config::settings::Secret;

/// Where the operators' page is shown, and to whom it offers its buttons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DashboardConfig {
    /// It is shown to visitors, too, and not at the operators' address alone.
    pub public: bool,
    /// What an operator signs in with, at least 16 bytes; none, here and in a file: the page has no buttons.
    pub token: Option<Secret>,
    /// A file with the token, read whenever a worker starts.
    pub token_file: Option<PathBuf>,
}
